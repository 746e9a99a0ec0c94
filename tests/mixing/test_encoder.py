"""Encoders: a backbone up to one stage, and no further."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samix.errors import ConfigError
from samix.mixing.backbone import BackboneSpec, build_backbone
from samix.mixing.encoder import Encoder, Normalise, feature_index, num_feature_channels, stage_features
from samix.mixing.presets import CIFAR_MEAN, CIFAR_STD, HALF, TINY_RESNET, samix_spec

R18 = BackboneSpec(name="resnet18")
R18_CIFAR = BackboneSpec(name="resnet18", stem="cifar")
R50 = BackboneSpec(name="resnet50")
R50_CIFAR = BackboneSpec(name="resnet50", stem="cifar")


@pytest.mark.parametrize(
    ("backbone", "stage", "side", "shape"),
    [
        (R18_CIFAR, 0, 32, (64, 32, 32)),
        (R18_CIFAR, 1, 32, (128, 16, 16)),
        (R18_CIFAR, 2, 32, (256, 8, 8)),
        (R18_CIFAR, 3, 32, (512, 4, 4)),
        (R18_CIFAR, 2, 64, (256, 16, 16)),
        (R18, 0, 224, (64, 56, 56)),
        (R18, 1, 224, (128, 28, 28)),
        (R18, 2, 224, (256, 14, 14)),
        (R18, 3, 224, (512, 7, 7)),
        (R50, 1, 224, (512, 28, 28)),
        (R50, 2, 224, (1024, 14, 14)),
        (R50_CIFAR, 2, 32, (1024, 8, 8)),
    ],
)
def test_stages_have_the_published_shapes(
    backbone: BackboneSpec, stage: int, side: int, shape: tuple[int, int, int]
) -> None:
    """Stage features are those of the reference's table: stage 2 is the papers' l = 3."""
    with torch.device("meta"):  # shapes need no arithmetic
        encoder = Encoder.build(backbone, stage)

        features = encoder(torch.empty(1, 3, side, side))

    assert features.shape == (1, *shape)
    assert num_feature_channels(encoder.backbone, stage) == shape[0]


@pytest.mark.parametrize(
    ("stage", "kept"), [(0, {"layer1"}), (1, {"layer1", "layer2"}), (2, {"layer1", "layer2", "layer3"})]
)
def test_later_layers_are_not_stored(stage: int, kept: set[str]) -> None:
    """An encoder holds the stem and the layers up to its stage: neither later ones nor a classifier."""
    with torch.device("meta"):
        encoder = Encoder.build(R18, stage)

    assert {name.split(".")[1] for name in encoder.state_dict()} == {"conv1", "bn1"} | kept


def test_later_layers_do_not_run() -> None:
    """A whole classifier asked for one stage runs no later layer."""
    with torch.random.fork_rng(devices=[]):
        backbone = build_backbone(TINY_RESNET, num_classes=10).eval()
    ran: list[str] = []
    for name, module in backbone.named_children():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))

    stage_features(backbone, torch.zeros(1, 3, 32, 32), feature_index(backbone, 1))

    assert ran[-1] == "layer2"
    assert not {"layer3", "layer4", "global_pool", "fc"} & set(ran)


def test_an_encoder_computes_what_its_whole_backbone_computes() -> None:
    """Cutting a backbone changes no feature."""
    with torch.random.fork_rng(devices=[]):
        whole = build_backbone(TINY_RESNET, num_classes=0).eval()
        encoder = Encoder.build(TINY_RESNET, 2).eval()
    encoder.backbone.load_state_dict(
        {key: value for key, value in whole.state_dict().items() if not key.startswith("layer4")}
    )
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    features = encoder(images)

    by_hand = whole.act1(whole.bn1(whole.conv1(images)))  # type: ignore[operator]
    for layer in (whole.layer1, whole.layer2, whole.layer3):
        by_hand = layer(by_hand)  # type: ignore[operator]
    torch.testing.assert_close(features, by_hand)


@settings(deadline=None, max_examples=40)
@given(height=st.integers(8, 260), width=st.integers(8, 260), stem=st.sampled_from(["cifar", "imagenet"]))
def test_tokens_are_counted_before_they_are_made(height: int, width: int, stem) -> None:
    """The spec's count of tokens, on which admission rests, is that of the features, for odd sides too."""
    backbone = BackboneSpec(name="resnet18", stem=stem, layers=(1, 1, 1, 1), channels=(16, 16, 16, 16))
    spec = samix_spec(backbone, mean=HALF, std=HALF, image_size=32)
    with torch.device("meta"):
        features = Encoder.build(backbone, spec.stage).eval()(torch.empty(1, 3, height, width))

    tokens = spec.tokens(height, width)

    assert tokens == features.shape[2] * features.shape[3]


def test_normalising_subtracts_and_divides_each_channel() -> None:
    """Images in [0, 1] come out as (x - mean) / std of their channel, and neither is part of the weights."""
    normalise = Normalise(CIFAR_MEAN, CIFAR_STD)

    values = normalise(torch.full((1, 3, 2, 2), 0.5))

    expected = [(0.5 - mean) / std for mean, std in zip(CIFAR_MEAN, CIFAR_STD, strict=True)]
    assert values[0, :, 1, 1].tolist() == pytest.approx(expected)
    assert not normalise.state_dict()


def test_stages_follow_each_kind_of_backbone() -> None:
    """A stage is a stage also where timm counts no stem."""
    with torch.device("meta"):
        features = Encoder.build(BackboneSpec(name="convnext_atto"), 2)(torch.empty(1, 3, 224, 224))

    assert features.shape == (1, 160, 14, 14)


@pytest.mark.parametrize(
    ("backbone", "stage", "complaint"),
    [
        (R18, 4, r"stage must be 0\.\.3 for this backbone, got 4"),
        (R18, -1, "got -1"),
        (BackboneSpec(name="resnet1812"), 2, "knows no backbone 'resnet1812'; near it: resnet"),
        (BackboneSpec(name="hf-hub:somebody/model"), 2, "knows no backbone"),
        (BackboneSpec(name="convnext_atto", stem="cifar"), 2, "'cifar' is for ResNets"),
        (BackboneSpec(name="vit_tiny_patch16_224", layers=(1, 1, 1, 1)), 2, "takes no layers"),
    ],
)
def test_what_does_not_exist_is_refused(backbone: BackboneSpec, stage: int, complaint: str) -> None:
    """An unknown backbone, stage or stem is refused by value."""
    with torch.device("meta"), pytest.raises(ConfigError, match=complaint):
        Encoder.build(backbone, stage)


@pytest.mark.parametrize(
    "shape",
    [{"layers": (0, 1, 1, 1)}, {"layers": (10**9,) * 4}, {"channels": (16, 16)}, {"channels": (10**9, 1, 1, 1)}],
)
def test_shapes_nobody_can_build_are_refused(shape: dict) -> None:
    """Numbers of layers and channels are bounded, because a file may ask for them."""
    with pytest.raises(ConfigError, match=r"layers|channels"):
        BackboneSpec(**shape)
