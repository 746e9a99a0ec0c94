"""Whether who asks may: from what came with a call to nothing, or to the reason why not."""

from collections.abc import Callable
from dataclasses import dataclass

from services.security.tokens import Holder, Role, Tokens, secret_of
from services.security.watched import Watched


@dataclass(frozen=True, kw_only=True, slots=True)
class Denial:
    """Why somebody may not."""

    is_known: bool
    """Whether the token is one of ours, and only its roles do not suffice."""
    sentence: str
    """For whoever asked, with the cure; holds no secret."""
    name: str = ""
    """Whose token it is, if it is one of ours."""


class Access:
    """Compares tokens with those of the server. Safe for threads."""

    def __init__(self, tokens: Watched[Tokens]) -> None:
        self._tokens = tokens

    def judge(self, authorization: str, roles: frozenset[Role] | None, subject: str) -> Denial | None:
        """Say why not; None if the holder may.

        Args:
            authorization: as it came: `Bearer SECRET`, or nothing.
            roles: any of them suffices; None takes every token.
            subject: what is asked for, for whoever has a token without the role.
        """
        return self.judge_secret(secret_of(authorization), roles, subject)

    def judge_secret(self, secret: str | None, roles: frozenset[Role] | None, subject: str) -> Denial | None:
        """Say why not, of a secret that was taken from what came; see `judge`."""
        if secret is None:
            return Denial(
                is_known=False,
                sentence="this server needs a token, and none came; give the client one (token_file, SAMIX_TOKEN_FILE)",
            )
        holder = self._tokens.value.find(secret)
        if holder is None:
            return Denial(
                is_known=False, sentence="the token is none of this server's; was it replaced, or is it another's?"
            )
        return _lacking(holder, roles, subject)


def open_access(tokens: Watched[Tokens] | None) -> Access | None:
    """Make what compares tokens, where a server has any."""
    return None if tokens is None else Access(tokens)


def _lacking(holder: Holder, roles: frozenset[Role] | None, subject: str) -> Denial | None:
    if roles is None or roles & holder.roles:
        return None
    return Denial(
        is_known=True,
        sentence=(
            f"{subject} needs role {' or '.join(sorted(roles))}, the token of {holder.name!r} has "
            f"{', '.join(sorted(holder.roles))}"
        ),
        name=holder.name,
    )


OnDenial = Callable[[str, Denial], None]
"""Hears the name of a method, or nothing where there is no such method, and why a call of it was refused."""
