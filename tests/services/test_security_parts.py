"""Parts of the guards: tokens, watched files, flags, and certificates that can and cannot be used."""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from certificates import Site, now
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from samix.errors import ConfigError, InputError
from services.security.access import Access
from services.security.authority import issue_server, make_authority
from services.security.certificates import GrpcChanges, load_certificates
from services.security.certs_cli import CertsConfig, main, write_certificates
from services.security.config import SecurityConfig
from services.security.door import Door, host_of
from services.security.security import open_security
from services.security.tokens import ROLES, load_tokens, parse_tokens, secret_of
from services.security.watched import watch

SECRET = "a-secret-of-enough-characters"
PRINTABLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=16, max_size=64)


@dataclass
class Hand:
    """A clock that is moved by hand."""

    time_s: float = 0.0

    def __call__(self) -> float:
        return self.time_s


@given(st.lists(PRINTABLE, min_size=1, max_size=20, unique=True), st.sampled_from(ROLES))
def test_tokens_are_found(secrets: list[str], role: str):
    """Each secret of a file is found with its own holder and roles; others are nobody's."""
    lines = [f"{role} holder-{index} {secret}" for index, secret in enumerate(secrets)]
    tokens = parse_tokens("\n".join(lines), "here")

    for index, secret in enumerate(secrets):
        holder = tokens.find(secret)
        assert holder is not None
        assert (holder.name, holder.roles) == (f"holder-{index}", {role})
    assert tokens.find(secrets[0] + "x" * 70) is None
    assert tokens.find("") is None


@given(st.text(max_size=200))
def test_any_text_is_tokens_or_refused(text: str):
    """Whatever a file holds, it is taken or refused with a sentence."""
    with suppress(ConfigError):
        assert parse_tokens(text, "here").find(SECRET) is None or SECRET in text


@given(st.text(max_size=80))
def test_any_header_is_read(text: str):
    """Whatever comes as a header, reading it ends with a secret or none, a name or none."""
    Door(access=Access(watch("tokens", [], lambda: parse_tokens(f"read r {SECRET}", "here")))).judge(
        "/", {"Authorization": text, "Host": text}, has_certificate=False
    )
    assert secret_of(f"bearer {SECRET}") == SECRET
    assert isinstance(host_of(text), str)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"mix trainer {SECRET} more", "line 1 has 4 words; write ROLE"),
        (f"mix {SECRET}", "line 1 has 2 words"),
        (f"{SECRET} mix trainer", "begins with a role that is none of mix, online, read, admin"),
        (f"mix,root trainer {SECRET}", "begins with a role that is none of"),
        ("mix trainer short", "a secret has 16 to 512 characters, this one 5; make one with `openssl rand -hex 32`"),
        (f"mix a {SECRET}\nmix b {SECRET}", "two tokens of here have the same secret"),
        ("# nobody yet\n\n", "here holds no token, so nobody could call"),
    ],
)
def test_lines_that_are_no_tokens(line: str, reason: str):
    """A line that is no token is refused with its number and the cure, and without any secret."""
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_tokens(line, "here")

    assert SECRET not in str(caught.value)


def test_files_of_others_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A file of secrets that others can read is used, and the log says how to mend it."""
    path = tmp_path / "tokens"
    path.write_text(f"mix trainer {SECRET}\n")
    path.chmod(0o644)

    assert load_tokens(path).find(SECRET)
    assert caplog.messages == ["secret_file_open_to_others"]
    path.chmod(0o600)
    caplog.clear()
    load_tokens(path)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "cannot read .* check path and permissions"),  # noqa: ARG005
        (lambda path: path.mkdir(), "cannot read"),
        (lambda path: path.write_bytes(b"mix a \xff"), "other than ASCII at byte 6"),
        (lambda path: path.write_bytes(b"#" * (1 << 21)), "larger than 1048576 bytes"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, make: Callable[[Path], object], reason: str):
    """A file that is missing, a folder, no text or huge is refused."""
    make(tmp_path / "tokens")

    with pytest.raises(ConfigError, match=reason):
        load_tokens(tmp_path / "tokens")


@dataclass
class Loads:
    """Counts how often a file is read."""

    path: Path
    count: int = 0
    seen: list[str] = field(default_factory=list)

    def __call__(self) -> str:
        self.count += 1
        text = self.path.read_text()
        if text == "broken":
            raise InputError("this is broken")
        return text


def test_watched_files(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A file is read again after it changed, once for each change; what cannot be used changes nothing but the log."""
    path, clock = tmp_path / "file", Hand()
    path.write_text("one")
    loads = Loads(path)
    watched = watch("words", [path], loads, clock=clock)

    path.write_text("two!")
    assert watched.value == "one"
    clock.time_s = 2.0
    assert watched.value == "two!"
    clock.time_s = 4.0
    assert watched.value == "two!"
    assert loads.count == 2
    for number, (text, value) in enumerate([("broken", "two!"), ("three", "three")]):
        path.write_text(text)
        clock.time_s += 2.0
        assert watched.is_stale is (number == 0)
        assert watched.value == value
    path.unlink()
    clock.time_s += 2.0
    assert watched.value == "three"
    assert watched.is_stale
    assert caplog.messages == ["security_files_refused", "security_files_refused"]


def test_a_mended_file_needs_no_new_mark(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """What could not be read is tried until it can be, though the file looks as before; the log says so once."""
    path, clock, obstacles = tmp_path / "file", Hand(), ["no permission"] * 3

    def load() -> str:
        if path.read_text() == "two!" and obstacles:
            raise InputError(obstacles.pop())
        return path.read_text()

    path.write_text("one")
    watched = watch("words", [path], load, clock=clock)
    path.write_text("two!")
    values = []
    for _ in range(5):
        clock.time_s += 2.0
        values.append(watched.value)

    assert values == ["one", "one", "one", "two!", "two!"]
    assert caplog.messages == ["security_files_refused"]


def test_flags_that_belong_together(tmp_path: Path):
    """A certificate without its key, an authority of clients without TLS, and limits of nothing are refused."""
    file = tmp_path / "x.pem"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tls_cert": file}, "security.tls-cert is given without security.tls-key"),
        ({"tls_key": file}, "security.tls-key is given without security.tls-cert"),
        ({"client_ca": file}, "which only TLS can"),
        ({"max_connections": 0}, "max-connections must lie in 1"),
        ({"max_header_kib": 5000}, "max-header-kib must lie in 1..1024, got 5000"),
        ({"connection_age_s": float("inf")}, "connection-age-s must be positive"),
        ({"handshake_timeout_s": 0.0}, "handshake-timeout-s must be positive"),
        ({"http_hosts": ("a b",)}, "got 'a b'"),
    ]
    for changes, reason in cases:
        with pytest.raises(ConfigError, match=reason):
            SecurityConfig(**changes)


def test_certificates_are_read(tmp_path: Path):
    """A chain, its key and an authority of clients are read, and it is told when they end."""
    site = Site(tmp_path)

    read = load_certificates(site.security(is_mutual=True))

    assert abs(read.expiry_s - now().timestamp() - 86400) < 60
    assert read.client_ca_expiry_s is not None
    assert read.client_ca_expiry_s > read.expiry_s


def test_grpc_is_told_of_changes_alone(tmp_path: Path):
    """Certificates are answered once for each change: what is answered gRPC takes over, which is not safe all the
    time."""
    first, second = Site(tmp_path / "first"), Site(tmp_path / "second")
    config, clock = first.security(), Hand()
    assert config.tls_cert is not None
    assert config.tls_key is not None
    watched = watch("certificates", [config.tls_cert, config.tls_key], lambda: load_certificates(config), clock=clock)
    changes = GrpcChanges(watched)

    assert [changes() for _ in range(3)] == [None] * 3
    for path, new in zip((config.tls_cert, config.tls_key), second.server(), strict=True):
        new.replace(path)
    clock.time_s = 2.0
    answers = [changes() for _ in range(3)]

    assert answers == [watched.value.grpc_configuration, None, None]


def test_certificates_that_cannot_be_used(tmp_path: Path):
    """Expired certificates, keys of others or with a passphrase, and other files are refused, each with its cure."""
    site, others = Site(tmp_path / "site"), Site(tmp_path / "others")
    certificate, key = site.server()
    expired, expired_key = site.write("old", issue_server(site.authority, ["x"], now(), timedelta(hours=-2)))
    _, other_key = others.server()
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        site.authority.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"pass"),
        )
    )
    for cert, secret, reason in (
        (expired, expired_key, "has expired on .* renew it"),
        (certificate, other_key, "is not the key of the first certificate"),
        (certificate, locked, "has a passphrase; store it without"),
        (certificate, certificate, "holds no private key in PEM"),
        (key, key, "holds no certificate in PEM"),
        (tmp_path / "ghost.pem", key, "cannot read .*ghost.pem"),
    ):
        with pytest.raises(ConfigError, match=reason):
            load_certificates(SecurityConfig(tls_cert=cert, tls_key=secret))


def test_open_servers_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A server that strangers can reach and use says so in its log, as one whose tokens travel in plain text."""
    site = Site(tmp_path)
    for config, host, told in (
        (SecurityConfig(), "127.0.0.1", []),
        (SecurityConfig(), "0.0.0.0", ["open_to_all"]),
        (SecurityConfig(tokens=site.write_tokens()), "0.0.0.0", ["tokens_in_plain_text"]),
        (site.security(has_tokens=True), "0.0.0.0", []),
    ):
        caplog.clear()
        open_security(config).warn_if_open(host)
        assert caplog.messages == told


def test_made_certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The verb writes an authority, a server and a client that it certified, keys for their owner alone."""
    out = tmp_path / "pki"
    assert main(["--out", str(out), "--names", "localhost,mixer", "10.0.0.7", "--days", "7"]) in (None, 0)

    assert {path.name for path in out.iterdir()} == {
        f"{name}.{end}" for name in ("ca", "server", "client") for end in ("pem", "key")
    }
    for path in out.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server = x509.load_pem_x509_certificate((out / "server.pem").read_bytes())
    server.verify_directly_issued_by(x509.load_pem_x509_certificate((out / "ca.pem").read_bytes()))
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "mixer"]
    assert "SAMIX_TLS_CA" in capsys.readouterr().out
    security = SecurityConfig(tls_cert=out / "server.pem", tls_key=out / "server.key", client_ca=out / "ca.pem")
    assert load_certificates(security).client_ca_expiry_s


def test_files_are_not_overwritten(tmp_path: Path):
    """Files that are there stay, unless the verb is told to renew or to replace them; renewing keeps the authority."""
    config = CertsConfig(out=tmp_path, names=("mixer",))
    write_certificates(config, now())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises(ConfigError, match="is there already; give --renew, --overwrite or another --out"):
        write_certificates(config, now())
    write_certificates(CertsConfig(out=tmp_path, renew=True), now())
    renewed = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_certificates(CertsConfig(out=tmp_path, overwrite=True), now())

    assert {name for name in before if renewed[name] == before[name]} == {"ca.pem", "ca.key"}
    certificate = x509.load_pem_x509_certificate(renewed["server.pem"])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["mixer"]
    assert (tmp_path / "ca.pem").read_bytes() != before["ca.pem"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"days": 0}, "days must lie in 1..3650, got 0"),
        ({"client": ""}, "client must have 1 to 64 characters, got ''"),
        ({"renew": True, "overwrite": True}, "give one of them"),
        ({"names": ("https://mixer",)}, "a DNS name or an address without a port, got 'https://mixer'"),
        ({"renew": True}, "without --renew a new authority is made"),
    ],
)
def test_wrong_wishes(tmp_path: Path, changes: dict, reason: str):
    """Wishes that cannot be met are refused with the value and the cure."""
    with pytest.raises(InputError, match=reason):
        write_certificates(CertsConfig(out=tmp_path / "new", **changes), now())


def test_an_authority_cannot_make_others():
    """What an authority issues is good for itself, and not to issue more."""
    authority = make_authority("somebody", now())
    server = issue_server(authority, ["x"], now(), timedelta(days=1))

    constraints = server.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca
    assert os.fsencode(server.key_pem.decode()).startswith(b"-----BEGIN PRIVATE KEY-----")
