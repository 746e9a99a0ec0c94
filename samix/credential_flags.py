"""Flags of programs without torch for what they show a server: --tls-ca, --tls-cert, --tls-key, --token-file."""

import argparse

from samix.credentials import SYSTEM, TLS_CA, TLS_CERT, TLS_KEY, TOKEN_FILE, Credentials, find_credentials

_FLAGS = (
    ("--tls-ca", f"the server's authority, PEM, or {SYSTEM!r}; speaks TLS (else {TLS_CA})"),
    ("--tls-cert", f"a certificate of this client, for servers that ask for one (else {TLS_CERT})"),
    ("--tls-key", f"its private key (else {TLS_KEY})"),
    ("--token-file", f"a token (else {TOKEN_FILE})"),
)


def add_credential_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a program."""
    group = parser.add_argument_group("for a guarded server")
    for flag, text in _FLAGS:
        group.add_argument(flag, default="", metavar="FILE", help=text)


def credentials_of(args: argparse.Namespace) -> Credentials:
    """Take what the flags say, and the environment where they say nothing.

    Raises:
        ConfigError: for a certificate without its key, for example.
    """
    return find_credentials(
        tls_ca=args.tls_ca, tls_cert=args.tls_cert, tls_key=args.tls_key, token_file=args.token_file
    )
