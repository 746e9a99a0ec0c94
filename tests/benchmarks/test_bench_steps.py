"""`python -m benchmarks.steps`: what it times, what it reports, and what it refuses."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.online_parts import OnlineParts
from benchmarks.step_works import (
    ENCODER,
    ONLINE,
    ONLINE_CLEAN,
    SAMIX_P,
    SAMIX_P_MIX,
    Setting,
    Subject,
    mixer_passes,
    whole_steps,
)
from benchmarks.steps import main
from benchmarks.steps_report import Section, summarise, table
from samix.mixing.backbone import BackboneSpec

TINY = ("--backbone.layers", "1", "1", "1", "1", "--backbone.channels", "4", "8", "8", "8", "--image-size", "16")
SUM = "sum of the parts"

Report = Mapping[str, Any]


@pytest.fixture(scope="module")
def subject() -> Subject:
    backbone = BackboneSpec(stem="cifar", layers=(1, 1, 1, 1), channels=(4, 8, 8, 8))
    return Subject.build(Setting(backbone=backbone, image_size=16, batch_size=4, num_classes=3))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "new" / "steps.json"


@pytest.fixture(scope="module")
def report(out: Path) -> Report:
    with same_threads():
        status = main([*TINY, "--batch-size", "4", "--rounds", "2", "--json", str(out)])
    assert status == 0
    return json.loads(out.read_text())


@contextmanager
def same_threads() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def works(section: Report) -> dict[str, Report]:
    return {work["name"]: work for work in section["works"]}


def test_reports_where_and_what(report: Report):
    """The figures stand beside machine, commit, date and settings."""
    assert {"date", "machine", "versions", "pinned", "settings"} <= report.keys()
    assert report["versions"]["commit"]
    assert (report["settings"]["rounds"], report["settings"]["batch_size"]) == (2, 4)
    assert all(len(work["ratio_rounds"]) == 2 for section in report["sections"] for work in section["works"])


def test_promises_have_a_verdict(report: Report):
    """Every ratio that was promised has its limit: of steps to CutMix, to the parts, and of a mix to the encoder."""
    limits = {
        (section["reference"], work["name"]): work["limit"]
        for section in report["sections"]
        for work in section["works"]
        if work["limit"] is not None
    }

    assert limits == {
        ("cutmix", SAMIX_P): 1.35,
        ("cutmix", ONLINE): 3.3,
        ("cutmix", ONLINE_CLEAN): 3.3,
        (SUM, ONLINE): 1.08,
        (ENCODER, SAMIX_P_MIX): 1.15,
    }


def test_sum_of_the_parts(report: Report):
    """An online step is compared with the sum that all its parts took in the same round."""
    parts = works(report["sections"][1])
    shares = [work["ratio_rounds"] for name, work in parts.items() if name not in (SUM, ONLINE)]

    assert len(shares) == 9
    assert [sum(shares_of_round) for shares_of_round in zip(*shares, strict=True)] == pytest.approx([1, 1], abs=1e-3)


@pytest.mark.parametrize("name", ["none", "cutmix", SAMIX_P])
def test_step_of_a_policy_teaches_the_classifier(subject: Subject, name: str):
    """A timed step updates the classifier, and nothing else."""
    step = whole_steps(subject, ("none", "cutmix"))[name]
    classifier, online = weights(subject.co_training.classifier), weights(subject.co_training.online)

    step()

    assert not torch.equal(weights(subject.co_training.classifier), classifier)
    assert torch.equal(weights(subject.co_training.online), online)


@pytest.mark.parametrize("name", [ONLINE, ONLINE_CLEAN])
def test_online_step_teaches_classifier_and_mixer(subject: Subject, name: str):
    """A timed online step updates classifier, mixing block and momentum copy."""
    step = whole_steps(subject, ())[name]
    online = subject.co_training.online
    before = [weights(module) for module in (subject.co_training.classifier, online.block, online.classifier)]

    step()

    after = [weights(module) for module in (subject.co_training.classifier, online.block, online.classifier)]
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_parts_do_what_a_step_does(subject: Subject):
    """The parts together update what an online step updates, and the momentum classifier gets no gradient."""
    online = subject.co_training.online
    modules = (subject.co_training.classifier, online.block, online.classifier)
    parts = OnlineParts.build(subject).works()
    before = [weights(module) for module in modules]

    for part in parts.values():
        part()

    after = [weights(module) for module in modules]
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in online.classifier.parameters())


def test_passes_of_a_frozen_mixer(subject: Subject):
    """The bare encoder gives the features of its stage, the mix gives mixed images; neither records gradients."""
    passes = mixer_passes(subject)

    features, mixed = passes[ENCODER](), passes[SAMIX_P_MIX]()

    assert isinstance(features, torch.Tensor)
    assert (features.shape, features.requires_grad) == ((4, 8, 4, 4), False)
    assert (mixed.images.shape, mixed.images.requires_grad) == ((4, 3, 16, 16), False)  # type: ignore[attr-defined]


seconds = st.floats(1e-3, 10)


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=9), st.floats(0.1, 100))
def test_ratios_are_of_one_round(rounds: list[tuple[float, float]], slowdown: float):
    """A machine that is slower for a whole round changes no ratio."""
    section = Section(title="steps", works=("mine", "other"), reference="other", limits={"mine": 1.0})
    taken = {"mine": [mine for mine, _ in rounds], "other": [other for _, other in rounds]}
    slower = {name: [slowdown * values[0], *values[1:]] for name, values in taken.items()}

    ratios, ratios_of_slower = (works(summarise(section, seconds))["mine"] for seconds in (taken, slower))

    assert ratios_of_slower["ratio_rounds"] == pytest.approx(ratios["ratio_rounds"], abs=1e-3, rel=1e-3)
    assert works(summarise(section, taken))["other"]["ratio"] == 1


@pytest.mark.parametrize(("mine", "verdict"), [(1.0, "ok"), (1.2, "ok"), (1.21, "over")])
def test_verdict(mine: float, verdict: str):
    """A ratio up to its limit is ok, one above it is over, and a work without a limit has no verdict."""
    section = Section(title="steps", works=("mine", "other"), reference="other", limits={"mine": 1.2})

    lines = table([summarise(section, {"mine": [mine], "other": [1.0]})]).splitlines()

    assert lines[1].split()[-2:] == ["1.20", verdict]
    assert lines[2].endswith("1.000 to 1.000")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--rounds", "0"], "rounds must lie in 1..99, got 0"),
        (["--batch-size", "0"], "batch_size must lie in 1..65536, got 0"),
        (["--json", "."], "json must name a file that ends in .json, got '.'"),
    ],
)
def test_refuses_bad_flags(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    """A flag out of bounds is refused with a sentence and status 2, before anything runs."""
    status = main(flags)

    assert status == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")


@pytest.mark.parametrize("flags", [["--backbone.name", "resnet19"], ["--stage", "7"], ["--image-size", "4"]])
def test_failed_run_leaves_no_older_figures(flags: list[str], tmp_path: Path):
    """A run whose network cannot be built ends with status 2 and removes the figures of an earlier one."""
    old = tmp_path / "steps.json"
    old.write_text("{}")

    with same_threads():
        status = main([*flags, "--json", str(old)])

    assert status == 2
    assert not old.exists()
