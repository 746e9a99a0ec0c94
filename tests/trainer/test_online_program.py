"""Online training from the config to the artefact: what is built, what a run leaves and says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from co_training import STEPS, co_training
from learning import NUM_CLASSES, SIDE
from training import ALONE, OPENMIXUP_FLAGS, events_of, newest_checkpoint, summary_of

from samix.mixing.artefact import load_mixer, read_provenance
from samix.mixing.backbone import BackboneSpec
from samix.mixing.block import BlockSpec
from samix.mixing.optimise import RunLength
from trainer.checkpoint import load_checkpoint
from trainer.cli import main
from trainer.methods.build import build_method, open_batches
from trainer.methods.config import CoTrainingConfig
from trainer.methods.objective import ObjectiveConfig
from trainer.methods.online import CoTraining
from trainer.metrics import TrainerMetrics
from trainer.model import ModelConfig, build_classifier
from trainer.planning import Planning
from trainer.recipes import RECIPES


@pytest.mark.parametrize(
    ("backbone", "stage", "stride"), [("wide_resnet10_1", 1, 2), ("torchvision/resnet18", 1, 8), ("resnet18", 2, 16)]
)
def test_the_mixer_fits_any_backbone(backbone: str, stage: int, stride: int):
    """Settings follow the backbone that is trained, so that what is learnt can be shipped at the end."""
    model = ModelConfig(backbone=BackboneSpec(name=backbone))
    config = CoTrainingConfig(stage=stage)

    spec = config.mixer_spec(model, SIDE)
    method = CoTraining.build(
        build_classifier(model, NUM_CLASSES, seed=0), spec, config, ObjectiveConfig(), seed=0, total_steps=STEPS
    )

    assert spec.stride == stride
    assert method.online.freeze("mine").spec == spec


@pytest.mark.parametrize(
    ("mode", "clean_weight", "two_heads"), [("openmixup", 1.0, True), ("openmixup", 0.0, False), ("paper", 1.0, False)]
)
def test_a_clean_head_is_there_only_where_it_learns(mode: Any, clean_weight: float, two_heads: bool):
    """The public reference's second head comes with its loss; without one it would stay random, and DDP would hang."""
    config = RECIPES["digits_cpu"][1]
    config = replace(
        config,
        mixing=replace(config.mixing, policy="online"),
        online=replace(
            config.online,
            mode=mode,
            per_sample_lam=False,
            mask_schedule="constant",
            block=BlockSpec(learnable_gamma=False, activation="elu"),
        ),
        objective=ObjectiveConfig(clean_weight=clean_weight),
    )

    method, _ = build_method(config, RunLength(steps_per_epoch=STEPS, epochs=1), torch.device("cpu"))

    assert (method.classifier.head_one is not None) == two_heads


@pytest.mark.parametrize(("set_for_all", "used"), [(0.0, 2.0), (0.4, 0.4)])
def test_an_alpha_for_all_policies_holds_online_too(set_for_all: float, used: float):
    """`--mixing.alpha` draws the lambdas of policy `online` as well; 0 leaves it to the settings of the mixer."""
    config = RECIPES["digits_cpu"][1]
    config = replace(config, mixing=replace(config.mixing, policy="online", alpha=set_for_all))

    with open_batches(config, co_training(), ALONE, TrainerMetrics(0), steps_per_epoch=2) as batches:
        assert isinstance(batches, Planning)
        assert batches.config == replace(config.online, alpha=used)


def samix_train(data: list[str], out: Path, *flags: str) -> dict[str, Any]:
    page = ["--metrics.port", "0", "--metrics.linger-s", "0", "--device", "cpu"]
    assert main(["digits_cpu", *data, *page, "--mixing.policy", "online", "--out", str(out), *flags]) == 0
    return summary_of(out)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_leaves_classifier_and_mixer(data: list[str], tmp_path: Path, precision: str):
    """`samix train --mixing.policy online` leaves a mixer that loads, its quality, and the accuracy of every head."""
    out = tmp_path / "mine"

    summary = samix_train(data, out, "--epochs", "2", "--precision", precision)

    mixer, provenance = load_mixer(out / "mixer.safetensors"), read_provenance(out / "mixer.safetensors")
    state = load_checkpoint(newest_checkpoint(out))
    assert summary["policy"] == "online"
    assert summary["mixer"] == str(out / "mixer.safetensors")
    assert 0 < summary["lam_error"] < 0.5
    assert set(summary["top1_of_heads"]) == {"mix_q", "mix_k"}
    assert summary["top1_of_heads"]["mix_q"] == summary["top1"]
    assert mixer.name == "mine"
    assert mixer.spec.mode == "paper"
    assert mixer.mix(torch.rand(2, 3, 16, 16), seed=0).masks.isfinite().all()
    assert provenance.items() >= {"recipe": "digits_cpu", "epochs": "2", "spread": f"{summary['spread']:.4f}"}.items()
    stored = [*state["model"].values(), *state["method"]["online"].values()]
    assert all(value.isfinite().all() for value in stored)
    assert torch.bfloat16 not in {value.dtype for value in stored}
    for row in events_of(out):
        assert {"loss", "mixer_loss", "lam_error", "spread"} <= row.keys()


def test_a_run_of_the_references_way(data: list[str], tmp_path: Path):
    """In mode `openmixup` there are four heads, and the mixer says by whose arithmetic it was trained."""
    summary = samix_train(data, tmp_path, "--epochs", "1", *OPENMIXUP_FLAGS)

    assert set(summary["top1_of_heads"]) == {"mix_q", "one_q", "mix_k", "one_k"}
    assert load_mixer(summary["mixer"]).spec.mode == "openmixup"


def test_a_run_too_short_for_its_mixer_says_so(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A mixer that cannot have learnt anything yet is remarked on in the log, with the cure."""
    samix_train(data, tmp_path, "--epochs", "1")

    log = capsys.readouterr().err
    assert "WARNING trainer.methods.online masks_still_trivial spread=" in log
    assert 'cure="train longer, or lower --online.momentum"' in log
