"""Connects to mixers on servers: addresses, exchange and credentials in, a `RemoteMixer` out."""

from dataclasses import replace

from samix.client.channel import Connection, check_targets
from samix.client.config import ClientConfig, Encoding, Exchange, ImageFormat, Priority, Reply
from samix.client.remote_mixer import RemoteMixer
from samix.client.replicas import Replicas
from samix.client.retrying import ClientObserver, SilentObserver
from samix.credentials import FilePath, find_credentials, open_tokens

__all__ = ["RemoteMixer", "connect"]

_DEFAULT_CONFIG = ClientConfig()
_SILENT = SilentObserver()


def connect(
    target: str,
    *,
    mixer: str = "",
    version: str = "",
    reply: Reply = "masks",
    encoding: Encoding = "raw",
    jpeg_quality: int = 90,
    encoder_size: int | None = None,
    image_format: ImageFormat = "uint8",
    priority: Priority = "normal",
    tls_ca: FilePath | None = None,
    tls_cert: FilePath | None = None,
    tls_key: FilePath | None = None,
    token_file: FilePath | None = None,
    config: ClientConfig = _DEFAULT_CONFIG,
    observer: ClientObserver = _SILENT,
) -> RemoteMixer:
    """Make a remote mixer. Nothing is sent before it is used, so the server may start later.

    Args:
        target: `host:port`, `dns:///name:port` or `unix:///path`; several replicas of the mixer as a list with commas.
            Batches go to them by turns, as they go to all addresses of a DNS name.
        mixer: its name on the server; may be empty where the server hosts exactly one.
        version: weights version to insist on; empty takes the one that is loaded.
        reply: `masks` blends the images given to `mix`; `images` takes mixed images from the server.
        encoding: `raw` sends the exact pixels, `jpeg` a tenth of the bytes; see `Exchange`.
        jpeg_quality: of JPEGs, 1 to 100.
        encoder_size: longer side of smaller copies that go up for masks, in pixels; None sends the images themselves.
        image_format: of reply `images`: `uint8`, or `float16` for finer steps.
        priority: of its batches among all that wait on the server.
        tls_ca: file of the authorities that the server must be certified by, or `system`; makes connections TLS. This
            and the next three are otherwise those of `config`, or SAMIX_TLS_CA, SAMIX_TLS_CERT, SAMIX_TLS_KEY and
            SAMIX_TOKEN_FILE.
        tls_cert: file with a certificate of this client, for servers that ask for one.
        tls_key: file of its private key.
        token_file: file with a token, which goes to other machines over TLS only.
        config: deadlines, limits, retries and hedges.
        observer: told of bytes, retries and hedges.

    Raises:
        InputError: if `target` is no address, there is no such exchange, or a token would travel in plain text.
    """
    credentials = find_credentials(
        config.credentials, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key, token_file=token_file
    )
    config = replace(config, credentials=credentials)
    exchange = Exchange(
        reply=reply,
        encoding=encoding,
        jpeg_quality=jpeg_quality,
        encoder_size=encoder_size,
        image_format=image_format,
        priority=priority,
    )
    targets = check_targets(target)
    for address in targets:
        open_tokens(address, credentials)
    replicas = Replicas([Connection(address, config) for address in targets])
    return RemoteMixer(replicas, mixer=mixer, version=version, exchange=exchange, config=config, observer=observer)
