"""All that guards one server, opened from its configuration: what each of its listeners needs is taken from here."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry, Gauge

from services.security.access import Access, OnDenial, open_access
from services.security.certificates import Certificates, grpc_credentials, watch_certificates
from services.security.config import SecurityConfig
from services.security.door import Door
from services.security.gatekeeper import Gatekeeper
from services.security.tokens import Role, Tokens, load_tokens
from services.security.watched import Watched, watch

log = logging.getLogger(__name__)

_LOOPBACK = ("127.", "::1", "localhost")


@dataclass(frozen=True, kw_only=True, slots=True)
class Security:
    """The guards of one server. Safe for threads; holds nothing open."""

    config: SecurityConfig
    """What they were made of."""
    certificates: Watched[Certificates] | None
    """Of TLS; None where ports speak plain text."""
    tokens: Watched[Tokens] | None
    """Who may do what; None lets everybody."""

    def credentials(self) -> grpc.ServerCredentials | None:
        """Make what gRPC listens with; None for plain text."""
        if self.certificates is None:
            return None
        return grpc_credentials(self.certificates, needs_client=self.config.client_ca is not None)

    def interceptors(self, roles: Mapping[str, Role], on_denial: OnDenial) -> list[grpc.ServerInterceptor]:
        """Make what looks at calls before all others; see `Gatekeeper`."""
        access = self._access()
        return [] if access is None else [Gatekeeper(access, roles, on_denial)]

    def door(self) -> Door:
        """Make what decides about pages."""
        certificates = self.certificates
        return Door(
            hosts=frozenset(name.lower() for name in self.config.http_hosts),
            access=self._access(),
            needs_certificate=self.config.client_ca is not None,
            tls=None if certificates is None else lambda: certificates.value.http_context,
        )

    def watch_files(self, registry: CollectorRegistry) -> None:
        """Say, whenever the page is fetched, when certificates end, and which files could not be taken over."""
        gauge = partial(Gauge, registry=registry, labelnames=["file"])
        stale = gauge("mixer_security_file_stale", "Whether a file has changed into something that cannot be used.")
        for name, files in (("certificates", self.certificates), ("tokens", self.tokens)):
            if files is not None:
                stale.labels(name).set_function(partial(_is_stale, files))
        expiry = gauge("mixer_certificate_expiry_timestamp_seconds", "When a certificate ends, seconds since 1970.")
        certificates = self.certificates
        if certificates is None:
            return
        expiry.labels("server").set_function(lambda: certificates.value.expiry_s)
        if self.config.client_ca is not None:
            expiry.labels("client_ca").set_function(lambda: certificates.value.client_ca_expiry_s or 0.0)

    def warn_if_open(self, host: str) -> None:
        """Say so in the log where strangers may use a server."""
        if self.config.is_open and not host.startswith(_LOOPBACK):
            log.warning(
                "open_to_all",
                extra={"host": host, "cure": "--security.tokens or --security.client-ca, see docs/security.md"},
            )
        elif self.tokens is not None and not self.config.has_tls and not host.startswith(_LOOPBACK):
            log.warning("tokens_in_plain_text", extra={"host": host, "cure": "--security.tls-cert, --security.tls-key"})

    def _access(self) -> Access | None:
        return open_access(self.tokens)


def open_security(config: SecurityConfig) -> Security:
    """Read the files of a configuration.

    Raises:
        ConfigError: if one cannot be used.
    """
    return Security(config=config, certificates=watch_certificates(config), tokens=_watch_tokens(config.tokens))


def _watch_tokens(path: Path | None) -> Watched[Tokens] | None:
    return watch("tokens", [path], lambda: load_tokens(path)) if path else None


def _is_stale(files: Watched) -> bool:
    return files.is_stale
