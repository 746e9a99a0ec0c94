"""The pages of workers are for their parent alone: it gives them a secret at their start, and shows it when it asks.

They listen on loopback, where any user of the machine could ask them otherwise, past the tokens of the server.
"""

import os
import secrets
from collections.abc import Mapping

from services.environment import Environment
from services.security.access import Access
from services.security.door import Door
from services.security.tokens import parse_tokens
from services.security.watched import watch

_VARIABLE = "SAMIX_WORKER_PAGES"  # which other users cannot read of a process, unlike its arguments

Headers = Mapping[str, str]


def make_secret() -> str:
    """Make a secret for all workers of one parent."""
    return secrets.token_hex(32)


def secret_variables(secret: str) -> dict[str, str]:
    """Make the environment variables that tell a worker the secret."""
    return {_VARIABLE: secret}


def secret_headers(secret: str) -> Headers:
    """Make the headers of a question of the parent."""
    return {"Authorization": f"Bearer {secret}"}


def worker_door(environ: Environment = os.environ) -> Door:
    """Make what lets nobody but the parent see the pages of a worker, unless nobody gave it a secret."""
    secret = environ.get(_VARIABLE)
    if not secret:
        return Door()
    tokens = parse_tokens(f"read parent {secret}", _VARIABLE)
    return Door(access=Access(watch("worker pages", [], lambda: tokens)))
