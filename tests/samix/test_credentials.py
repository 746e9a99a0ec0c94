"""What a client shows, whom it believes, and what it refuses before anything is sent."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from certificates import ADMIN, MIX, READ, Site
from serving import WAIT_S, serve, tiny_mixer, wait_until

from mixer_server.app import MixerServer
from samix import connect
from samix.client.config import ClientConfig
from samix.credentials import Credentials, find_credentials, open_channel, open_tokens, read_token
from samix.errors import ConfigError, InputError, NotAuthenticated
from samix.handshakes import connection_hint, trust_problem
from samix.health import main as health
from services.doctor.servers import check_servers

PATIENT = ClientConfig(deadline_s=WAIT_S)
IMAGES = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def guarded(site: Site) -> Iterator[MixerServer]:
    with serve(tiny_mixer(), security=site.security(has_tokens=True)) as server:
        yield server


@pytest.fixture
def at_home(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with everything that the server asks for."""
    monkeypatch.setenv("SAMIX_TLS_CA", str(site.ca))
    monkeypatch.setenv("SAMIX_TOKEN_FILE", str(site.token_file(MIX)))


def test_arguments(guarded: MixerServer, site: Site):
    """`connect` takes files, as paths or text."""
    with connect(
        guarded.addresses["grpc"], tls_ca=site.ca, token_file=str(site.token_file(MIX)), config=PATIENT
    ) as remote:
        assert remote.mix(IMAGES, seed=1).images.shape == IMAGES.shape


@pytest.mark.usefixtures("at_home")
def test_environment(guarded: MixerServer):
    """What is not given is taken from the environment, also by a client that travels to another process."""
    with connect(guarded.addresses["grpc"], config=PATIENT) as remote:
        assert remote.mix(IMAGES, seed=1).images.shape == IMAGES.shape


@pytest.mark.usefixtures("at_home")
def test_arguments_count_more_than_the_environment(guarded: MixerServer, site: Site):
    """A file that is given is taken instead of the environment's."""
    with (
        connect(guarded.addresses["grpc"], token_file=site.token_file("b" * 32, "bad"), config=PATIENT) as remote,
        pytest.raises(NotAuthenticated),
    ):
        remote.mix(IMAGES, seed=1)


def test_a_token_of_the_environment(guarded: MixerServer, site: Site, monkeypatch: pytest.MonkeyPatch):
    """SAMIX_TOKEN holds the secret itself, for who has no files; it is part of no value that could be shown."""
    monkeypatch.setenv("SAMIX_TOKEN", MIX)
    with connect(guarded.addresses["grpc"], tls_ca=site.ca, config=PATIENT) as remote:
        assert remote.mix(IMAGES, seed=1).images.shape == IMAGES.shape

    assert MIX not in repr(find_credentials())
    assert MIX.encode() not in pickle.dumps(find_credentials())


def test_a_token_is_read_again(guarded: MixerServer, site: Site, tmp_path: Path):
    """A client whose token file is replaced goes on with the new token, without connecting anew."""
    path = tmp_path / "token"
    path.write_text(READ)
    with connect(guarded.addresses["grpc"], tls_ca=site.ca, token_file=path, config=PATIENT) as remote:
        with pytest.raises(Exception, match="needs role mix"):
            remote.mix(IMAGES, seed=1)
        path.write_text(f"# the trainers'\nmix trainer {MIX}\n")

        assert remote.mix(IMAGES, seed=1).images.shape == IMAGES.shape


@pytest.mark.parametrize("target", ["mixer:8001", "dns:///mixer:8001", "10.0.0.7:8001", "localhost:1,mixer:8001"])
def test_tokens_do_not_travel_in_plain_text(target: str, site: Site):
    """A token for another machine needs TLS, unless somebody says that it does not; so does one of the environment."""
    path = site.token_file(MIX)
    with pytest.raises(ConfigError, match=r"would go to .* in plain text, where others can read it; give tls_ca"):
        connect(target, token_file=path)

    config = ClientConfig(credentials=Credentials(plain_token=True))
    connect(target, token_file=path, config=config).close()
    connect(target, token_file=path, tls_ca=site.ca).close()
    with pytest.raises(ConfigError, match="the token of SAMIX_TOKEN would go to"):
        open_tokens(target.rpartition(",")[2], Credentials(), environ={"SAMIX_TOKEN": MIX})


@pytest.mark.parametrize("target", ["localhost:1", "127.0.0.1:1", "[::1]:1", "dns:///localhost:1", "unix:///tmp/x"])
def test_tokens_stay_on_this_machine(target: str, site: Site):
    """On loopback and unix sockets a token needs no TLS."""
    assert open_tokens(target, Credentials(token_file=str(site.token_file(MIX))), environ={}).metadata() == (
        ("authorization", f"Bearer {MIX}"),
    )


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"tls_cert": "a"}, "tls_cert is given without tls_key"),
        ({"tls_key": "a"}, "tls_key is given without tls_cert"),
        ({"tls_cert": "a", "tls_key": "b"}, "is shown over TLS only; give tls_ca too"),
    ],
)
def test_files_that_belong_together(values: dict[str, Any], reason: str):
    """A certificate needs its key, and both need TLS."""
    with pytest.raises(ConfigError, match=reason):
        find_credentials(environ={}, **values)


def test_files_that_are_others(site: Site, tmp_path: Path):
    """A file that is missing, or holds something else, is refused with its name when the connection is opened."""
    key = site.server()[1]
    for credentials, reason in (
        (Credentials(tls_ca="/ghost.pem"), "tls_ca: cannot read /ghost.pem"),
        (Credentials(tls_ca=str(key)), "is it the right file"),
        (replace(site.credentials(), tls_cert=str(key), tls_key=str(key)), "tls_cert: .* is it the right file"),
    ):
        with pytest.raises(ConfigError, match=reason):
            open_channel("localhost:1", credentials)
    with connect("localhost:1", token_file=tmp_path / "ghost") as remote, pytest.raises(InputError, match="ghost"):
        remote.list_mixers()


@pytest.mark.parametrize("text", ["", "# nothing\n", f"{MIX}\n{READ}\n", "mix a sécret-of-someone\n"])
def test_files_without_one_token(tmp_path: Path, text: str):
    """A token file has one line; what is in it is in no message."""
    path = tmp_path / "token"
    path.write_text(text)

    with pytest.raises(ConfigError, match=r"it holds|its secret holds") as caught:
        read_token(path)
    assert MIX not in str(caught.value)


def test_health_of_a_guarded_server(guarded: MixerServer, site: Site, capsys: pytest.CaptureFixture[str]):
    """The probe of containers speaks TLS by a flag, and needs no token."""
    assert health([guarded.addresses["grpc"], "--tls-ca", str(site.ca)]) == 0
    assert "the server is serving" in capsys.readouterr().out


def test_health_of_a_server_that_is_not_trusted(
    guarded: MixerServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Waiting for a server that will never be believed ends at once, with what is wrong."""
    other = Site(tmp_path / "others")

    assert health([guarded.addresses["grpc"], "--tls-ca", str(other.ca), "--wait", "600"]) == 1
    assert "its certificate is of another authority" in capsys.readouterr().out
    assert health([guarded.addresses["grpc"]]) == 1
    assert "does it want TLS" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        health([guarded.addresses["grpc"], "--tls-ca", str(tmp_path / "ghost.pem")])
    assert "cannot read" in capsys.readouterr().err


def test_doctor_visits_a_guarded_server(guarded: MixerServer, site: Site):
    """The doctor speaks TLS to both ports and shows a token; without a good one it says which is needed."""
    port = int(guarded.addresses["http"].rpartition(":")[2])
    target = guarded.addresses["grpc"]

    found = check_servers([target], port, credentials=site.credentials(secret=MIX))
    assert [finding.verdict for finding in found] == ["ok"] * 3
    for secret, cure in (("", "--token-file FILE, or SAMIX_TOKEN_FILE"), (ADMIN, "a token with role mix")):
        findings = check_servers([target], port, credentials=site.credentials(secret=secret))
        assert cure in findings[1].cure


def test_what_grpc_says_is_understood():
    """Texts of gRPC that tell of TLS are told from those of a server that is down."""
    refused = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused"

    assert trust_problem(refused) is None
    assert connection_hint(refused) is None
    assert connection_hint("Socket closed") is None
    assert "clocks" in str(trust_problem("CERTIFICATE_VERIFY_FAILED: certificate is not yet valid"))
    assert "renew" in str(trust_problem("CERTIFICATE_VERIFY_FAILED: certificate has expired"))


def test_a_token_of_the_environment_may_end_its_line():
    """What a file of variables puts around the secret does not count; a secret that cannot be sent is not shown."""
    tokens = open_tokens("localhost:1", Credentials(), environ={"SAMIX_TOKEN": f"{MIX}\n"})
    assert tokens.metadata() == (("authorization", f"Bearer {MIX}"),)

    with pytest.raises(ConfigError, match="SAMIX_TOKEN: its secret holds other than printable") as caught:
        open_tokens("localhost:1", Credentials(), environ={"SAMIX_TOKEN": f"{MIX}\n{READ}"})
    assert MIX not in str(caught.value)


def test_tokens_survive_a_moment_without_their_file(tmp_path: Path):
    """While a token file is being replaced, the token from before is shown."""
    path = tmp_path / "token"
    path.write_text(MIX)
    tokens = open_tokens("localhost:1", Credentials(token_file=str(path)), environ={})
    first = tokens.metadata()
    path.unlink()

    assert tokens.metadata() == first
    path.write_text(READ)
    wait_until(lambda: tokens.metadata() != first)
