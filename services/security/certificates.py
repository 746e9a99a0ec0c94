"""Certificates of a server: read and checked together, for gRPC and for HTTP."""

import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from samix.errors import ConfigError
from services.security.config import SecurityConfig
from services.security.reading import read_file
from services.security.watched import Watched, watch

_CERT, _KEY, _CLIENT_CA = "security.tls-cert", "security.tls-key", "security.client-ca"


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificates:
    """What a server shows, and whom it believes."""

    grpc_configuration: grpc.ServerCertificateConfiguration
    """For connections of gRPC."""
    http_context: ssl.SSLContext
    """For connections of HTTP. It takes callers without a certificate, as probes have none."""
    expiry_s: float
    """When the first of the server's certificates ends, seconds since 1970."""
    client_ca_expiry_s: float | None
    """The same of the authorities of clients; None where clients need no certificate."""


def watch_certificates(config: SecurityConfig) -> Watched[Certificates] | None:
    """Read the certificates of a configuration, and again when they change; None if it has none.

    Raises:
        ConfigError: if a file cannot be used.
    """
    paths = [path for path in (config.tls_cert, config.tls_key, config.client_ca) if path is not None]
    return watch("certificates", paths, lambda: load_certificates(config)) if paths else None


def load_certificates(config: SecurityConfig) -> Certificates:
    """Read the certificates of a configuration that has some.

    Raises:
        ConfigError: if a file is not what its flag says, the certificate has expired, or the key belongs to another.
    """
    assert config.tls_cert, "the configuration has seen to it"
    assert config.tls_key, "and to this"
    chain, key = read_file(config.tls_cert, _CERT), read_file(config.tls_key, _KEY, is_secret=True)
    certificates = _parse(chain, config.tls_cert, _CERT)
    _check_key(certificates[0], key, config)
    _check_expiry(certificates[0], config.tls_cert)
    client_ca = read_file(config.client_ca, _CLIENT_CA) if config.client_ca else None
    authorities = _parse(client_ca, config.client_ca, _CLIENT_CA) if client_ca and config.client_ca else []
    return Certificates(
        grpc_configuration=grpc.ssl_server_certificate_configuration([(key, chain)], client_ca),
        http_context=_http_context(config, client_ca),
        expiry_s=_expiry_s(certificates),
        client_ca_expiry_s=_expiry_s(authorities) if authorities else None,
    )


def grpc_credentials(certificates: Watched[Certificates], *, needs_client: bool) -> grpc.ServerCredentials:
    """Make credentials for gRPC that follow the certificates.

    Args:
        certificates: the server's.
        needs_client: whether clients have to show one.
    """
    changes = GrpcChanges(certificates)
    fetch: Any = changes  # may answer None, which the types of gRPC do not know
    return grpc.dynamic_ssl_server_credentials(changes.current, fetch, needs_client)


class GrpcChanges:
    """Answers gRPC, which asks at every connection, with certificates it does not have yet, or with nothing.

    Nothing is not only quicker. Whatever is answered, gRPC (1.85) puts in the place of what it has, and does not wait
    for handshakes that are just taking that: answered always, it aborts within seconds when somebody opens connections
    without a pause. Answered once a change it stood that through ten changes a second, and not through a hundred.
    """

    def __init__(self, certificates: Watched[Certificates]) -> None:
        self.current = certificates.value.grpc_configuration
        """What gRPC has."""
        self._certificates = certificates
        self._lock = threading.Lock()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """Answer what is new; None if nothing is."""
        newest = self._certificates.value.grpc_configuration
        if newest is self.current:
            return None
        with self._lock:
            is_new, self.current = newest is not self.current, newest
        return newest if is_new else None


def _http_context(config: SecurityConfig, client_ca: bytes | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0  # a page is one connection; nobody resumes it
    assert config.tls_cert, "the configuration has seen to it"
    try:
        # A passphrase, though none is needed: a key that has one by now would be asked for on the terminal.
        context.load_cert_chain(config.tls_cert, config.tls_key, password="")
        if client_ca is not None:
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(cadata=client_ca.decode("ascii", errors="ignore"))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError; one of the files was just being replaced
        raise ConfigError(f"{_CERT}: {config.tls_cert} and its key cannot be used ({error})") from error
    return context


def _parse(data: bytes, path: Path, flag: str) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigError(f"{flag}: {path} holds no certificate in PEM ({error}); is it the right file?") from error


def _check_key(certificate: x509.Certificate, data: bytes, config: SecurityConfig) -> None:
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:  # nobody is there to be asked
        raise ConfigError(f"{_KEY}: {config.tls_key} has a passphrase; store it without, mode 0600") from error
    except ValueError as error:
        raise ConfigError(f"{_KEY}: {config.tls_key} holds no private key in PEM; is it the right file?") from error
    except UnsupportedAlgorithm as error:
        raise ConfigError(f"{_KEY}: {config.tls_key} is of an unknown kind ({error}); take EC or RSA") from error
    encoding = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    try:
        shown = certificate.public_key().public_bytes(*encoding)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{_CERT}: the key in {config.tls_cert} is of an unknown kind ({error}); take EC or RSA"
        ) from error
    if key.public_key().public_bytes(*encoding) != shown:
        raise ConfigError(
            f"{_KEY}: {config.tls_key} is not the key of the first certificate in {config.tls_cert}; the server's own "
            "certificate comes first, then those it was issued by"
        )


def _check_expiry(certificate: x509.Certificate, path: Path) -> None:
    expiry = certificate.not_valid_after_utc
    if expiry <= datetime.now(UTC):
        raise ConfigError(f"{_CERT}: {path} has expired on {expiry:%Y-%m-%d %H:%M} UTC; renew it")


def _expiry_s(certificates: Sequence[x509.Certificate]) -> float:
    return min(certificate.not_valid_after_utc.timestamp() for certificate in certificates)
