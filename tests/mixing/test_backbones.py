"""Backbones beyond timm's ResNets: Wide-ResNets, vision transformers, and whatever timm and torchvision have."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from samix.errors import BadBatch, ConfigError
from samix.mixing.artefact import load_mixer, save_artefact
from samix.mixing.backbone import BackboneSpec, build_backbone
from samix.mixing.batch import MixPlan
from samix.mixing.encoder import Encoder, feature_index, num_feature_channels, stage_features
from samix.mixing.frozen import MaskNet, random_mixer
from samix.mixing.presets import (
    DEIT_SMALL,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    RESNET34,
    RESNET101,
    RESNEXT50,
    RESNEXT50_CIFAR,
    SWIN_TINY,
    TINY_RESNET,
    WRN_28_8,
    deit_small_spec,
    samix_spec,
    swin_tiny_spec,
    wrn_28_8_spec,
)

SMALL_WRN = BackboneSpec(name="wide_resnet10_1")
SMALL_VIT = BackboneSpec(name="vit_tiny_patch16_224")
SMALL_TORCHVISION = BackboneSpec(name="torchvision/shufflenet_v2_x0_5")
SHIFTED = BackboneSpec(name="torchvision/swin_t")


def named(name: str, stem: str = "imagenet") -> BackboneSpec:
    return BackboneSpec(name=name, stem=stem)  # type: ignore[arg-type]


SHAPES = [
    (WRN_28_8, 0, 32, (128, 32, 32)),
    (WRN_28_8, 1, 32, (256, 16, 16)),
    (WRN_28_8, 2, 32, (512, 8, 8)),
    (DEIT_SMALL, 5, 224, (384, 14, 14)),
    (SWIN_TINY, 2, 224, (384, 14, 14)),
    (RESNEXT50_CIFAR, 2, 32, (1024, 8, 8)),
    (named("vgg11"), 2, 224, (512, 14, 14)),
    (named("visformer_tiny"), 1, 224, (192, 14, 14)),
    (named("torchvision/resnet18", "cifar"), 2, 32, (256, 8, 8)),
    (named("torchvision/regnet_x_400mf"), 2, 224, (160, 14, 14)),
    (named("torchvision/vgg11"), 2, 224, (512, 14, 14)),
    (named("torchvision/squeezenet1_1"), 3, 224, (512, 13, 13)),
    *(
        pytest.param(spec, stage, side, shape, marks=pytest.mark.slow)
        for spec, stage, side, shape in (
            (RESNET34, 2, 224, (256, 14, 14)),
            (RESNET101, 2, 224, (1024, 14, 14)),
            (RESNEXT50, 2, 224, (1024, 14, 14)),
            (RESNEXT50_CIFAR, 2, 64, (1024, 16, 16)),
            (named("convnext_tiny"), 2, 224, (384, 14, 14)),
            (named("efficientnet_b0"), 2, 224, (112, 14, 14)),
            (named("mobilenetv3_small_100"), 2, 224, (48, 14, 14)),
            (named("regnety_004"), 2, 224, (208, 14, 14)),
            (named("densenet121"), 1, 224, (512, 28, 28)),
            (named("torchvision/resnet18"), 2, 224, (256, 14, 14)),
            (named("torchvision/mobilenet_v2"), 2, 224, (96, 14, 14)),
            (named("torchvision/convnext_tiny"), 2, 224, (384, 14, 14)),
            (named("torchvision/densenet121"), 1, 224, (512, 28, 28)),
            (named("torchvision/efficientnet_b0"), 2, 224, (112, 14, 14)),
            (named("torchvision/googlenet"), 2, 224, (832, 14, 14)),
            (named("torchvision/regnet_y_400mf"), 2, 224, (208, 14, 14)),
            (named("torchvision/shufflenet_v2_x0_5"), 2, 224, (96, 14, 14)),
        )
    ),
]


def random_images(side: int) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def whole_and_cut(spec: BackboneSpec, stage: int) -> tuple[nn.Module, Encoder]:
    """Build a classifier, and the encoder that holds its weights up to a stage."""
    with torch.random.fork_rng(devices=[]):
        whole = build_backbone(spec, num_classes=10).eval()
        encoder = Encoder.build(spec, stage).eval()
    weights = whole.state_dict()
    encoder.backbone.load_state_dict({key: weights[key] for key in encoder.backbone.state_dict()})
    return whole, encoder


def run_watched(network: nn.Module, index: int, images: Tensor) -> tuple[Tensor, set[str]]:
    """Compute a feature; return also the names of the modules with weights of their own that ran."""
    ran: set[str] = set()
    for name, module in network.named_modules():
        if module._parameters:
            module.register_forward_hook(lambda *_, name=name: ran.add(name))
    return stage_features(network, images, index), ran


@pytest.mark.parametrize(("spec", "stage", "side", "shape"), SHAPES)
def test_an_encoder_ends_at_its_stage(spec: BackboneSpec, stage: int, side: int, shape: tuple[int, int, int]) -> None:
    """Features are the published grids; the layers held are those that run, and a whole classifier runs the same."""
    images = torch.empty(2, 3, side, side, device="meta")
    with torch.device("meta"):  # shapes need no arithmetic
        whole, encoder = build_backbone(spec, num_classes=10), Encoder.build(spec, stage)
    held = {name for name, module in encoder.backbone.named_modules() if module._parameters}

    features, ran = run_watched(encoder.backbone, encoder.index, images)
    _, ran_in_whole = run_watched(whole, feature_index(whole, stage), images)

    assert features.shape == (2, *shape)
    assert num_feature_channels(whole, stage) == shape[0]
    assert ran == ran_in_whole == held - {""}  # a transformer's positions lie at its root, which is not called
    assert encoder.backbone.state_dict().keys() < whole.state_dict().keys()


@pytest.mark.parametrize(("spec", "stage", "side", "shape"), SHAPES)
def test_settings_know_the_stride(spec: BackboneSpec, stage: int, side: int, shape: tuple[int, int, int]) -> None:
    """Settings made for a backbone fit the network that is built from them, and count its features."""
    mixer = samix_spec(spec, mean=HALF, std=HALF, image_size=side, stage=stage)

    with torch.device("meta"):
        MaskNet.build(mixer)

    assert round(mixer.tokens(side, side) ** 0.5) in (shape[1], shape[1] + 1)  # SqueezeNet rounds down


def test_a_grid_of_torchvision_has_its_channels_first() -> None:
    """A Swin transformer of torchvision computes with channels last; what comes out is [B, C, h, w] all the same."""
    with torch.device("meta"):
        features = Encoder.build(SHIFTED, 2)(torch.empty(2, 3, 192, 160))

    assert features.shape == (2, 384, 12, 10)


@pytest.mark.parametrize(
    ("spec", "stage", "side"),
    [
        (SMALL_WRN, 1, 32),
        (SMALL_VIT, 5, 224),
        (SMALL_TORCHVISION, 2, 64),
        pytest.param(SHIFTED, 1, 64, marks=pytest.mark.slow),
        pytest.param(named("torchvision/regnet_y_400mf"), 2, 64, marks=pytest.mark.slow),
    ],
)
def test_an_encoder_computes_what_its_whole_backbone_computes(spec: BackboneSpec, stage: int, side: int) -> None:
    """Cutting a backbone changes no feature, and the whole one still classifies."""
    whole, encoder = whole_and_cut(spec, stage)
    images = random_images(side)

    with torch.no_grad():
        features = encoder(images)
        expected = stage_features(whole, images, feature_index(whole, stage))
        logits = whole(images)

    assert torch.equal(features, expected)
    assert features.std() > 0
    assert logits.shape == (2, 10)


def test_a_chain_follows_what_torchvision_computes() -> None:
    """The features of a torchvision network are those its own forward pass goes through."""
    whole, _ = whole_and_cut(SMALL_TORCHVISION, 3)
    network, images = whole.get_submodule("network"), random_images(64)

    with torch.no_grad():
        last = stage_features(whole, images, feature_index(whole, 3))
        logits = network.get_submodule("fc")(last.mean(dim=(2, 3)))

        assert torch.equal(logits, whole(images))


def test_wide_resnets_have_the_published_sizes() -> None:
    """WRN-28-10, 16-8 and 40-4 have 36.5, 11.0 and 8.9 million weights (their tables 3 and 4)."""
    with torch.device("meta"):
        networks = [build_backbone(named(f"wide_resnet{size}"), 10) for size in ("28_10", "16_8", "40_4")]

    millions = [sum(parameter.numel() for parameter in network.parameters()) / 1e6 for network in networks]

    assert [round(number, 1) for number in millions] == [36.5, 11.0, 8.9]


def test_a_wide_resnet_learns_residuals() -> None:
    """With its second convolutions at zero a stage hands on its shortcut alone: the first block's."""
    with torch.random.fork_rng(devices=[]):
        network = build_backbone(named("wide_resnet16_1"), num_classes=10).eval()
    stage, images = network.get_submodule("stages.1"), random_images(8)
    for block in stage.children():
        nn.init.zeros_(block.get_parameter("conv2.weight"))

    with torch.no_grad():
        before = stage_features(network, images, feature_index(network, 0))
        after = stage_features(network, images, feature_index(network, 1))
        first = stage[0]  # type: ignore[index]
        shortcut = first.shortcut(torch.relu(first.norm1(before)))

    torch.testing.assert_close(after, shortcut)


def test_a_wide_resnet_splits_like_timms_networks() -> None:
    """Body and head make up the network; the head pools alone where no logits are wanted, or no classes known."""
    with torch.random.fork_rng(devices=[]):
        network = build_backbone(SMALL_WRN, num_classes=10).eval()
        headless = build_backbone(SMALL_WRN, num_classes=0).eval()
    images = random_images(16)

    with torch.no_grad():
        features = network.forward_features(images)  # type: ignore[operator]
        pooled = network.forward_head(features, pre_logits=True)  # type: ignore[operator]
        logits = network(images)

    assert pooled.shape == (2, network.num_features) == headless(images).shape
    torch.testing.assert_close(network.get_submodule("fc")(pooled), logits)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow)]
)
def test_any_size_changes_nothing_at_the_published_one(name: str) -> None:
    """A vision transformer that takes images of any size computes what timm's does at its own."""
    import timm

    with torch.random.fork_rng(devices=[]):
        timms = timm.create_model(name, num_classes=10).eval()
        ours = build_backbone(named(name), num_classes=10).eval()
    ours.load_state_dict(timms.state_dict())
    images = random_images(224)

    with torch.no_grad():
        assert torch.equal(ours(images), timms(images))


@pytest.fixture(scope="module", params=[SMALL_VIT, SWIN_TINY], ids=lambda spec: spec.name)
def transformer(request: pytest.FixtureRequest) -> Encoder:
    with torch.device("meta"):
        return Encoder.build(request.param, 1)


@settings(deadline=None, max_examples=20)
@given(height=st.integers(8, 100), width=st.integers(8, 100))
def test_vision_transformers_take_images_of_any_size(transformer: Encoder, height: int, width: int) -> None:
    """ViT and Swin pad an image to whole patches, so that tokens can be counted before they are made."""
    stride = transformer.backbone.feature_info[transformer.index]["reduction"]  # type: ignore[index]

    features = transformer(torch.empty(1, 3, height, width, device="meta"))

    assert features.shape[2:] == (-(-height // stride), -(-width // stride))


def test_presets_are_those_of_the_papers() -> None:
    """A Wide-ResNet is mixed at 16 x 16, DeiT and Swin at 14 x 14, at the sizes they are trained on."""
    specs = [wrn_28_8_spec(), deit_small_spec(), swin_tiny_spec()]

    assert [spec.tokens(spec.image_size, spec.image_size) for spec in specs] == [16 * 16, 14 * 14, 14 * 14]


def test_a_network_of_one_size_says_so() -> None:
    """Where a network takes images of one size only, settings allow that one, and others are refused by value."""
    spec = samix_spec(named("visformer_tiny"), mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=224, stage=1)
    with torch.device("meta"):
        encoder = Encoder.build(spec.backbone, spec.stage)

        with pytest.raises(BadBatch, match="images are 224 x 192, this backbone takes 224 x 224 only"):
            encoder(torch.empty(1, 3, 224, 192))

    with pytest.raises(BadBatch, match="this mixer takes sides of 224 to 224 pixels"):
        spec.check_size(224, 192)


def test_settings_draw_no_random_number() -> None:
    """Asking a network for its stride leaves the global random state as it was, also where it must be built."""
    before = torch.get_rng_state()

    samix_spec(named("torchvision/regnet_x_400mf"), mean=HALF, std=HALF, image_size=64)

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("spec", [TINY_RESNET, RESNEXT50_CIFAR, WRN_28_8], ids=lambda spec: spec.name)
def test_settings_of_resnets_are_cheap(spec: BackboneSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes name their networks at import, which must not load timm and torchvision."""
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)

    mixer = samix_spec(spec, mean=HALF, std=HALF, image_size=32, stage=1)

    assert mixer.stride == 2


@pytest.mark.parametrize(("spec", "stage"), [(SMALL_WRN, 1), (SMALL_TORCHVISION, 2), (SMALL_VIT, 5)])
def test_artefacts_of_every_kind_come_back(spec: BackboneSpec, stage: int, tmp_path: Path) -> None:
    """A mixer is saved and loaded whatever its encoder is cut from, and gives the same masks."""
    mixer = random_mixer(samix_spec(spec, mean=HALF, std=HALF, image_size=32, stage=stage), seed=0, name="any")
    plan = MixPlan(lam=torch.tensor([0.3, 0.6]), partner=torch.tensor([1, 0]))
    save_artefact(tmp_path / "any.safetensors", mixer, {})

    loaded = load_mixer(tmp_path / "any.safetensors")

    assert loaded.version == mixer.version
    assert torch.equal(loaded.mask_logits(random_images(32), plan), mixer.mask_logits(random_images(32), plan))


@pytest.mark.parametrize("spec", [SMALL_WRN, SMALL_TORCHVISION, SMALL_VIT], ids=lambda spec: spec.name)
def test_kernels_lie_channels_last(spec: BackboneSpec) -> None:
    """Convolutions are stored the way kernels want them, whoever built the network."""
    with torch.random.fork_rng(devices=[]):
        kernels = [value for value in build_backbone(spec, num_classes=10).parameters() if value.dim() == 4]

    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (named("torchvision/resnet19"), "torchvision knows no backbone 'resnet19'; near it: resnet101"),
        (named("torchvision/../resnet18"), "torchvision knows no backbone"),
        (named("torchvision/vit_b_16"), "vit_b_16 cannot be an encoder; use one of timm's, such as 'vit_small_patch16"),
        (named("torchvision/mnasnet0_5"), "such as 'mnasnet_100'"),
        (named("torchvision/vgg11", "cifar"), "'cifar' is for ResNets"),
        (BackboneSpec(name="torchvision/resnet18", layers=(1, 1, 1, 1)), "takes no layers and channels"),
        (BackboneSpec(name="wide_resnet28_8", channels=(1, 1, 1, 1)), "takes no layers and channels"),
        (named("wide_resnet28_8", "cifar"), "leave it at 'imagenet', which keeps the stem as it is"),
        (named("wide_resnet29_8"), "knows no backbone 'wide_resnet29_8'"),
        (named("wide_resnet4_8"), "knows no backbone"),
        (named("wide_resnet28_0"), "knows no backbone"),
        (named("wide_resnet1000000_8"), "knows no backbone"),
        (named("resnet18.a1_in1k"), "knows no backbone 'resnet18.a1_in1k'; near it: resnet"),
        (named("vit_base_patch16_224_sam"), "knows no backbone"),
        (named("resnet18./etc"), "knows no backbone"),
        (named("local-dir:/tmp/resnet18"), "knows no backbone"),
        (named("hf-hub:somebody/resnet18"), "knows no backbone"),
        (named(""), "knows no backbone"),
    ],
    ids=lambda value: value.name if isinstance(value, BackboneSpec) else "",
)
def test_what_cannot_be_built_is_refused(spec: BackboneSpec, complaint: str) -> None:
    """A name, stem or shape that no network has is refused by value; none leads to the network or the disk."""
    with torch.device("meta"), pytest.raises(ConfigError, match=complaint):
        build_backbone(spec, num_classes=10)


def test_a_network_without_stages_is_refused() -> None:
    """A network that does not tell of its features cannot become an encoder."""
    with pytest.raises(ConfigError, match="Linear cannot be cut into stages"):
        feature_index(nn.Linear(2, 2), 0)


def test_timms_wide_resnet_is_another() -> None:
    """wide_resnet50_2 is timm's ResNet-50 with wide bottlenecks."""
    with torch.device("meta"):
        network = build_backbone(named("wide_resnet50_2"), num_classes=10)

    assert type(network).__module__.startswith("timm.")
