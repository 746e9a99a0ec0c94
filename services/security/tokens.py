"""Bearer tokens: who holds one, and what each may do."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from samix.errors import ConfigError
from services.security.reading import read_file

Role = Literal["mix", "online", "read", "admin"]
"""mix sends batches and reads datasets; online trains a mixer; read opens the pages; admin loads mixers, and reads."""

ROLES: tuple[Role, ...] = get_args(Role)

_FLAG = "security.tokens"
_MIN_SECRET = 16
_MAX_SECRET = 512
_MAX_ENTRIES = 1000  # all are compared at every call
_SCHEME = "bearer"


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who holds a token."""

    name: str
    """For logs; several tokens may have the same, as while one replaces the other."""
    roles: frozenset[str]
    """What the holder may do."""


class Tokens:
    """The tokens of a server, as digests."""

    def __init__(self, entries: Sequence[tuple[bytes, Holder]]) -> None:
        self._entries = entries

    def find(self, secret: str) -> Holder | None:
        """Tell whose secret this is; None if it is nobody's. Takes as long whichever it is like."""
        digest = _digest(secret)
        found = None
        for known, holder in self._entries:  # to the end: how soon one fits would tell which
            if hmac.compare_digest(known, digest):
                found = holder
        return found


def load_tokens(path: Path) -> Tokens:
    """Read a file of tokens.

    Raises:
        ConfigError: if it cannot be read, or a line of it is no token; no message holds a secret.
    """
    try:
        text = read_file(path, _FLAG, is_secret=True).decode("ascii")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_FLAG}: {path} holds other than ASCII at byte {error.start}; write plain text") from error
    return parse_tokens(text, str(path))


def parse_tokens(text: str, source: str) -> Tokens:
    """Read tokens, a line each: ROLE[,ROLE] NAME SECRET. Lines that begin with # say nothing.

    Args:
        text: the lines.
        source: what they are from, for messages.

    Raises:
        ConfigError: if a line is no token, or two have the same secret.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    entries = [_entry(line, f"{source}, line {number}") for number, line in lines if line and line[0] != "#"]
    if not entries:
        raise ConfigError(f"{_FLAG}: {source} holds no token, so nobody could call; write ROLE[,ROLE] NAME SECRET")
    if len(entries) > _MAX_ENTRIES:
        raise ConfigError(f"{_FLAG}: {source} holds {len(entries)} tokens, {_MAX_ENTRIES} are the most; share some")
    if len({digest for digest, _ in entries}) < len(entries):
        raise ConfigError(f"{_FLAG}: two tokens of {source} have the same secret; give each its own")
    return Tokens(entries)


def secret_of(authorization: str) -> str | None:
    """Take the secret from `Bearer SECRET`; None where it is something else."""
    scheme, _, secret = authorization.partition(" ")
    return secret.strip() if scheme.lower() == _SCHEME and secret.strip() else None


def _entry(line: str, where: str) -> tuple[bytes, Holder]:
    words = line.split()
    if len(words) != 3:
        raise ConfigError(f"{_FLAG}: {where} has {len(words)} words; write ROLE[,ROLE] NAME SECRET")
    roles, name, secret = words
    for role in roles.split(","):
        if role not in ROLES:
            # The roles are not shown: a line with its words in another order would show its secret.
            raise ConfigError(f"{_FLAG}: {where} begins with a role that is none of {', '.join(ROLES)}")
    if not _MIN_SECRET <= len(secret) <= _MAX_SECRET:
        raise ConfigError(
            f"{_FLAG}: {where}: a secret has {_MIN_SECRET} to {_MAX_SECRET} characters, this one {len(secret)}; make "
            "one with `openssl rand -hex 32`"
        )
    return _digest(secret), Holder(name=name, roles=frozenset(roles.split(",")))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()
