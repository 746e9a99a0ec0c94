"""The mixing block, against an independent implementation and against what the papers promise of it."""

import numpy as np
import pytest
import torch
from naive_block import curve, naive_mask_logits
from torch import Tensor

from samix.errors import ConfigError
from samix.mixing.block import BlockSpec, MixingBlock, bend_lam
from samix.mixing.render import LOGIT_LIMIT

SETTINGS = {
    "paper": BlockSpec(),
    "openmixup cifar": BlockSpec(learnable_gamma=False, lam_curve=0.25, activation="elu"),
    "openmixup cub": BlockSpec(learnable_gamma=False, lam_curve=1.0, activation="elu", dropout=0.1),
    "automix concat": BlockSpec(lam_encoding="concat", attention="cross", content="linear"),
    "automix none": BlockSpec(lam_encoding="none", attention="cross", content="linear", reduction=4),
    "cross multiply": BlockSpec(attention="cross", reduction=1),
}
every_setting = pytest.mark.parametrize("spec", SETTINGS.values(), ids=SETTINGS.keys())

LAM = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0])
PARTNER = torch.tensor([3, 0, 2, 4, 1])


def block_of(spec: BlockSpec, channels: int = 12) -> MixingBlock:
    """A block in evaluation mode whose weights, statistics and gamma all matter."""
    generator = torch.Generator().manual_seed(1)
    block = MixingBlock(spec, channels)
    with torch.no_grad():
        for name, value in block.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0, generator=generator)
            elif value.is_floating_point() and name != "gamma":
                value.normal_(0, 0.5, generator=generator)
        if spec.learnable_gamma:
            block.gamma.fill_(0.6)
    return block.eval()


def features_of(batch_size: int = 5, channels: int = 12, height: int = 4, width: int = 3) -> Tensor:
    return torch.randn(batch_size, channels, height, width, generator=torch.Generator().manual_seed(2))


@every_setting
def test_it_computes_what_the_papers_describe(spec: BlockSpec) -> None:
    """Logits equal those of a plain float64 implementation, for the paper's, the reference's and AutoMix's settings."""
    block, features = block_of(spec), features_of()
    weights = {name: value.numpy().astype(np.float64) for name, value in block.state_dict().items()}

    logits = block(features, LAM, PARTNER)

    expected = naive_mask_logits(spec, weights, features.numpy(), LAM.numpy(), PARTNER.numpy())
    torch.testing.assert_close(logits.detach().double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-4)
    assert logits.std() > 0.05  # else equality would say little


@pytest.mark.parametrize(
    ("k", "bent"),
    [
        (0.25, [0.1823, 0.3571, 0.3960, 0.6429]),
        (1.0, [0.1360, 0.2969, 0.3420, 0.7031]),
        (-1.0, [0.1, 0.25, 0.3, 0.75]),
    ],
)
def test_the_curve_has_the_published_values(k: float, bent: list[float]) -> None:
    """lam is bent to the values the reference prints."""
    values = bend_lam(torch.tensor([0.1, 0.25, 0.3, 0.75]), k)

    assert values.tolist() == pytest.approx(bent, abs=5e-5)


@pytest.mark.parametrize("k", [-1.0, 0.0, 0.25, 1.0, 10.0, 50.0])
def test_the_curve_is_symmetric_and_keeps_its_ends(k: float) -> None:
    """The curve maps 0 to 0 and 1 to 1, is symmetric about 1/2, never falls, and is clipped at k = 10."""
    lam = torch.linspace(0, 1, 101)

    bent = bend_lam(lam, k)

    assert bent[[0, -1]].tolist() == pytest.approx([0, 1], abs=1e-6)
    torch.testing.assert_close(bent + bent.flip(0), torch.ones(101))
    assert (bent.diff() > -1e-6).all()
    torch.testing.assert_close(bent, torch.tensor([curve(value, min(k, 10)) for value in lam.tolist()]))


@every_setting
def test_permuting_a_batch_permutes_its_masks(spec: BlockSpec) -> None:
    """The order of the images in a batch has no influence on any mask."""
    block, features = block_of(spec), features_of()
    order = torch.tensor([4, 2, 0, 1, 3])
    place = order.argsort()

    permuted = block(features[order], LAM[order], place[PARTNER[order]])

    torch.testing.assert_close(permuted, block(features, LAM, PARTNER)[order], atol=1e-5, rtol=1e-5)


@every_setting
def test_each_image_has_its_own_lam(spec: BlockSpec) -> None:
    """A batch with one lam for each image gives what each pair gives alone with its lam."""
    block, features = block_of(spec), features_of()

    together = block(features, LAM, PARTNER)

    for index, other in enumerate(PARTNER.tolist()):
        pair = features[[index, other]]
        alone = block(pair, torch.stack([LAM[index], torch.tensor(0.5)]), torch.tensor([1, 0]))
        torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=1e-5)


@every_setting
def test_lam_matters_where_it_is_encoded(spec: BlockSpec) -> None:
    """lam changes the masks, except where AutoMix leaves it out."""
    block, features = block_of(spec), features_of()

    low, high = (block(features, torch.full((5,), lam), PARTNER) for lam in (0.1, 0.9))

    assert torch.equal(low, high) == (spec.lam_encoding == "none")


@every_setting
def test_half_precision_training_stays_in_float32(spec: BlockSpec) -> None:
    """Features of 1e3 under bfloat16 autocast give float32, finite, bounded logits: the same as without autocast."""
    block, features = block_of(spec), features_of() * 1e3

    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = block(features, LAM, PARTNER)

    assert logits.dtype == torch.float32
    assert (logits.abs() <= LOGIT_LIMIT).all()  # False for NaN
    assert torch.equal(logits, block(features, LAM, PARTNER))


def test_half_precision_features_are_taken() -> None:
    """What an autocast encoder hands over in bfloat16 is computed on in float32."""
    block, features = block_of(BlockSpec()), features_of().bfloat16()

    logits = block(features, LAM, PARTNER)

    assert torch.equal(logits, block(features.float(), LAM, PARTNER))


def test_gamma_starts_at_zero_learns_and_stays_in_its_interval() -> None:
    """The paper's gamma starts at 0, gets a gradient, and projection brings it back into [0, 1]."""
    block = block_of(BlockSpec())
    start = MixingBlock(BlockSpec(), 12).gamma.item()

    block(features_of(), LAM, PARTNER).sum().backward()
    projected = []
    for stepped in (-0.3, 0.4, 1.7):
        torch.nn.init.constant_(block.gamma, stepped)
        block.project()
        projected.append(block.gamma.item())

    assert start == 0
    assert block.gamma.grad is not None
    assert block.gamma.grad != 0
    assert projected == pytest.approx([0, 0.4, 1])


def test_a_fixed_gamma_is_one_and_does_not_learn() -> None:
    """The reference's gamma is 1 and no parameter of the optimiser."""
    block = MixingBlock(BlockSpec(learnable_gamma=False), 12)

    assert block.gamma.item() == 1
    assert not block.gamma.requires_grad


@pytest.mark.parametrize(
    ("spec", "channels", "published"),
    [
        (BlockSpec(), 256, 164_480),
        (BlockSpec(), 1024, 2_624_000),
        (BlockSpec(lam_encoding="none", attention="cross", content="linear"), 256, 33_153),
    ],
)
def test_it_is_as_large_as_published(spec: BlockSpec, channels: int, published: int) -> None:
    """The number of parameters is the reference's, and gamma."""
    block = MixingBlock(spec, channels)

    assert sum(parameter.numel() for parameter in block.parameters()) == published + 1


@pytest.mark.parametrize("channels", [64, 256])
def test_training_starts_as_an_even_blend(channels: int) -> None:
    """A new block's masks lie within 0.50 +- 0.02."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, channels, 8, 8, generator=generator).relu()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        logits = MixingBlock(BlockSpec(), channels).train()(features, LAM[:4], torch.tensor([1, 0, 3, 2]))

    assert ((logits.sigmoid() - 0.5).abs() < 0.02).all()


def test_cross_attention_shares_one_projection() -> None:
    """AutoMix's query and key are one convolution: one set of tensors, in training and in a file."""
    block = block_of(SETTINGS["automix concat"])

    assert {name for name in block.state_dict() if name != "gamma"} == {
        "query.weight",
        "query.bias",
        "content.weight",
        "content.bias",
    }


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"lam_encoding": "concat"}, "needs attention 'cross'"),
        ({"lam_curve": -0.5}, "got -0.5"),
        ({"lam_curve": -1 / 3}, "lam_curve"),
        ({"lam_curve": float("nan")}, "got nan"),
        ({"reduction": 0}, r"1\.\.64, got 0"),
        ({"dropout": 1.0}, r"\[0, 1\), got 1.0"),
        ({"dropout": -0.1}, "got -0.1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, complaint: str) -> None:
    """A setting without a meaning is refused by value when it is written."""
    with pytest.raises(ConfigError, match=complaint):
        BlockSpec(**settings)
