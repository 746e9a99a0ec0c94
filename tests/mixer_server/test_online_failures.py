"""Ranks that are lost, servers that are killed and drained, disks that are full: the session goes on."""

import os
import signal
import socket
from pathlib import Path

import grpc
import pytest
from child_server import child_server
from online_sessions import Owner, call_of, items_of, owned, pipeline, settings_of, training_server
from serving import WAIT_S, sample, wait_until

from samix.client.online.session import SessionKey
from samix.cotraining.settings import SessionSettings
from samix.errors import MixerError, MixerNotFound, MixerTimeout, WrongState
from trainer.methods.online import CoTraining


@pytest.fixture(scope="module")
def method() -> CoTraining:
    return pipeline("paper")


@pytest.fixture(scope="module")
def settings(method: CoTraining) -> SessionSettings:
    return settings_of(method)


def train(owner: Owner, method: CoTraining, steps: range, world_size: int = 1) -> None:
    """Do steps in lock-step; the classifier stays as it is, but its weights are sent."""
    for step in steps:
        owner.ask(items_of(step, world_size, "paper"))
        owner.learned(step)
        owner.send(step + 1, method.classifier)


def test_a_step_goes_on_without_a_lost_rank(tmp_path: Path, settings: SessionSettings, method: CoTraining):
    """A rank that leaves holds the others up for as long as the server waits; then they learn without it."""
    both = settings_of(method, world_size=2)
    with training_server(tmp_path, rank_wait_s=0.3) as server, owned(server, both) as owner:
        owner.open()
        owner.send(0, method.classifier)
        train(owner, method, range(1), world_size=2)
        owner.ranks.pop(1).close()
        wait_until(lambda: list(owner.state().ranks) == [0])

        train(owner, method, range(1, 3))

        name = owner.session.key.name
        assert sample(server, "mixer_online_steps_total", session=name, outcome="learned") == 1
        assert sample(server, "mixer_online_steps_total", session=name, outcome="partial") == 2


def test_a_late_rank_is_mixed_and_not_learned(tmp_path: Path, method: CoTraining):
    """What comes after its step is over is answered, and counted as late."""
    both = settings_of(method, world_size=2)
    with training_server(tmp_path, rank_wait_s=0.2) as server, owned(server, both) as owner:
        owner.open()
        owner.send(0, method.classifier)
        first, second = items_of(0, 2, "paper")
        owner.rank(0).submit(call_of(first), WAIT_S).result(WAIT_S)
        owner.learned(0)

        answer = owner.rank(1).submit(call_of(second), WAIT_S).result(WAIT_S)

        assert answer.info.learned_steps == 1
        name = owner.session.key.name
        wait_until(lambda: sample(server, "mixer_online_late_batches_total", session=name) == 1)


def test_a_batch_that_is_not_mixed_in_time_is_refused(tmp_path: Path, settings: SessionSettings):
    """Without the weights that are due a batch waits as long as its rank said, and the refusal says for what."""
    with training_server(tmp_path) as server, owned(server, settings) as owner:
        owner.open()
        (item,) = items_of(0, 1, "paper")

        with pytest.raises(MixerTimeout, match="first weights"):
            owner.rank(0).submit(call_of(item), 0.2).result(WAIT_S)


def test_staleness_is_bounded(tmp_path: Path, method: CoTraining):
    """With a staleness of 1, batch 1 is mixed without newer weights, and batch 2 waits for those after one step."""
    stale = settings_of(method, max_staleness=1)
    with training_server(tmp_path) as server, owned(server, stale) as owner:
        owner.open()
        owner.send(0, method.classifier)
        pending = [owner.rank(0).submit(call_of(items_of(step, 1, "paper")[0]), WAIT_S) for step in range(3)]

        answers = [one.result(WAIT_S) for one in pending[:2]]
        owner.learned(1)
        with pytest.raises(MixerTimeout):
            pending[2].result(0.05)
        owner.send(1, method.classifier)

        assert [one.info.weights_step for one in answers] == [0, 0]
        assert pending[2].result(WAIT_S).info.weights_step == 1


def test_a_drained_server_leaves_the_session_to_the_next(tmp_path: Path, settings: SessionSettings, method: CoTraining):
    """A server that shuts down writes its sessions; another one with the same folder goes on without a step lost."""
    key = SessionKey.draw("moved")
    with training_server(tmp_path) as server, owned(server, settings, key) as owner:
        owner.open()
        owner.send(0, method.classifier)
        train(owner, method, range(3))

    with training_server(tmp_path) as server, owned(server, settings, key) as owner:
        state = owner.state()
        owner.open(3)
        train(owner, method, range(3, 5))

        assert (state.step, state.weights_step, state.is_restored) == (3, 3, True)
        assert sample(server, "mixer_online_restored_total") == 1


def test_what_is_restored_is_what_was_written(tmp_path: Path, settings: SessionSettings, method: CoTraining):
    """A session that went through a checkpoint learns bit for bit what one does that never left memory."""
    losses = []
    for folder, is_moved in ((tmp_path / "stays", False), (tmp_path / "moves", True)):
        key = SessionKey.draw("same")
        with training_server(folder) as server, owned(server, settings, key) as owner:
            owner.open()
            owner.send(0, method.classifier)
            train(owner, method, range(3))
            if not is_moved:
                train(owner, method, range(3, 5))
                losses.append(owner.state().losses)
        if is_moved:
            with training_server(folder) as server, owned(server, settings, key) as owner:
                owner.open(3)
                train(owner, method, range(3, 5))
                losses.append(owner.state().losses)

    assert losses[0] == losses[1]


def test_a_run_that_comes_back_replaces_the_old_process(tmp_path: Path, settings: SessionSettings, method: CoTraining):
    """Opening a session again ends the streams of the run before, and moves it to the step of the new one."""
    with training_server(tmp_path) as server, owned(server, settings) as owner:
        owner.open()
        owner.send(0, method.classifier)
        train(owner, method, range(4))

        opened = owner.session.open(2, timeout_s=WAIT_S)

        assert (opened.is_new, opened.found_step, opened.state.step) == (False, 4, 2)
        assert not opened.state.ranks
        owner.send(2, method.classifier)
        train(owner, method, range(2, 4))


def test_another_session_of_the_same_name_is_refused(tmp_path: Path, settings: SessionSettings, method: CoTraining):
    """Who owns a session may change how many ranks it has, and nothing else."""
    key = SessionKey.draw("same")
    with training_server(tmp_path) as server, owned(server, settings, key) as owner:
        owner.open()
        with owned(server, settings_of(method, seed=1), key) as other, pytest.raises(WrongState, match="seed"):
            other.open()
        with owned(server, settings_of(method, world_size=3), key) as wider:
            wider.open()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, settings: SessionSettings, method: CoTraining):
    """A checkpoint that cannot be read is said to be damaged, and nothing is begun in its place."""
    key = SessionKey.draw("damaged")
    with training_server(tmp_path) as server, owned(server, settings, key) as owner:
        owner.open()
        owner.send(0, method.classifier)
        train(owner, method, range(1))
    (file,) = tmp_path.glob("*.checkpoint")
    file.write_bytes(file.read_bytes()[:-100])

    with (
        training_server(tmp_path) as server,
        owned(server, settings, key) as owner,
        pytest.raises(WrongState, match="damaged"),
    ):
        owner.open()


def test_a_checkpoint_that_cannot_be_written_stops_nothing(
    tmp_path: Path, settings: SessionSettings, method: CoTraining
):
    """Where the folder cannot be written to the session goes on, and the failure is counted."""
    blocked = tmp_path / "file"
    blocked.touch()
    with training_server(blocked / "folder", checkpoint_steps=1) as server, owned(server, settings) as owner:
        owner.open()
        owner.send(0, method.classifier)

        train(owner, method, range(2))

        name = owner.session.key.name
        assert sample(server, "mixer_online_checkpoints_total", session=name, outcome="failed") >= 1
        assert owner.state().checkpoint_step == 0


def test_a_lost_session_can_be_begun_anew(tmp_path: Path, settings: SessionSettings, method: CoTraining):
    """A server that knows nothing of a session says so, and takes it from any step."""
    key = SessionKey.draw("lost")
    with training_server(tmp_path / "new") as server, owned(server, settings, key) as owner:
        (item,) = items_of(7, 1, "paper")
        with pytest.raises(MixerNotFound):
            owner.rank(0).submit(call_of(item), WAIT_S).result(WAIT_S)

        owner.open(7)
        owner.send(7, method.classifier)
        train(owner, method, range(7, 9))

        assert owner.state().step == 9


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_killed_server_goes_on_from_its_checkpoint(tmp_path: Path, settings: SessionSettings, method: CoTraining):
    """After kill -9 and a new start the session is where its last checkpoint was, and the ranks join by themselves."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    flags = ["--online.memory-mib", "256", "--online.folder", str(tmp_path / "online"), "--online.checkpoint-steps"]
    flags += ["3", "--device", "cpu", "--grpc-port", port]
    with child_server(tmp_path, *flags) as server, owned(server.addresses["grpc"], settings) as owner:
        owner.open()
        owner.send(0, method.classifier)
        train(owner, method, range(5))
        wait_until(lambda: owner.state().checkpoint_step == 3)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        (item,) = items_of(5, 1, "paper")
        with pytest.raises(MixerError):
            owner.rank(0).submit(call_of(item), WAIT_S).result(WAIT_S)

        with child_server(tmp_path, *flags):
            channel = owner.session.connection.line().channel
            grpc.channel_ready_future(channel).result(WAIT_S)
            state = owner.state()
            owner.send(6, method.classifier)
            train(owner, method, range(6, 8))

    # It was written when step 2 was learned; the weights after it came a moment later.
    assert (state.step, state.weights_step, state.is_restored) == (3, 2, True)
