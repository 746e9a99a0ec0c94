"""What a server asks of those who connect, and how much of it they may hold."""

import math
from dataclasses import dataclass
from pathlib import Path

from samix.errors import ConfigError

_DAY_S = 86_400.0
_MAX_HEADER_KIB = 1024
_MAX_CONNECTIONS = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SecurityConfig:
    """Certificates, tokens and limits. Files are read again when they change; unix sockets need none of them."""

    tls_cert: Path | None = None
    """Certificate of this server and those it was issued by, PEM; with --security.tls-key all TCP ports speak TLS 1.2
    or later and nothing else."""
    tls_key: Path | None = None
    """Private key of that certificate, PEM without a passphrase; for this user alone (mode 0600)."""
    client_ca: Path | None = None
    """Certificates of authorities, PEM: whoever connects must show a certificate of one of them (mutual TLS). /livez
    and /readyz ask for none."""
    tokens: Path | None = None
    """Who may do what, a line each: ROLE[,ROLE] NAME SECRET, of the roles mix, online, read and admin; for this user
    alone (mode 0600). Calls and pages then need `authorization: Bearer SECRET`; health checks do not."""
    http_hosts: tuple[str, ...] = ()
    """More names that the HTTP pages are asked for by; * takes any. Those without a dot, --host and addresses always
    are good; what a stranger's web site calls itself is not."""
    max_connections: int = 1024
    """Most gRPC connections of each listening socket; further ones are closed at once."""
    max_connections_per_client: int = 256
    """Most of them from one address; the youngest of those over it are closed."""
    handshake_timeout_s: float = 10.0
    """Longest from a gRPC connection to its first frame, TLS handshake included, in seconds."""
    connection_idle_s: float = 300.0
    """A gRPC connection without calls for so long is closed, in seconds; clients connect again when they need it."""
    connection_age_s: float = 3600.0
    """A gRPC connection that old takes no more calls, in seconds: its client connects again, which spreads load over
    new replicas and asks for certificates again."""
    connection_grace_s: float = 600.0
    """How long the calls of such a connection may go on, in seconds; then they are cut off."""
    max_header_kib: int = 16
    """Most metadata of one gRPC call, in KiB; calls with more are refused."""

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("tls-cert", "tls-key") if self.tls_cert else ("tls-key", "tls-cert")
            raise ConfigError(f"security.{given} is given without security.{missing}; TLS needs both")
        if self.client_ca and not self.tls_cert:
            raise ConfigError(
                f"security.client-ca {self.client_ca} asks clients for certificates, which only TLS can; give "
                "--security.tls-cert and --security.tls-key as well"
            )
        for name in ("handshake_timeout_s", "connection_idle_s", "connection_age_s", "connection_grace_s"):
            _check_seconds(name, getattr(self, name))
        for name, most in (
            ("max_connections", _MAX_CONNECTIONS),
            ("max_connections_per_client", _MAX_CONNECTIONS),
            ("max_header_kib", _MAX_HEADER_KIB),
        ):
            if not 1 <= getattr(self, name) <= most:
                flag = name.replace("_", "-")
                raise ConfigError(f"security.{flag} must lie in 1..{most}, got {getattr(self, name)}")
        for name in self.http_hosts:
            if not name or not name.isascii() or not name.isprintable() or set(name) & set("/ @,"):
                raise ConfigError(f"security.http-hosts are names such as mixer.example.org, got {name!r}")

    @property
    def has_tls(self) -> bool:
        """Whether TCP ports speak TLS."""
        return self.tls_cert is not None

    @property
    def is_open(self) -> bool:
        """Whether whoever reaches a port may use it."""
        return self.tokens is None and self.client_ca is None


def _check_seconds(name: str, value: float) -> None:
    if not (0 < value <= _DAY_S and math.isfinite(value)):
        flag = name.replace("_", "-")
        raise ConfigError(f"security.{flag} must be positive and at most {_DAY_S:.0f} (a day), got {value}")
