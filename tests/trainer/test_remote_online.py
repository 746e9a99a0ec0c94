"""Policy remote-online: a server trains the mixer, and the run goes on whatever becomes of that server."""

import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
from learning import NUM_CLASSES
from online_sessions import pipeline, settings_of, training_server
from serving import WAIT_S, sample, serve, wait_until
from test_batch_mixing import Eager
from training import ALONE, SIDE, events_of, make_batch, summary_of

from mixer_server.app import MixerServer
from samix.client.channel import Connection
from samix.client.config import ClientConfig
from samix.client.online.session import OnlineSession, SessionKey
from samix.cotraining.settings import SessionSettings
from samix.errors import ConfigError
from samix.mixing.artefact import load_mixer
from samix.mixing.policies import no_mixing
from trainer.cli import main
from trainer.fallback import BudgetSpent, FailureBudget
from trainer.metrics import TrainerMetrics
from trainer.sessions.config import CoTrainingSessionConfig
from trainer.sessions.keys import read_key, write_key
from trainer.sessions.mixing import Drawing, MixedOnline, SessionMixing
from trainer.sessions.opening import SessionOpener

QUICK = ["--epochs", "1", "--device", "cpu", "--metrics.linger-s", "0", "--metrics.port", "0"]
REMOTE = ["--mixing.policy", "remote-online", "--mixing.deadline-s", "60"]
LOCK_STEP = ["--mixing.session.weights-every", "1", "--mixing.session.max-staleness", "0"]
EXACT = [*LOCK_STEP, "--mixing.session.weights", "fp32", "--mixing.session.logits", "float32"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixerServer]:
    with training_server(tmp_path_factory.mktemp("online")) as running:
        yield running


def train(*flags: str) -> int:
    return main(["digits_cpu", *QUICK, *flags])


def test_a_run_learns_what_it_learns_in_one_process(data: list[str], server: MixerServer, tmp_path: Path):
    """In lock-step the classifier's losses are those of policy `online`, and a mixer is left at the end."""
    endpoint = ["--mixing.endpoint", server.addresses["grpc"]]
    rate = ["--optimiser.lr", "0.01", "--log-every", "1"]

    assert train(*data, "--mixing.policy", "online", *rate, "--out", str(tmp_path / "here")) == 0
    assert train(*data, *REMOTE, *endpoint, *EXACT, *rate, "--out", str(tmp_path / "there")) == 0

    here, there = events_of(tmp_path / "here", "step"), events_of(tmp_path / "there", "step")
    assert [step["loss"] for step in there] == pytest.approx([step["loss"] for step in here], abs=2e-3)
    summary = summary_of(tmp_path / "there")
    assert summary.items() >= {"policy": "remote-online", "steps": 3, "fallbacks": 0}.items()
    mixer = load_mixer(tmp_path / "there" / "mixer.safetensors")
    assert (mixer.name, mixer.spec.image_size) == ("there", SIDE)
    assert not (tmp_path / "there" / "session.json").exists()
    assert sample(server, "mixer_online_sessions") == 0


def test_what_a_session_cannot_do_is_said_at_the_start(
    data: list[str], server: MixerServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Settings that a session cannot follow, and servers that train nothing, end the run before its first step."""
    endpoint = ["--mixing.endpoint", server.addresses["grpc"], "--out", str(tmp_path)]

    assert train(*data, *REMOTE, *endpoint, "--accumulate", "2") == 2
    assert "--accumulate" in capsys.readouterr().err
    assert train(*data, *REMOTE, "--mixing.endpoint", "here:1,there:1", "--out", str(tmp_path)) == 2
    assert "name one" in capsys.readouterr().err
    with serve() as plain:
        assert train(*data, *REMOTE, "--mixing.endpoint", plain.addresses["grpc"], "--out", str(tmp_path)) == 2
    assert "--online.memory-mib" in capsys.readouterr().err
    assert train(*data, *REMOTE, "--mixing.endpoint", "localhost:1", "--mixing.startup-timeout-s", "0.2") == 2
    assert "--online.memory-mib" in capsys.readouterr().err


def test_the_key_is_for_its_user_alone(tmp_path: Path, server: MixerServer):
    """The key of a session is kept in the run's folder, readable by nobody else; a damaged one is refused."""
    key = SessionKey.draw("a run/with: signs")

    write_key(tmp_path, key)

    assert read_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / "session.json").stat().st_mode) == 0o600
    (tmp_path / "session.json").write_text("{}")
    with pytest.raises(ConfigError, match="delete it"):
        read_key(tmp_path)


def test_settings_are_checked():
    """Steps between weights, and staleness, are bounded."""
    with pytest.raises(ConfigError, match="weights_every"):
        CoTrainingSessionConfig(weights_every=0)
    with pytest.raises(ConfigError, match="max_staleness"):
        CoTrainingSessionConfig(max_staleness=-1)


class Rank:
    """A `SessionMixing` of one rank, with what it reports to."""

    def __init__(self, address: str, settings: SessionSettings, folder: Path, *, budget: int = 100) -> None:
        self.metrics = TrainerMetrics(0)
        self.classifier = pipeline("paper").classifier
        self.connection = Connection(address, ClientConfig())
        self.mixing = SessionMixing(
            SessionOpener(self.connection, settings, world=ALONE, folder=folder, startup_timeout_s=WAIT_S),
            classifier=self.classifier,
            fallback=no_mixing(),
            drawing=Drawing(config=settings.learning.online, run_seed=0, rank=0, steps_per_epoch=40),
            depth=4,
            deadline_s=WAIT_S,
            breaker=Eager(),
            budget=FailureBudget(budget, "the server"),
            device=torch.device("cpu"),
            metrics=self.metrics,
            weights="float32",
        )

    def steps(self, count: int) -> Iterator[MixedOnline]:
        """Mix batches of an epoch and send weights after each, as the loop does."""
        for item in self.mixing.epoch(0, (make_batch(4, value=number % NUM_CLASSES) for number in range(count))):
            yield item
            self.mixing.updated(item.step)

    def wait_for_server(self) -> None:
        """Wait until gRPC has connected again: steps that fall back meanwhile take no time, and the run would end."""
        grpc.channel_ready_future(self.connection.line().channel).result(WAIT_S)

    @property
    def fallbacks(self) -> float:
        return self.metrics.value("mixer_client_fallback_total")


@pytest.fixture(scope="module")
def settings() -> SessionSettings:
    return settings_of(pipeline("paper"))


def test_one_batch_in_is_one_out(server: MixerServer, settings: SessionSettings, tmp_path: Path):
    """Batches come in order, mixed by the session, and rank 0 sends weights after each step."""
    rank = Rank(server.addresses["grpc"], settings, tmp_path)

    items = list(rank.steps(6))
    rank.mixing.close()

    assert [item.step for item in items] == list(range(6))
    assert [item.mixed.labels_a[0].item() for item in items if item.mixed.labels_a is not None] == [
        number % NUM_CLASSES for number in range(6)
    ]
    assert rank.fallbacks == 0
    assert items[-1].figures["mixer_loss"] > 0
    assert rank.metrics.value("mixer_client_weights_sent_total") >= 6


def test_a_server_that_is_gone_is_replaced_batch_by_batch(settings: SessionSettings, tmp_path: Path):
    """While no server is there the fallback mixes; with one that has the checkpoint the run joins again by itself."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    rank = Rank(f"127.0.0.1:{port}", settings, tmp_path)
    steps = rank.steps(40)
    with training_server(tmp_path / "online", grpc_port=port):
        before = [next(steps) for _ in range(3)]
    away = [next(steps) for _ in range(4)]
    lost = rank.fallbacks
    with training_server(tmp_path / "online", grpc_port=port) as server:
        rank.wait_for_server()
        while rank.metrics.value("mixer_client_session_rejoins_total") == 0 or rank.fallbacks > lost:
            lost = rank.fallbacks
            next(steps)
        assert sample(server, "mixer_online_restored_total") == 1
        rank.mixing.close()

    assert [item.step for item in (*before, *away)] == list(range(7))
    assert lost >= 3


def test_a_session_that_is_lost_is_begun_anew(settings: SessionSettings, tmp_path: Path):
    """Where the server has neither session nor checkpoint, rank 0 begins it again with the weights of today."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    rank = Rank(f"127.0.0.1:{port}", settings, tmp_path)
    steps = rank.steps(40)
    with training_server(tmp_path / "first", grpc_port=port):
        for _ in range(3):
            next(steps)
    with training_server(tmp_path / "second", grpc_port=port) as server:
        rank.wait_for_server()
        mixed = False
        while not mixed:
            lost = rank.fallbacks
            next(steps)
            mixed = rank.fallbacks == lost
        assert sample(server, "mixer_online_sessions") == 1
        assert sample(server, "mixer_online_restored_total") == 0
        rank.mixing.close()

    assert rank.metrics.value("mixer_client_session_lost_steps_total") >= 1


def test_the_budget_bounds_a_lost_server(settings: SessionSettings, tmp_path: Path):
    """A rank whose budget is spent says so instead of training unmixed for ever."""
    with training_server(tmp_path / "online") as server:
        rank = Rank(server.addresses["grpc"], settings, tmp_path, budget=2)
        steps = rank.steps(40)
        next(steps)

    with pytest.raises(BudgetSpent, match="failure-budget"):
        list(steps)
    rank.mixing.close()


def test_a_run_that_goes_on_goes_on_with_its_session(server: MixerServer, settings: SessionSettings, tmp_path: Path):
    """A resumed run finds its mixer where it left it; one that starts anew ends that session and has one of its own."""
    names, before = [], sample(server, "mixer_online_sessions")
    for step in (0, 3, 0):
        rank = Rank(server.addresses["grpc"], settings, tmp_path)
        items = rank.mixing.epoch(0, [make_batch(4)], first_batch=step)
        next(items)
        assert rank.mixing.session is not None
        names.append(rank.mixing.session.key.name)
        rank.mixing.close()

    assert names[0] == names[1] != names[2]
    wait_until(lambda: sample(server, "mixer_online_sessions") == before + 1)  # a run does not wait long for that
    assert rank.mixing.session is not None
    again = Rank(server.addresses["grpc"], settings, tmp_path)
    OnlineSession(again.connection, rank.mixing.session.key, settings).close(timeout_s=WAIT_S)
    again.mixing.close()
