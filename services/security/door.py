"""Who may see the pages over HTTP: asked by a name that is ours, with a certificate and a token where those are asked.

A web site can make a browser ask us under the site's own name, which it lets point here for a moment (DNS rebinding),
and then read the answer as its own. So what asks for a stranger's name gets nothing.
"""

import base64
import binascii
import ipaddress
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

from services.security.access import Access
from services.security.tokens import Role, secret_of

PROBES = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Open to all: they say whether a server lives and takes work, and nothing else."""
ANY_NAME = "*"
_READERS: frozenset[Role] = frozenset({"read", "admin"})
_LOGIN = {"WWW-Authenticate": 'Basic realm="samix: any name, and a token as the password", charset="UTF-8"'}


class Headers(Protocol):
    """Headers of a question, by names whose case does not matter."""

    def get(self, name: str, /) -> str | None:
        """Return the first of a name; None if there is none."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """What somebody gets instead of a page."""

    status: HTTPStatus
    """Of the answer."""
    sentence: str
    """For whoever asked, with the cure."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the answer, beside those of every page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Door:
    """Decides about one question for a page; by itself it asks for a good name only."""

    hosts: frozenset[str] = frozenset()
    """Names that pages are asked for by, beside addresses and names without a dot; `*` takes any."""
    access: Access | None = None
    """Knows the tokens; None asks for none."""
    needs_certificate: bool = False
    """Whether callers must have shown one; that it is good was checked before."""
    tls: Callable[[], ssl.SSLContext] | None = None
    """Says what a connection is encrypted with, for each anew; None leaves all as they are."""

    def judge(self, path: str, headers: Headers, *, has_certificate: bool) -> Refused | None:
        """Say why somebody gets no page; None if he gets it.

        Args:
            path: of the page.
            headers: of the question.
            has_certificate: whether the caller has shown one.
        """
        if path in PROBES:
            return None
        host = host_of(headers.get("Host") or "")
        if not self._is_ours(host):
            sentence = f"this server does not go by the name {host[:253]!r}; start it with --security.http-hosts NAME"
            return Refused(status=HTTPStatus.MISDIRECTED_REQUEST, sentence=sentence)
        if self.needs_certificate and not has_certificate:
            sentence = "this page needs a client's certificate of the right authority; show one"
            return Refused(status=HTTPStatus.FORBIDDEN, sentence=sentence)
        return self._judge_token(headers.get("Authorization") or "")

    def _judge_token(self, authorization: str) -> Refused | None:
        if self.access is None:
            return None
        secret = secret_of(authorization) or _password_of(authorization)
        denial = self.access.judge_secret(secret, _READERS, "this page")
        if denial is None:
            return None
        if denial.is_known:
            return Refused(status=HTTPStatus.FORBIDDEN, sentence=denial.sentence)
        return Refused(status=HTTPStatus.UNAUTHORIZED, sentence=denial.sentence, headers=_LOGIN)

    def _is_ours(self, host: str) -> bool:
        name = host.lower().rstrip(".")
        # Only programs leave the name out. One without a dot nobody can have on the Internet, containers do.
        if not name or "." not in name or ANY_NAME in self.hosts or name in self.hosts:
            return ":" not in name or _is_address(name)
        return _is_address(name) or name.endswith(".localhost") or name == socket.gethostname().lower()


def host_of(header: str) -> str:
    """Take the name or address from a `Host` header: without the port, and the brackets of an address."""
    if header.startswith("["):
        name, _, port = header[1:].partition("]")
        return header if port.strip(":").strip("0123456789") else name
    return header.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _password_of(authorization: str) -> str | None:
    """Take the password from `Basic`, which a browser asks its user for; None where it is something else."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2] or None
    except (binascii.Error, UnicodeDecodeError):
        return None
