"""What a client shows a server, and whom it believes: certificates and a token, from arguments or the environment.

Imports no torch, for programs that must start at once. A token never leaves this machine in plain text unless told so.
"""

import ipaddress
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from samix.errors import ConfigError

TLS_CA, TLS_CERT, TLS_KEY = "SAMIX_TLS_CA", "SAMIX_TLS_CERT", "SAMIX_TLS_KEY"
TOKEN_FILE, TOKEN = "SAMIX_TOKEN_FILE", "SAMIX_TOKEN"
PLAIN_TOKEN = "SAMIX_PLAIN_TOKEN"
SYSTEM = "system"
"""As `tls_ca`: the authorities that gRPC brings, for servers with a certificate of a public one."""

_MAX_FILE_BYTES = 1 << 20
_AUTHORIZATION = "authorization"

Metadata = tuple[tuple[str, str], ...]
FilePath = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """Where certificates and the token of a client are; without any it speaks plain text, and shows nothing.

    Secrets are no fields of it, also not the one in SAMIX_TOKEN: `str` and logs show paths.
    """

    tls_ca: str = ""
    """File of the authorities that servers must be certified by, PEM, or `system`; makes connections TLS."""
    tls_cert: str = ""
    """File with the certificate of this client, for servers that ask for one; with `tls_key`."""
    tls_key: str = ""
    """File of its private key."""
    token_file: str = ""
    """File with the token: a line that ends with the secret. It is read again when it changes."""
    plain_token: bool = False
    """Show the token to other machines without TLS too, where whoever is in between can read it."""

    def __post_init__(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            given, missing = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            raise ConfigError(f"{given} is given without {missing}; a client's certificate needs both")
        if self.tls_cert and not self.tls_ca:
            raise ConfigError(
                f"tls_cert {self.tls_cert} is shown over TLS only; give tls_ca too, the authority of the server, or "
                f"{SYSTEM!r}"
            )


def find_credentials(
    given: Credentials | None = None, *, environ: Mapping[str, str] | None = None, **values: FilePath | None
) -> Credentials:
    """Complete credentials from the environment: SAMIX_TLS_CA, SAMIX_TLS_CERT, SAMIX_TLS_KEY, SAMIX_TOKEN_FILE.

    Args:
        given: what was configured; its empty fields are filled.
        environ: where variables are looked up; None is that of this process.
        values: fields, which count more than both; None and empty ones are none.

    Raises:
        ConfigError: for a certificate without its key, for example.
    """
    environ = os.environ if environ is None else environ
    variables = {"tls_ca": TLS_CA, "tls_cert": TLS_CERT, "tls_key": TLS_KEY, "token_file": TOKEN_FILE}
    found = {
        name: os.fspath(values.get(name) or "") or (getattr(given, name) if given else "") or environ.get(variable, "")
        for name, variable in variables.items()
    }
    is_plain = (given is not None and given.plain_token) or environ.get(PLAIN_TOKEN, "").lower() in ("1", "true", "yes")
    return Credentials(**found, plain_token=is_plain)


def open_channel(target: str, credentials: Credentials, options: Sequence[tuple[str, int | str]] = ()) -> grpc.Channel:
    """Make a channel: TLS where the credentials say so and the target is no unix socket. The caller closes it.

    Raises:
        ConfigError: if a file cannot be read, or holds something else.
    """
    if not credentials.tls_ca or is_unix(target):
        return grpc.insecure_channel(target, list(options))
    authorities = None if credentials.tls_ca == SYSTEM else _read(credentials.tls_ca, "tls_ca", b"-----BEGIN CERTIF")
    key = _read(credentials.tls_key, "tls_key", b"PRIVATE KEY-----") if credentials.tls_key else None
    chain = _read(credentials.tls_cert, "tls_cert", b"-----BEGIN CERTIF") if credentials.tls_cert else None
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(authorities, key, chain), list(options))


class TokenSource:
    """The token of one target, as metadata of its calls; its file is looked at for each call, and read if it changed.

    Safe for threads.
    """

    def __init__(self, credentials: Credentials, environ_token: str) -> None:
        self._path = Path(credentials.token_file) if credentials.token_file else None
        self._environ_token = environ_token
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._metadata: Metadata = ()

    def metadata(self) -> Metadata:
        """Make what is sent with a call; nothing without a token.

        Raises:
            ConfigError: if the file cannot be read and never could, or holds no token.
        """
        if self._path is None:
            return _bearer(self._environ_token) if self._environ_token else ()
        with self._lock:
            self._look(self._path)
            return self._metadata

    def _look(self, path: Path) -> None:
        try:
            status = path.stat()
            stamp = status.st_mtime_ns, status.st_size, status.st_ino
            if stamp == self._stamp:
                return
            self._metadata, self._stamp = _bearer(read_token(path)), stamp
        except (OSError, ConfigError) as error:
            if self._metadata:  # it is being replaced; the server says whether the old one is still good
                return
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"token_file: cannot take a token from {path} ({reason})") from error


def open_tokens(target: str, credentials: Credentials, *, environ: Mapping[str, str] | None = None) -> TokenSource:
    """Make the source of the token for calls to a target.

    Raises:
        ConfigError: if it would travel to another machine in plain text, or SAMIX_TOKEN holds none.
    """
    token = _environ_token(os.environ if environ is None else environ)
    source = credentials.token_file or (f"of {TOKEN}" if token else "")
    if source and not (credentials.tls_ca or credentials.plain_token or _is_near(target)):
        raise ConfigError(
            f"the token {source} would go to {target} in plain text, where others can read it; give tls_ca "
            f"({TLS_CA}) so that the connection is TLS, or allow it (plain_token, {PLAIN_TOKEN}=1)"
        )
    return TokenSource(credentials, token)


def read_token(path: Path) -> str:
    """Read the secret of a token file: the last word of its only line, so that a line of the server's file will do.

    Raises:
        ConfigError: if there are no or several lines; no message holds what is in them.
    """
    lines = [line for line in _read(str(path), "token_file").decode(errors="replace").splitlines() if line.strip()]
    lines = [line for line in lines if not line.lstrip().startswith("#")]
    if len(lines) != 1:
        raise ConfigError(f"it holds {len(lines)} lines; write one line that ends with the secret")
    return _checked(lines[0].split()[-1])


def is_unix(target: str) -> bool:
    """Whether a target is a unix socket, which only its user may open."""
    return target.startswith("unix:")


def _is_near(target: str) -> bool:
    host = target.removeprefix("dns:///").rpartition(":")[0].strip("[]")
    if is_unix(target) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _environ_token(environ: Mapping[str, str]) -> str:
    try:
        return _checked(environ.get(TOKEN, "").strip())  # files of variables like to end their lines
    except ConfigError as error:
        raise ConfigError(f"{TOKEN}: {error}") from error


def _checked(secret: str) -> str:
    """Refuse what gRPC would refuse with a message that holds it."""
    if not (secret.isascii() and secret.isprintable() and " " not in secret):
        raise ConfigError("its secret holds other than printable ASCII characters")
    return secret


def _bearer(secret: str) -> Metadata:
    return ((_AUTHORIZATION, f"Bearer {secret}"),)


def _read(path: str, name: str, mark: bytes = b"") -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {path} ({error.strerror}); check path and permissions") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"{name}: {path} is larger than {_MAX_FILE_BYTES} bytes; is it the right file?")
    if mark not in data:
        raise ConfigError(f"{name}: {path} holds no {mark.decode().strip('-')}... in PEM; is it the right file?")
    return data
