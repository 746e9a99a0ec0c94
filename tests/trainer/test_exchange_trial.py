"""How a rank finds out which exchange with its mixer is the quickest."""

import logging
from collections.abc import Iterable, Iterator, Sequence

import pytest
import torch
from serving import WAIT_S, serve, tiny_mixer
from slow_link import slow_link
from training import ALONE, NUM_CLASSES

from mixer_server.app import MixerServer
from samix.client.config import Exchange
from samix.client.pending import MixTimes
from samix.mixing.classifier import Classifier
from samix.mixing.plan import generator_for
from samix.mixing.presets import TINY_RESNET
from services.shards.dataset import Batch
from trainer.exchanges import TRIALS, Trial, quickest
from trainer.metrics import TrainerMetrics
from trainer.mixing import MixingConfig, open_mixing
from trainer.model import ModelConfig, build_classifier

SIDE = 32
RAW, JPEG, IMAGES = Exchange(), Exchange(encoding="jpeg"), Exchange(reply="images")


def took(seconds: float) -> MixTimes:
    return MixTimes(encode_s=seconds / 4, answer_s=seconds / 2, blend_s=seconds / 2)


def try_out(trial: Trial, seconds: dict[Exchange, Sequence[float]]) -> list[Exchange]:
    """Answer each candidate after the seconds it takes, one after another; returns the order of the trial."""
    waiting = {exchange: list(figures) for exchange, figures in seconds.items()}
    order = []
    while not trial.is_settled:
        order.append(trial.next())
        trial.answered(order[-1], took(waiting[order[-1]].pop(0)))
    return order


def photos(count: int, side: int = SIDE) -> list[Batch]:
    """Make batches of smooth pictures, whose labels are the numbers of the batches."""
    noise = torch.rand(8, 3, 5, 5, generator=generator_for("photos"))
    images = torch.nn.functional.interpolate(noise, (side, side), mode="bilinear").mul(255).byte()
    return [Batch(images=images, labels=torch.full((8,), number), positions=torch.arange(8)) for number in range(count)]


def classifier() -> Classifier:
    return build_classifier(ModelConfig(backbone=TINY_RESNET), NUM_CLASSES, seed=0)


def train_on(endpoint: str, batches: Iterable[Batch], **settings: str) -> tuple[list[int], float]:
    """Mix batches as a run would; returns the labels in their order and how many the fallback mixed."""
    metrics = TrainerMetrics(0)
    config = MixingConfig(endpoint=endpoint, deadline_s=WAIT_S, **settings)  # pyright: ignore[reportArgumentType]
    with open_mixing(
        config, seed=0, image_size=SIDE, batch_size=8, world=ALONE, metrics=metrics, classifier=classifier()
    ) as mixing:
        labels = [int(item.mixed.labels_a[0]) for item in mixing.epoch(0, batches) if item.mixed.labels_a is not None]
    return labels, metrics.value("mixer_client_fallback_total")


def choices(caplog: pytest.LogCaptureFixture) -> list[dict]:
    return [vars(record) for record in caplog.records if record.message == "mixer_exchange_chosen"]


def test_the_quickest_is_chosen():
    """The least time wins; of equals the first, which is the usual one."""
    assert quickest({RAW: 0.3, JPEG: 0.1, IMAGES: 0.2}) == JPEG
    assert quickest({RAW: 0.1, JPEG: 0.1}) == RAW


def test_candidates_take_turns():
    """Each candidate is tried once to warm up and then as often as it is judged by, in turns."""
    order = try_out(Trial([RAW, JPEG, IMAGES], rank=0), {RAW: [1] * 9, JPEG: [1] * 9, IMAGES: [1] * 9})

    assert order == [RAW, JPEG, IMAGES] * (1 + TRIALS)


def test_the_first_answer_and_single_delays_do_not_count():
    """Neither a slow first answer nor a hiccup in the middle decides."""
    trial = Trial([RAW, JPEG], rank=0)

    try_out(trial, {RAW: [9, *[2] * 8], JPEG: [99, 1, 1, 1, 50, 1, 1, 1, 50]})

    assert trial.next() == JPEG


def test_nothing_is_measured_again():
    """After the choice neither answers nor timeouts change it."""
    trial = Trial([RAW, JPEG], rank=0, trials=1)
    try_out(trial, {RAW: [1, 1], JPEG: [2, 2]})

    trial.timed_out(RAW)
    for _ in range(20):
        trial.answered(RAW, took(100))

    assert trial.next() == RAW


def test_one_candidate_needs_no_trial():
    """A single candidate is used at once, and its batches overlap from the first on."""
    trial = Trial([JPEG], rank=0)

    assert trial.is_settled
    assert trial.next() == JPEG


def test_a_candidate_beyond_the_deadline_is_dropped():
    """A candidate that times out is tried no more, and is not chosen."""
    trial = Trial([RAW, JPEG], rank=0, trials=1)

    trial.timed_out(RAW)

    order = try_out(trial, {JPEG: [1, 1]})
    assert order == [JPEG, JPEG]
    assert trial.next() == JPEG


def test_a_mixer_that_is_slow_altogether():
    """Where all candidates time out, the trial goes on with all until the mixer answers."""
    trial = Trial([RAW, JPEG], rank=0, trials=1)
    trial.timed_out(RAW)
    trial.timed_out(JPEG)

    order = try_out(trial, {RAW: [2, 2], JPEG: [1, 1]})

    assert order == [RAW, JPEG, RAW, JPEG]
    assert trial.next() == JPEG


def test_the_choice_is_explained(caplog: pytest.LogCaptureFixture):
    """One event says what was chosen, why, and the figures of each candidate, also of one that timed out."""
    trial = Trial([RAW, JPEG, IMAGES], rank=3, trials=1)

    with caplog.at_level(logging.INFO, "trainer"):
        trial.timed_out(IMAGES)
        try_out(trial, {RAW: [9, 0.2], JPEG: [9, 0.1]})

    (event,) = choices(caplog)
    assert (event["rank"], event["chosen"]) == (3, "jpeg/masks")
    assert "median" in event["why"]
    assert event["figures"] == {
        "raw/masks": {"total_ms": 200.0, "answer_ms": 100.0, "encode_ms": 50.0, "blend_ms": 100.0},
        "jpeg/masks": {"total_ms": 100.0, "answer_ms": 50.0, "encode_ms": 25.0, "blend_ms": 50.0},
        "raw/images": "timed out",
    }


def test_jpeg_wins_on_a_thin_link(server: MixerServer, caplog: pytest.LogCaptureFixture):
    """Through a link of 250 kB/s, batches that are 25 kB of pixels travel as JPEG once that was tried; none is lost."""
    with slow_link(server.addresses["grpc"], 250e3) as endpoint, caplog.at_level(logging.INFO, "trainer"):
        labels, fallbacks = train_on(endpoint, photos(24), encoding="auto")

    (event,) = choices(caplog)
    assert event["chosen"] == "jpeg/masks"
    assert event["figures"]["raw/masks"]["answer_ms"] > 24_576 / 250e3 * 1000
    assert labels == list(range(24))
    assert fallbacks == 0


def test_batches_overlap_after_the_trial(server: MixerServer):
    """While exchanges are tried each batch travels alone; after it `depth` are under way during a step."""
    taken = 0

    def batches() -> Iterator[Batch]:
        nonlocal taken
        for batch in photos(24):
            taken += 1
            yield batch

    config = MixingConfig(endpoint=server.addresses["grpc"], encoding="auto", depth=2, deadline_s=WAIT_S)
    with open_mixing(
        config, seed=0, image_size=SIDE, batch_size=8, world=ALONE, metrics=TrainerMetrics(0), classifier=classifier()
    ) as mixing:
        ahead = [taken - 1 - number for number, _ in enumerate(mixing.epoch(0, batches()))]

    tried = 2 * (1 + TRIALS)
    assert ahead[: tried - 1] == [0] * (tried - 1)
    assert ahead[tried:-2] == [2] * (24 - tried - 2)


def test_every_exchange_is_tried(server: MixerServer, caplog: pytest.LogCaptureFixture):
    """With both kinds of auto all exchanges are measured but the one that would train on JPEGs."""
    with caplog.at_level(logging.INFO, "trainer"):
        labels, fallbacks = train_on(server.addresses["grpc"], photos(32), encoding="auto", reply="auto")

    (event,) = choices(caplog)
    totals = {name: figures["total_ms"] for name, figures in event["figures"].items()}
    assert set(totals) == {"raw/masks", "jpeg/masks", "raw/images"}
    assert totals[event["chosen"]] == min(totals.values())
    assert labels == list(range(32))
    assert fallbacks == 0


def test_an_outage_in_the_middle_of_a_trial(caplog: pytest.LogCaptureFixture):
    """A server that dies while exchanges are tried costs no step, and decides nothing."""
    with serve(tiny_mixer()) as server, caplog.at_level(logging.INFO, "trainer"):

        def batches() -> Iterator[Batch]:
            for batch in photos(12):
                if batch.labels[0] == 6:
                    server.stop()
                yield batch

        labels, fallbacks = train_on(server.addresses["grpc"], batches(), encoding="auto")

    assert labels == list(range(12))
    assert fallbacks == 6
    assert choices(caplog) == []


@pytest.mark.parametrize("reply", ["masks", "images"])
def test_settled_runs_try_nothing(server: MixerServer, caplog: pytest.LogCaptureFixture, reply: str):
    """Without auto nothing is measured."""
    with caplog.at_level(logging.INFO, "trainer"):
        labels, _ = train_on(server.addresses["grpc"], photos(3), reply=reply)

    assert labels == [0, 1, 2]
    assert choices(caplog) == []
