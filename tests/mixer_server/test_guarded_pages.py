"""Pages over HTTP of a server with certificates and tokens, and what keeps slow or hostile callers from others."""

import base64
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from certificates import ADMIN, MIX, READ, Site
from serving import WAIT_S, serve, wait_until

from mixer_server.app import MixerServer
from mixer_server.workers.page_secret import make_secret, secret_headers, secret_variables, worker_door
from samix.mixing.frozen import FrozenMixer
from services.http import Page, PageServer, serve_pages
from services.security.config import SecurityConfig
from services.security.security import open_security

HOST = "127.0.0.1"
PAGES = {"/": lambda: Page("status"), "/livez": lambda: Page("ok"), "/readyz": lambda: Page("ok")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def guarded(site: Site, mixer: FrozenMixer) -> Iterator[MixerServer]:
    """A server with TLS and tokens, which shows pictures."""
    with serve(mixer, security=site.security(has_tokens=True), gallery=True) as server:
        yield server


@pytest.fixture
def plain() -> Iterator[PageServer]:
    with closing(serve_pages(PAGES, HOST, 0)) as server:
        yield server


def trusting(site: Site, *, has_certificate: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(site.ca))
    if has_certificate:
        context.load_cert_chain(*site.client())
    return context


def fetch(
    address: str, path: str, headers: dict[str, str] | None = None, *, tls: ssl.SSLContext | None = None
) -> http.client.HTTPResponse:
    host, _, port = address.rpartition(":")
    if tls is None:
        connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_S)
    else:
        connection = http.client.HTTPSConnection(host, int(port), timeout=WAIT_S, context=tls)
    with closing(connection):
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        response.body = response.read().decode(errors="replace")  # type: ignore[attr-defined]
        return response


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics", "/gallery/1.jpg", "/v2"])
def test_pages_need_a_token(guarded: MixerServer, site: Site, path: str):
    """Without a token there is none of the pages; browsers are told how to ask their user for one."""
    tls = trusting(site)

    answer = fetch(guarded.addresses["http"], path, tls=tls)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
    for secret, status in ((MIX, 403), ("a-guess-of-somebody", 401)):
        assert fetch(guarded.addresses["http"], path, bearer(secret), tls=tls).status == status
    for secret in (READ, ADMIN):
        assert fetch(guarded.addresses["http"], path, bearer(secret), tls=tls).status in (200, 404)


def test_a_browser_shows_the_token_as_a_password(guarded: MixerServer, site: Site):
    """What a user types as a password counts as the token, whatever name goes with it."""
    shown = base64.b64encode(f"anybody:{READ}".encode()).decode()

    assert fetch(guarded.addresses["http"], "/", {"Authorization": f"Basic {shown}"}, tls=trusting(site)).status == 200


@pytest.mark.parametrize("authorization", ["Basic !!", "Basic " + base64.b64encode(b"\xff").decode(), "Bearer", "x"])
def test_broken_authorizations(guarded: MixerServer, site: Site, authorization: str):
    """What is no authorization counts as none."""
    headers = {"Authorization": authorization}

    assert fetch(guarded.addresses["http"], "/", headers, tls=trusting(site)).status == 401


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v2/health/ready"])
def test_probes_need_nothing(guarded: MixerServer, site: Site, path: str):
    """Probes are answered without a token, by whatever name they ask."""
    answer = fetch(guarded.addresses["http"], path, {"Host": "probe.example.org"}, tls=trusting(site))

    assert answer.status == 200


def test_the_metrics_port_is_guarded_too(guarded: MixerServer, site: Site):
    """Prometheus needs TLS and a token with role read."""
    tls = trusting(site)

    assert fetch(guarded.addresses["metrics"], "/metrics", tls=tls).status == 401
    assert fetch(guarded.addresses["metrics"], "/metrics", bearer(READ), tls=tls).status == 200


def test_secrets_are_shown_nowhere(guarded: MixerServer, site: Site, caplog: pytest.LogCaptureFixture):
    """No page and no line of the log holds a token, wrong ones included."""
    guess = "guess-of-somebody-else"
    with caplog.at_level("DEBUG"):
        tls = trusting(site)
        fetch(guarded.addresses["http"], "/", bearer(guess), tls=tls)
        texts = [fetch(guarded.addresses["http"], path, bearer(READ), tls=tls) for path in ("/", "/metrics")]

    shown = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    shown += "".join(answer.body for answer in texts)  # type: ignore[attr-defined]
    assert not [secret for secret in (guess, READ, MIX, ADMIN) if secret in shown]
    assert READ not in repr(guarded.config)


def test_plain_text_on_the_tls_port(guarded: MixerServer):
    """Who asks a TLS port in plain text is told so."""
    answer = fetch(guarded.addresses["http"], "/")

    assert answer.status == 400
    assert "this port speaks TLS; ask https://" in answer.body  # type: ignore[attr-defined]


def test_tls_on_the_plain_port(plain: PageServer, site: Site):
    """A TLS handshake with a plain port ends, and the next caller is answered."""
    with pytest.raises(ssl.SSLError):
        fetch(f"localhost:{plain.port}", "/", tls=trusting(site))

    assert fetch(f"{HOST}:{plain.port}", "/").status == 200


def test_mutual_tls(site: Site, tmp_path: Path):
    """With an authority of clients, pages are for those who show a certificate; probes have none."""
    strangers = Site(tmp_path / "strangers")
    door = open_security(site.security(is_mutual=True)).door()
    with closing(serve_pages(PAGES, HOST, 0, door=door)) as server:
        address = f"localhost:{server.port}"
        assert fetch(address, "/", tls=trusting(site, has_certificate=True)).status == 200
        assert fetch(address, "/", tls=trusting(site)).status == 403
        assert fetch(address, "/livez", tls=trusting(site)).status == 200
        stranger = trusting(site)
        stranger.load_cert_chain(*strangers.client())
        with pytest.raises((ssl.SSLError, ConnectionError)):
            fetch(address, "/", tls=stranger)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("mixer:8000", 200),
        ("page.localhost", 200),
        ("mixer.example.org", 200),
        ("MIXER.example.org.:8000", 200),
        ("rebound.example.com", 421),
        ("127.0.0.1.example.com", 421),
        ("127.0.0.1@example.com", 421),
        ("[::1].example.com", 421),
        ("a:b", 200),
    ],
)
def test_names(host: str, status: int):
    """A page is given to who asks by an address, a name without dots or one that was configured; not to a web site
    that lets its own name point here."""
    door = open_security(SecurityConfig(http_hosts=("mixer.example.org",))).door()
    with closing(serve_pages(PAGES, HOST, 0, door=door)) as server:
        assert fetch(f"{HOST}:{server.port}", "/", {"Host": host}).status == status


def test_silent_connections_do_not_keep_probes_out(plain: PageServer):
    """However many connections somebody opens and says nothing on, a probe from the same address is answered."""
    silent = [socket.create_connection((HOST, plain.port), timeout=WAIT_S) for _ in range(100)]
    try:
        answers = [fetch(f"{HOST}:{plain.port}", path).status for path in ("/livez", "/readyz") for _ in range(5)]
    finally:
        for connection in silent:
            connection.close()

    assert answers == [200] * 10


def test_slow_handshakes_do_not_keep_probes_out(site: Site):
    """Callers that begin TLS and do not go on are cut off after their time, and others are answered meanwhile."""
    door = open_security(site.security()).door()
    with closing(serve_pages(PAGES, HOST, 0, max_connection_s=0.5, door=door)) as server:
        slow = [socket.create_connection((HOST, server.port), timeout=WAIT_S) for _ in range(20)]
        for connection in slow:
            connection.send(b"\x16\x03\x01")
        try:
            wait_until(lambda: is_answered(f"localhost:{server.port}", tls=trusting(site)))
            for connection in slow:
                assert rest(connection) == b""
        finally:
            for connection in slow:
                connection.close()


def rest(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1)
    except ConnectionError:
        return b""


def test_slow_headers_are_cut_off():
    """Who sends a header now and then has a fixed time, too."""
    with closing(serve_pages(PAGES, HOST, 0, max_connection_s=0.5)) as server:
        with socket.create_connection((HOST, server.port), timeout=WAIT_S) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\n")
            while sent(slow, b"x: y\r\n"):
                threading.Event().wait(0.01)
        wait_until(lambda: is_answered(f"{HOST}:{server.port}"))


def is_answered(address: str, tls: ssl.SSLContext | None = None) -> bool:
    """Whether a probe is; on a slow machine the short time that connections have there may end before."""
    try:
        return fetch(address, "/livez", tls=tls).status == 200
    except (OSError, http.client.HTTPException):
        return False


def sent(connection: socket.socket, data: bytes) -> bool:
    try:
        connection.sendall(data)
    except ConnectionError:
        return False
    return True


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 20_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 101 + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: %s\r\n" % (i, b"y" * 200) for i in range(90)) + b"\r\n", b"431"),
        (b"\xff\xfe\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\n\r\n", b"501"),
    ],
)
def test_long_and_odd_questions(plain: PageServer, head: bytes, status: bytes):
    """A question that is too long, or none, is answered with its status, and not read to its end."""
    with socket.create_connection((HOST, plain.port), timeout=WAIT_S) as connection:
        connection.sendall(head)
        answer = connection.recv(1 << 16)

    assert status in answer.partition(b"\r\n")[0] or answer.startswith(b"<!DOCTYPE")
    assert status in answer


def test_new_certificates_are_taken_over(tmp_path: Path):
    """Who connects after the files have changed sees the new certificate; broken ones change nothing."""
    site, later = Site(tmp_path / "site"), Site(tmp_path / "later")
    config = site.security()
    assert config.tls_cert is not None
    assert config.tls_key is not None
    security = open_security(config)
    with closing(serve_pages(PAGES, HOST, 0, door=security.door())) as server:
        address = f"localhost:{server.port}"
        config.tls_key.write_text("this is no key")
        assert security.certificates is not None
        certificates = security.certificates
        wait_until(lambda: certificates.is_stale)
        assert fetch(address, "/livez", tls=trusting(site)).status == 200
        for path, new in zip((config.tls_cert, config.tls_key), later.server(), strict=True):
            new.replace(path)
        wait_until(lambda: not certificates.is_stale)

        assert fetch(address, "/livez", tls=trusting(later)).status == 200
        with pytest.raises(ssl.SSLError):
            fetch(address, "/livez", tls=trusting(site))


def test_pages_of_workers_are_for_their_parent():
    """A worker that was given a secret shows its pages to who has it, and to no other user of the machine."""
    secret = make_secret()
    with closing(serve_pages(PAGES, HOST, 0, door=worker_door(secret_variables(secret)))) as server:
        address = f"{HOST}:{server.port}"
        assert fetch(address, "/").status == 401
        assert fetch(address, "/", bearer(make_secret())).status == 401
        assert fetch(address, "/", dict(secret_headers(secret))).status == 200
