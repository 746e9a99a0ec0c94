"""Names and secrets of sessions."""

import hashlib
import re

from samix.errors import BadBatch
from samix.mixer.v1 import online_pb2 as pb

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a session, and a mixer that it exports, may be called: files are called so too."""

_TOKEN_BYTES = range(16, 65)


def check_key(key: pb.SessionKey) -> None:
    """Refuse a name that no file can have, and a secret that can be guessed.

    Raises:
        BadBatch: by value; the secret is not told.
    """
    if not NAME.fullmatch(key.session):
        raise BadBatch(
            f"a session's name has up to 64 letters, digits, dots, underscores and dashes, got {key.session[:80]!r}",
            field="session",
        )
    if len(key.token) not in _TOKEN_BYTES:
        raise BadBatch(f"a token has 16 to 64 bytes, got {len(key.token)}; draw it at random", field="token")


def hash_token(token: bytes) -> str:
    """Hash a secret, so that it need not be kept."""
    return hashlib.sha256(token).hexdigest()
