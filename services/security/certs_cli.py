"""Make certificates for a desk or a small site: an authority, one for servers, one for clients."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from samix.errors import ConfigError, InputError
from services.cli import program
from services.config import parse_config
from services.files import naming
from services.security.authority import (
    Credential,
    issue_client,
    issue_server,
    make_authority,
    names_of,
    parse_credential,
)

_MAX_DAYS = 3650
_MAX_NAME = 64  # of a common name, by X.520
_USUAL_NAMES = ("localhost", "127.0.0.1", "::1")
_AUTHORITY = "samix development authority"
_SECRET_MODE, _PUBLIC_MODE = 0o600, 0o644


@dataclass(frozen=True, kw_only=True, slots=True)
class CertsConfig:
    """Make ca.pem, server.pem, client.pem and their keys. Who holds ca.key can pass for any server: keep it apart."""

    out: Path
    """Folder to write them to; made if it is missing."""
    names: tuple[str, ...] = ()
    """Names and addresses that clients call the server by; none takes localhost, 127.0.0.1 and ::1, and with --renew
    those of the certificate that is there."""
    client: str = "client"
    """Name in the client's certificate."""
    days: int = 365
    """How long the certificates of server and client are good; that of the authority is for ten years."""
    renew: bool = False
    """Keep the authority that is there, and issue the others anew: whoever trusts it needs nothing new."""
    overwrite: bool = False
    """Replace all files, the authority too: whoever trusted the old one needs the new ca.pem."""

    def __post_init__(self) -> None:
        if not 1 <= self.days <= _MAX_DAYS:
            raise ConfigError(f"days must lie in 1..{_MAX_DAYS}, got {self.days}")
        if not 1 <= len(self.client) <= _MAX_NAME:
            raise ConfigError(f"client must have 1 to {_MAX_NAME} characters, got {self.client!r}")
        if self.renew and self.overwrite:
            raise ConfigError("renew keeps the authority, overwrite replaces it; give one of them")

    @property
    def split_names(self) -> list[str]:
        """The names that were given; a list with commas counts as several."""
        return [name for text in self.names for name in text.split(",") if name]


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Write the files, and say how to use them."""
    config = parse_config(CertsConfig, "certs", argv)
    now = datetime.now(UTC)
    write_certificates(config, now)
    until = now + timedelta(days=config.days)
    print(f"wrote {config.out}/: ca, server and client (.pem and .key); server and client until {until:%Y-%m-%d}")
    print(f"samix serve --security.tls-cert {config.out}/server.pem --security.tls-key {config.out}/server.key ...")
    print(f"samix.connect(..., tls_ca='{config.out}/ca.pem')   or   export SAMIX_TLS_CA={config.out}/ca.pem")


def write_certificates(config: CertsConfig, now: datetime) -> None:
    """Make and write the files.

    Args:
        config: which.
        now: when they begin.

    Raises:
        InputError: if files are there already, the authority is not, or a name is none.
    """
    files = _files(config, now)
    if not (config.renew or config.overwrite):
        for name in files:
            if (config.out / name).exists():
                raise ConfigError(f"{config.out / name} is there already; give --renew, --overwrite or another --out")
    config.out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        _write(config.out / name, data, _SECRET_MODE if name.endswith(".key") else _PUBLIC_MODE)


def _files(config: CertsConfig, now: datetime) -> Mapping[str, bytes]:
    life = timedelta(days=config.days)
    authority = _read_authority(config.out) if config.renew else make_authority(_AUTHORITY, now)
    names = config.split_names or (_old_names(config.out) if config.renew else _USUAL_NAMES)
    made = {
        "server": issue_server(authority, names, now, life),
        "client": issue_client(authority, config.client, now, life),
    }
    if not config.renew:
        made["ca"] = authority
    return {
        f"{name}.{suffix}": data
        for name, credential in made.items()
        for suffix, data in (("pem", credential.certificate_pem), ("key", credential.key_pem))
    }


def _read_authority(folder: Path) -> Credential:
    certificate, key = folder / "ca.pem", folder / "ca.key"
    try:
        return parse_credential(certificate.read_bytes(), key.read_bytes())
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; without --renew a new authority is made") from error
    except InputError as error:
        raise ConfigError(f"{certificate} and {key}: {error}") from error


def _old_names(folder: Path) -> Sequence[str]:
    path = folder / "server.pem"
    try:
        return names_of(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; say what the server is called: --names") from error
    except InputError as error:
        raise ConfigError(f"{path}: {error}; say what the server is called: --names") from error


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a file in one piece, which nobody could read meanwhile who may not afterwards."""
    temporary = path.with_suffix(f"{path.suffix}.partial")
    with naming(path):
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
        temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
