"""Certificates for tests: a site with its authority, and strangers with theirs."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from samix.credentials import Credentials
from services.security.authority import Credential, issue_client, issue_server, make_authority
from services.security.config import SecurityConfig

NAMES = ("localhost", "127.0.0.1")
DAY = timedelta(days=1)

MIX, ONLINE, READ, ADMIN = (f"{role}-{role:x>24}" for role in ("mix", "online", "read", "admin"))
"""Secrets of one role each; see `Site.write_tokens`."""


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Site:
    """Files of one authority in a folder."""

    folder: Path

    @cached_property
    def authority(self) -> Credential:
        return make_authority(f"authority of {self.folder.name}", now())

    def write(self, name: str, credential: Credential) -> tuple[Path, Path]:
        self.folder.mkdir(exist_ok=True)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(credential.certificate_pem)
        key.write_bytes(credential.key_pem)
        key.chmod(0o600)
        return certificate, key

    @property
    def ca(self) -> Path:
        return self.write("ca", self.authority)[0]

    def server(self, *names: str, life: timedelta = DAY) -> tuple[Path, Path]:
        return self.write("server", issue_server(self.authority, names or NAMES, now(), life))

    def client(self, *, life: timedelta = DAY) -> tuple[Path, Path]:
        return self.write("client", issue_client(self.authority, "client", now(), life))

    def write_tokens(self, *more: str) -> Path:
        path = self.folder / "tokens"
        self.folder.mkdir(exist_ok=True)
        roles = (("mix", MIX), ("online", ONLINE), ("read", READ), ("admin", ADMIN))
        path.write_text("\n".join([*(f"{role} {role}er {secret}" for role, secret in roles), *more]) + "\n")
        path.chmod(0o600)
        return path

    def token_file(self, secret: str, name: str = "token") -> Path:
        path = self.folder / name
        self.folder.mkdir(exist_ok=True)
        path.write_text(f"{secret}\n")
        return path

    def security(self, *, is_mutual: bool = False, has_tokens: bool = False, **changes: Any) -> SecurityConfig:
        """Describe a server with a certificate of this site."""
        certificate, key = self.server()
        client_ca = self.ca if is_mutual else None
        tokens = self.write_tokens() if has_tokens else None
        return SecurityConfig(tls_cert=certificate, tls_key=key, client_ca=client_ca, tokens=tokens, **changes)

    def credentials(self, *, secret: str = "", has_certificate: bool = False) -> Credentials:
        """Describe a client that trusts this site."""
        certificate, key = map(str, self.client()) if has_certificate else ("", "")
        token_file = str(self.token_file(secret)) if secret else ""
        return Credentials(tls_ca=str(self.ca), tls_cert=certificate, tls_key=key, token_file=token_file)
