"""Co-training sessions: what they leave, how many there may be, and what is told of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from online_sessions import BATCH, Owner, call_of, items_of, owned, pipeline, settings_of, training_server
from serving import WAIT_S, sample, serve, wait_until

from mixer_server.app import MixerServer
from mixer_server.online.keys import NAME
from samix import connect
from samix.client.online.session import permitted_name
from samix.cotraining.settings import SessionSettings
from samix.errors import BadBatch, MixerCancelled, MixerError, MixerOverloaded, WrongState
from samix.mixing.artefact import load_mixer
from trainer.methods.online import CoTraining


@pytest.fixture(scope="module")
def method() -> CoTraining:
    return pipeline("paper")


@pytest.fixture(scope="module")
def settings(method: CoTraining) -> SessionSettings:
    return settings_of(method)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixerServer]:
    with training_server(tmp_path_factory.mktemp("online"), memory_mib=900, max_sessions=50) as running:
        yield running


@pytest.fixture
def owner(server: MixerServer, settings: SessionSettings, method: CoTraining) -> Iterator[Owner]:
    """A session that has its first weights."""
    with owned(server, settings) as one:
        one.open()
        one.send(0, method.classifier)
        yield one
        one.session.close(timeout_s=WAIT_S)


def test_the_exported_mixer_gives_the_same_masks(owner: Owner, method: CoTraining, tmp_path: Path):
    """The artefact serves in frozen mode, and its masks are those of the session's mixer in evaluation mode."""
    owner.ask(items_of(0, 1, "paper"))
    owner.send(1, method.classifier)
    owner.learned(0)
    path = tmp_path / "mixer.safetensors"

    path.write_bytes(owner.session.export("mine"))

    mixer, (item,) = load_mixer(path), items_of(1, 1, "paper")
    plan = item.plans.students
    with serve(mixer) as frozen, connect(frozen.addresses["grpc"]) as remote:
        served = remote.mix(item.images, item.labels, lam=plan.lam, partner=plan.partner).masks
    here = mixer.mix(item.images, item.labels, lam=plan.lam, partner=plan.partner).masks
    torch.testing.assert_close(served, here, rtol=0, atol=1e-3)
    (answer,) = owner.ask([item])
    mixer.net.block.train()  # as the session has it: with the statistics of the batch
    torch.testing.assert_close(mixer.mask_logits(item.images, plan), answer.logits, rtol=0, atol=1e-5)


def test_no_weights_no_mixer(server: MixerServer, settings: SessionSettings):
    """A session without weights has nothing to export, and mixes nothing."""
    with owned(server, settings) as one:
        one.open()

        with pytest.raises(WrongState, match="send them first"):
            one.session.export("none")


def test_the_end_leaves_a_mixer_and_no_checkpoint(tmp_path: Path, settings: SessionSettings, method: CoTraining):
    """Ending a session writes its mixer into the folder and deletes its checkpoint; the name is free again."""
    with training_server(tmp_path, checkpoint_steps=1) as server, owned(server, settings) as one:
        one.open()
        one.send(0, method.classifier)
        one.ask(items_of(0, 1, "paper"))
        one.learned(0)
        wait_until(lambda: list(tmp_path.glob("*.checkpoint")))

        response = one.session.close(timeout_s=WAIT_S)

        assert [file.name for file in tmp_path.iterdir()] == [response.file]
        assert load_mixer(tmp_path / response.file).sha256 == response.sha256
        assert sample(server, "mixer_online_memory_bytes") == 0
        one.open()


def test_an_end_that_fails_loses_nothing(owner: Owner):
    """Where the mixer cannot be exported under the name that was asked for, its session goes on."""
    with pytest.raises(BadBatch, match="a mixer's name"):
        owner.session.close("no/name", timeout_s=WAIT_S)

    owner.ask(items_of(0, 1, "paper"))
    assert owner.learned(0).step == 0


def test_a_stream_that_was_replaced_sends_nothing_more(
    server: MixerServer, owner: Owner, settings: SessionSettings, method: CoTraining
):
    """What comes from the process before a run came back counts for nothing, be it under way already."""
    session = server.sessions.get(owner.session.key.message())
    before: list[MixerError] = []
    session.join(0, before.append)
    owner.open(3)

    with pytest.raises(MixerCancelled):
        session.submit(call_of(items_of(30, 1, "paper")[0]), 0, WAIT_S, lambda _: None, before.append)

    assert len(before) == 1
    owner.send(3, method.classifier)
    owner.ask(items_of(3, 1, "paper"))
    assert owner.learned(3).step == 3


def test_names_are_made_fit():
    """Sessions and mixers are named after folders, whatever these are called."""
    assert permitted_name("a run/with: signs") == "a-run-with--signs"
    assert permitted_name("._-") == "run"
    assert NAME.fullmatch(permitted_name("é" + "x" * 100))


def test_sessions_learn_side_by_side(server: MixerServer, settings: SessionSettings, method: CoTraining):
    """Two sessions at once learn what each learns alone."""
    losses = []
    with owned(server, settings) as first, owned(server, settings) as second:
        for one in (first, second):
            one.open()
            one.send(0, method.classifier)
        for step in range(3):
            for one in (first, second):
                one.ask(items_of(step, 1, "paper"))
            losses.append([one.learned(step).classification for one in (first, second)])
            for one in (first, second):
                one.send(step + 1, method.classifier)

    assert all(one == other for one, other in losses)


def test_one_session_more_than_allowed_is_refused(tmp_path: Path, settings: SessionSettings):
    """Beyond the number that is allowed a session is refused with a hint when to come again."""
    with (
        training_server(tmp_path, max_sessions=1) as server,
        owned(server, settings) as first,
        owned(server, settings) as second,
    ):
        first.open()

        with pytest.raises(MixerOverloaded):
            second.open()


def test_an_idle_session_leaves_memory_and_is_found_again(
    tmp_path: Path, settings: SessionSettings, method: CoTraining
):
    """A session that nobody uses is written and leaves memory; whoever comes back goes on where it stood."""
    with training_server(tmp_path) as server, owned(server, settings) as one:
        one.open()
        one.send(0, method.classifier)
        one.ask(items_of(0, 1, "paper"))
        one.learned(0)
        server.sessions.reap_idle()
        assert sample(server, "mixer_online_reaped_total") == 0
        server.sessions.get(one.session.key.message()).desk.last_used_s -= server.config.online.idle_s

        server.sessions.reap_idle()

        assert sample(server, "mixer_online_reaped_total") == 1
        assert sample(server, "mixer_online_memory_bytes") == 0

        state = one.state()

    assert (state.step, state.is_restored, state.checkpoint_step) == (1, True, 1)


def test_metrics_tell_of_a_session_and_forget_it(server: MixerServer, owner: Owner, method: CoTraining):
    """Step, losses, staleness, ages, bytes and the curve of masks are there while the session is, and not after."""
    name = owner.session.key.name
    for step in range(2):
        owner.ask(items_of(step, 1, "paper"))
        owner.learned(step)
        owner.send(step + 1, method.classifier)

    wait_until(lambda: sample(server, "mixer_weights_updates_total", session=name) == 3)
    assert sample(server, "mixer_online_step", session=name) == 2
    assert sample(server, "mixer_online_steps_total", session=name, outcome="learned") == 2
    assert sample(server, "mixer_online_loss", session=name, part="classification") > 0
    assert 0 <= sample(server, "mixer_weights_age_seconds", session=name) < WAIT_S
    assert sample(server, "mixer_online_staleness_steps_count", session=name) == 2
    assert sample(server, "mixer_online_received_bytes_total", session=name, kind="weights") > 1000
    assert sample(server, "mixer_online_received_bytes_total", session=name, kind="batch") > 2 * BATCH * 3 * 16 * 16
    curve = [
        one
        for family in server.metrics.registry.collect()
        for one in family.samples
        if one.name == "mixer_online_masks_total" and one.labels["session"] == name
    ]
    assert sum(one.value for one in curve) == BATCH

    owner.session.close(timeout_s=WAIT_S)

    left = [one for family in server.metrics.registry.collect() for one in family.samples]
    assert not [one for one in left if one.labels.get("session") == name]
    owner.open()
    owner.send(0, method.classifier)
