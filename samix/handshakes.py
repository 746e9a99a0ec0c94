"""What is likely wrong where a connection cannot be set up, in the words of gRPC, and what to do about it.

gRPC says UNAVAILABLE for a server that is down and for one that will never be trusted; only its text tells them apart.
"""

_TLS = (
    (
        ("WRONG_VERSION_NUMBER", "record layer"),
        "it speaks plain text there, and this client TLS; leave tls_ca (SAMIX_TLS_CA) out, or is it another port?",
    ),
    (
        ("certificate has expired",),
        "its certificate has expired; renew it there (the server reads it again by itself)",
    ),
    (
        ("certificate is not yet valid",),
        "its certificate is not valid yet; compare the clocks of both machines (samix doctor)",
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED",),
        "its certificate is of another authority than those in tls_ca (SAMIX_TLS_CA); take the ca.pem that it was "
        "issued by",
    ),
    (
        ("Hostname Verification Check failed", "is not in peer certificate"),
        "its certificate is for other names than the one it was called by; call it by one of those, or issue a "
        "certificate for this name too (samix certs --names)",
    ),
    (
        ("Tls handshake failed", "Ssl handshake failed", "CERTIFICATE_REQUIRED", "BAD_CERTIFICATE"),
        "TLS could not be agreed on; compare tls_ca, tls_cert and tls_key with what the server expects",
    ),
)
_CLOSED = ("Socket closed", "recvmsg:Connection reset by peer", "Connection reset")
_SETTING_UP = ("failed to connect", "connections to all backends failing", "Failed to connect")
_CLOSED_CURE = (
    "it closed the connection at once: does it want TLS (tls_ca, SAMIX_TLS_CA) or a certificate of the client "
    "(tls_cert and tls_key), or has it no room for more connections?"
)


def trust_problem(details: str) -> str | None:
    """Say why two sides could not agree on TLS, and the cure; None where that is not what gRPC's details tell."""
    for marks, sentence in _TLS:
        if any(mark in details for mark in marks):
            return sentence
    return None


def connection_hint(details: str) -> str | None:
    """Say what may be wrong where the other side hung up while the connection was set up; None where it did not."""
    is_closed = any(mark in details for mark in _CLOSED) and any(mark in details for mark in _SETTING_UP)
    return _CLOSED_CURE if is_closed else None
