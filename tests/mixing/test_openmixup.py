"""Checkpoints of the public reference implementation: what is recognised, what is refused, and the masks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_openmixup import naive_masks
from openmixup_checkpoints import checkpoint, constant, only, resnet_shapes
from torch import Tensor

from samix.errors import ArtefactError, InputError
from samix.mixing.backbone import BackboneSpec
from samix.mixing.batch import as_unit_float
from samix.mixing.frozen import FrozenMixer, MaskNet, freeze
from samix.mixing.openmixup import ImportChoices, import_openmixup
from samix.mixing.openmixup_layout import recognise_backbone
from samix.mixing.presets import CIFAR_MEAN, IMAGENET_MEAN, IMAGENET_STD

State = dict[str, Tensor]

CIFAR = ImportChoices(normalisation="cifar")
SAMIX_CIFAR = ImportChoices(normalisation="cifar", lam_curve=0.25)
IMAGENET = ImportChoices(normalisation="imagenet")

SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "samix cifar": ({"kind": "samix"}, {"lam_curve": 0.25}, 32),
    "samix straight": ({"kind": "samix", "reduction": 4}, {"lam_curve": -1.0}, 64),
    "samix resnet50": ({"kind": "samix", "depth": 50, "stem": 7}, {"lam_curve": 1.0, "upsampling": "nearest"}, 96),
    "automix": ({"kind": "automix"}, {}, 64),
    "automix resnet34": ({"kind": "automix", "depth": 34, "stage": 1, "reduction": 4}, {"upsampling": "bilinear"}, 32),
    "automix concat": ({"kind": "automix concat", "stem": 7}, {}, 224),
    "automix concat resnext50": ({"kind": "automix concat", "depth": 50, "groups": 32, "group_width": 4}, {}, 32),
}


def mixer_of(state: State, choices: ImportChoices) -> FrozenMixer:
    spec, weights = import_openmixup(state, choices)
    net = MaskNet.build(spec)
    net.load_state_dict(weights)
    return freeze(net, spec, name="imported", sha256="0" * 64, device="cpu")


def pictures(count: int, side: int) -> Tensor:
    """Make pictures of 4 x 4 plain patches, so that features differ from place to place."""
    patches = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return patches.repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3)


@pytest.fixture(scope="module")
def samix() -> State:
    return checkpoint("samix")


@pytest.fixture(scope="module")
def automix() -> State:
    return checkpoint("automix concat")


@pytest.mark.parametrize(("layout", "choices", "side"), SETTINGS.values(), ids=SETTINGS.keys())
def test_masks_are_what_the_checkpoint_means(layout: dict, choices: dict, side: int) -> None:
    """An imported mixer gives the masks of a plain float64 implementation that reads the checkpoint's own keys."""
    state, images = checkpoint(**layout), pictures(2, side)
    lam, partner = torch.tensor([0.3, 0.9]), torch.tensor([1, 0])
    mixer = mixer_of(state, ImportChoices(normalisation="imagenet", **choices))

    masks = mixer.mix(images, lam=lam, partner=partner).masks

    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = naive_masks(
        state,
        (as_unit_float(images).double() - mean) / std,
        lam,
        partner,
        stage=mixer.spec.stage,
        lam_curve=choices.get("lam_curve", -1.0),
        upsampling=choices.get("upsampling", "bilinear" if layout["kind"] == "samix" else "nearest"),
    )
    assert expected.std(dim=(2, 3)).max() > 0.005  # else equality would say little
    torch.testing.assert_close(masks.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stem", [3, 7])
@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ({"depth": 18}, "resnet18"),
        ({"depth": 34}, "resnet34"),
        ({"depth": 50}, "resnet50"),
        ({"depth": 101}, "resnet101"),
        ({"depth": 152}, "resnet152"),
        ({"depth": 50, "groups": 32, "group_width": 4}, "resnext50_32x4d"),
        ({"depth": 101, "groups": 32, "group_width": 4}, "resnext101_32x4d"),
        ({"depth": 101, "groups": 32, "group_width": 8}, "resnext101_32x8d"),
    ],
)
def test_networks_are_recognised(shape: dict, name: str, stem: int) -> None:
    """Depth, groups and stem of the encoder show in its names and shapes."""
    state = {f"backbone_k.{key}": constant(key, size) for key, size in resnet_shapes(stem=stem, **shape).items()}

    backbone = recognise_backbone(state)

    assert backbone == BackboneSpec(name=name, stem="cifar" if stem == 3 else "imagenet")


def test_settings_of_samix_are_the_references(samix: State) -> None:
    """SAMix comes with fixed gamma, ELU, its curve and bilinear masks; nothing is constant near lam 0 and 1."""
    spec, weights = import_openmixup(samix, SAMIX_CIFAR)

    assert (spec.mode, spec.stage, spec.stride, spec.image_size, spec.mean) == ("openmixup", 2, 4, 32, CIFAR_MEAN)
    assert (spec.block.learnable_gamma, spec.block.activation, spec.block.lam_curve) == (False, "elu", 0.25)
    assert (spec.rendering.upsampling, spec.rendering.lam_margin) == ("bilinear", 0)
    assert weights["block.gamma"] == 1


@pytest.mark.parametrize(("kind", "encoding"), [("automix", "none"), ("automix concat", "concat")])
def test_settings_of_automix_are_the_references(kind: Any, encoding: str) -> None:
    """AutoMix comes with one query, linear content and nearest masks, and lambda where there are channels for it."""
    spec, _ = import_openmixup(checkpoint(kind, stem=7), IMAGENET)

    assert (spec.block.lam_encoding, spec.block.attention, spec.block.content) == (encoding, "cross", "linear")
    assert (spec.stage, spec.stride, spec.image_size, spec.mean) == (2, 16, 224, IMAGENET_MEAN)
    assert spec.rendering.upsampling == "nearest"


def test_a_mixer_takes_the_size_it_was_trained_on() -> None:
    """The many features of an early stage do not keep a mixer from its own images."""
    spec, _ = import_openmixup(checkpoint("automix", stem=7, stage=0), IMAGENET)

    assert (spec.image_size, spec.max_tokens) == (224, 56 * 56)


def test_choices_are_kept(samix: State) -> None:
    """What a person chooses is what the settings say."""
    choices = ImportChoices(
        normalisation="cifar", lam_curve=1.0, upsampling="nearest", stage=2, lam_margin=0.08, image_size=64
    )

    spec, _ = import_openmixup(samix, choices)

    assert (spec.block.lam_curve, spec.stage, spec.image_size) == (1.0, 2, 64)
    assert (spec.rendering.upsampling, spec.rendering.lam_margin) == ("nearest", 0.08)


def test_other_branches_have_no_influence(samix: State) -> None:
    """What the classifier, the heads and the aliases hold changes nothing, even if missing or not finite."""
    broken = {key: tensor.clone() for key, tensor in samix.items()}
    for key in only(samix, "backbone.", "backbone_q.", "head", "backbone_k.layer4."):
        broken[key] = torch.full((3,), torch.nan)

    spec, weights = import_openmixup(broken | only(samix, "backbone_k.layer4."), SAMIX_CIFAR)
    bare_spec, bare_weights = import_openmixup(only(samix, "backbone_k.", "mix_block."), SAMIX_CIFAR)

    assert spec == bare_spec
    assert all(torch.equal(weights[key], bare_weights[key]) for key in weights.keys() | bare_weights.keys())


def test_half_precision_weights_become_float32(samix: State) -> None:
    """A checkpoint saved in float16 makes a mixer that computes in float32."""
    _, weights = import_openmixup({key: t.half() if t.dim() else t for key, t in samix.items()}, SAMIX_CIFAR)

    assert {tensor.dtype for tensor in weights.values()} == {torch.float32, torch.int64}


@given(name=st.sampled_from(sorted(only(checkpoint("samix"), "mix_block.", "backbone_k.layer3.", "backbone_k.bn1"))))
@settings(deadline=None, max_examples=25)
def test_every_tensor_is_needed_in_its_shape(samix: State, name: str) -> None:
    """A checkpoint that lacks a tensor, or has it in another shape, is refused."""
    missing = {key: tensor for key, tensor in samix.items() if key != name}
    misshapen = {**samix, name: torch.ones(2, 3)}

    for spoilt in (missing, misshapen):
        with pytest.raises(InputError):
            import_openmixup(spoilt, SAMIX_CIFAR)


def spoil(**changes: Tensor | None) -> Callable[[State], State]:
    """Replace tensors of a checkpoint, `__` for the dots; None takes one away."""
    renamed = {key.replace("__", "."): tensor for key, tensor in changes.items()}
    return lambda state: {key: tensor for key, tensor in {**state, **renamed}.items() if tensor is not None}


def without(*prefixes: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if not key.startswith(prefixes)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("mix_block."), r"holds backbone\.\*, .* but no mixing block \(mix_block"),
        (without("backbone_k."), r"no momentum encoder \(backbone_k"),
        (lambda _: {}, "holds nothing but no mixing block"),
        (without("backbone_k.layer4."), r"\[2, 2, 2, 0\] basic blocks"),
        (without("backbone_k.conv1."), "lacks the tensor backbone_k.conv1.weight"),
        (without("backbone_k.layer2.1.bn2.running_var"), "lacks the tensor backbone_k.layer2.1.bn2.running_var"),
        (spoil(backbone_k__conv1__weight=torch.ones(64, 3, 5, 5)), "5 x 5 convolution"),
        (spoil(backbone_k__conv1__weight=torch.ones(64)), r"\[64\] and no convolution"),
        (spoil(backbone_k__layer2__0__conv1__weight=torch.ones(128, 64, 1, 1)), r"float32 \[128, 64, 1, 1\] where"),
        (spoil(backbone_k__bn1__bias=torch.full((64,), torch.nan)), "backbone_k.bn1.bias is not finite"),
        (spoil(backbone_k__layer3__0__se__weight=torch.ones(1)), "layer3.0.se.weight has no place in resnet18"),
        (spoil(backbone_k__cls_token=None, backbone_k__patch_embed__projection__bias=torch.ones(1)), "transformer"),
        (spoil(backbone_k__block1__layer__0__bn1__weight=torch.ones(16)), "Wide-ResNet"),
        (spoil(mix_block__value__weight=torch.ones(1, 256, 1, 1)), r"lam_concat_v"),
        (
            spoil(
                mix_block__value__weight=torch.ones(1, 33, 1, 1),
                mix_block__query__conv__weight=torch.ones(16, 33, 1, 1),
            ),
            r"takes 32 channels, its encoder's stages put out \[64, 128, 256, 512\]",
        ),
        (spoil(mix_block__key__conv__weight=torch.ones(128, 257, 1, 1)), "mixing block is mix_block.key.conv.weight"),
        (spoil(mix_block__value__bias=torch.ones(1, dtype=torch.int64)), r"int64 \[1\] where torch.float32 \[1\]"),
        (spoil(mix_block__query__conv__weight=torch.ones(300, 257, 1, 1)), r"query.conv.weight is .*\[300, 257"),
    ],
)
def test_other_checkpoints_are_refused(automix: State, change: Callable[[State], State], sentence: str) -> None:
    """A plain classifier, another layout or a damaged checkpoint is one sentence that names what was found."""
    spoilt = change(automix)

    with pytest.raises(ArtefactError, match=sentence) as refusal:
        import_openmixup(spoilt, CIFAR)

    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"lam_curve": None}, "give --lam-curve, the lam_mul_k of its config: 0.25 for CIFAR-100, -1 for ImageNet"),
        ({"normalisation": None}, "give --normalisation cifar"),
        ({"lam_curve": -0.5}, "got -0.5"),
        ({"stage": 1}, r"stage must be 2: .* \[64, 128, 256, 512\]; got 1"),
        ({"stage": 7}, "got 7"),
        ({"stage": -1}, "got -1"),
        ({"lam_margin": 0.6}, "got 0.6"),
        ({"image_size": 4}, "4 x 4"),
        ({"image_size": -1}, "got -1"),
    ],
)
def test_impossible_choices_are_refused(samix: State, choices: dict, sentence: str) -> None:
    """A choice that is missing, out of bounds or against the checkpoint is one sentence with the cure."""
    usual: dict[str, Any] = {"normalisation": "cifar", "lam_curve": 0.25}

    with pytest.raises(InputError, match=sentence) as refusal:
        import_openmixup(samix, ImportChoices(**usual | choices))

    assert not isinstance(refusal.value, ArtefactError)


def test_automix_needs_no_curve(automix: State) -> None:
    """A curve is asked for where lambda is bent, and nowhere else."""
    spec, _ = import_openmixup(automix, CIFAR)

    assert spec.block.lam_curve == -1
