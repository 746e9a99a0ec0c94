"""The mixing block, against an independent implementation and against what the papers promise of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_block import curve, naive_mask_logits
from torch import Tensor, nn

from samix.errors import ConfigError
from samix.mixing.block import BlockSpec, MixingBlock, attend, bend_lam
from samix.mixing.render import LOGIT_LIMIT

SETTINGS = {
    "paper": BlockSpec(),
    "openmixup cifar": BlockSpec(learnable_gamma=False, lam_curve=0.25, activation="elu"),
    "openmixup cub": BlockSpec(learnable_gamma=False, lam_curve=1.0, activation="elu", dropout=0.1),
    "automix concat": BlockSpec(lam_encoding="concat", attention="cross", content="linear"),
    "automix none": BlockSpec(lam_encoding="none", attention="cross", content="linear", reduction=4),
    "cross multiply": BlockSpec(attention="cross", reduction=1),
}
HALVES = [torch.bfloat16, torch.float16]
some_spec = st.sampled_from(list(SETTINGS.values()))
some_lam = st.floats(0, 1, width=32)
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


@given(spec=some_spec, partner=st.permutations(range(5)), order=st.permutations(range(5)), data=st.data())
@settings(deadline=None, max_examples=40)
def test_permuting_a_batch_permutes_its_masks(
    spec: BlockSpec, partner: list[int], order: list[int], data: st.DataObject
) -> None:
    """The order of the images in a batch has no influence on any mask."""
    block, features = block_of(spec), features_of()
    lam = torch.tensor(data.draw(st.lists(some_lam, min_size=5, max_size=5)))
    paired, place = torch.tensor(partner), torch.tensor(order).argsort()

    permuted = block(features[order], lam[order], place[paired[order]])

    torch.testing.assert_close(permuted, block(features, lam, paired)[order], atol=1e-5, rtol=1e-5)


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
def test_one_lam_serves_a_batch(spec: BlockSpec) -> None:
    """One number, or a tensor of one, means that lam for every image."""
    block, features = block_of(spec), features_of()

    each = block(features, torch.full((5,), 0.3), PARTNER)

    assert torch.equal(block(features, 0.3, PARTNER), each)
    assert torch.equal(block(features, torch.tensor(0.3), PARTNER), each)


@given(spec=some_spec, lam=some_lam, height=st.integers(1, 5), width=st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_maps_explain_the_logits(spec: BlockSpec, lam: float, height: int, width: int) -> None:
    """Attention rows sum to 1, what they carry of the content is the partner's logits, and a pair's masks sum to 1."""
    block, features = block_of(spec), features_of(height=height, width=width)

    maps = block.maps(features, lam, PARTNER)

    num_tokens = height * width
    carried = torch.bmm(maps.attention, maps.content.view(5, num_tokens, 1)).view_as(maps.logits)
    assert maps.attention.shape == (5, num_tokens, num_tokens)
    assert torch.equal(maps.logits, block(features, lam, PARTNER))
    torch.testing.assert_close(maps.attention.sum(2), torch.ones(5, num_tokens))
    torch.testing.assert_close(maps.logits.sigmoid() + carried.sigmoid(), torch.ones_like(carried))


def test_maps_show_the_partner() -> None:
    """The content is that of each image's partner, scaled by its share."""
    block, features = block_of(SETTINGS["automix none"]), features_of()

    maps = block.maps(features, LAM, PARTNER)

    torch.testing.assert_close(maps.content, block.content(features)[PARTNER])


def test_attention_looks_where_query_and_key_agree() -> None:
    """Row n of the weights belongs to feature n of the query; a key that matches it best gets most."""
    token = torch.eye(4).view(1, 4, 2, 2) * 20

    weights = attend(token, token.flip(3))

    assert weights.argmax(2).tolist() == [[1, 0, 3, 2]]


@every_setting
def test_lam_matters_where_it_is_encoded(spec: BlockSpec) -> None:
    """lam changes the masks, except where AutoMix leaves it out."""
    block, features = block_of(spec), features_of()

    low, high = (block(features, torch.full((5,), lam), PARTNER) for lam in (0.1, 0.9))

    assert torch.equal(low, high) == (spec.lam_encoding == "none")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@every_setting
def test_autocast_changes_nothing(spec: BlockSpec, dtype: torch.dtype) -> None:
    """Features of 1e3 under autocast give the float32, bounded logits they give without, and finite gradients."""
    block, features = block_of(spec), features_of() * 1e3
    plain = block(features, LAM, PARTNER)

    with torch.autocast("cpu", dtype=dtype):
        logits = block(features, LAM, PARTNER)
    logits.sum().backward()

    assert logits.dtype == torch.float32
    assert (logits.abs() <= LOGIT_LIMIT).all()  # False for NaN
    assert torch.equal(logits, plain)
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@every_setting
def test_a_model_in_half_precision_keeps_its_block_in_float32(spec: BlockSpec, dtype: torch.dtype) -> None:
    """A network cast to half precision hands over features of 1e3; weights and logits lose nothing."""
    block, features = block_of(spec), (features_of() * 1e3).to(dtype).requires_grad_()
    plain = block(features.detach().float(), LAM, PARTNER)
    weights = {name: tensor.clone() for name, tensor in block.state_dict().items()}

    model = nn.Sequential(nn.Linear(2, 2), block).to(dtype)
    logits = block(features, LAM, PARTNER)
    logits.sum().backward()

    assert next(model.parameters()).dtype == dtype
    assert all(torch.equal(tensor, weights[name]) for name, tensor in block.state_dict().items())
    assert torch.equal(logits, plain)
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_a_block_moves_and_widens_as_any_module() -> None:
    """Only half precision is refused: other dtypes and devices are taken."""
    block = MixingBlock(BlockSpec(), 12)

    assert {parameter.dtype for parameter in block.double().parameters()} == {torch.float64}
    assert {parameter.device.type for parameter in block.to("meta").parameters()} == {"meta"}


@every_setting
def test_gradients_reach_what_learns(spec: BlockSpec) -> None:
    """Every weight gets a gradient, gamma where it learns and scales lam, and nothing else does."""
    block, features = block_of(spec).train(), features_of()

    block(features, LAM, PARTNER).square().sum().backward()

    learning = {name for name, parameter in block.named_parameters() if parameter.requires_grad}
    reached = {name for name, parameter in block.named_parameters() if parameter.grad is not None}
    moved = {
        name for name, parameter in block.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    weights = {name for name, _ in block.named_parameters()} - {"gamma"}
    learns_gamma = spec.lam_encoding == "multiply" and spec.learnable_gamma
    assert learning == reached == moved == weights | ({"gamma"} if learns_gamma else set())


def test_gradients_reach_the_features_of_both_images() -> None:
    """A mask depends on its own image and on its partner, and on no other image of the batch."""
    block, features = block_of(BlockSpec()), features_of().requires_grad_()

    block(features, LAM, PARTNER)[1].sum().backward()

    assert features.grad is not None
    assert features.grad.flatten(1).any(1).nonzero().flatten().tolist() == [0, 1]


def test_dropout_acts_on_the_content_in_training_alone() -> None:
    """In training a share of the content's features is zero and the rest is scaled up; in evaluation none is."""
    block = block_of(BlockSpec(dropout=0.5, activation="elu"))
    features = features_of(height=20, width=20)
    full = block.maps(features, LAM, PARTNER).content

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block.content.get_submodule("4").train()
        dropped = block.maps(features, LAM, PARTNER).content

    kept = dropped != 0
    assert 0.45 < kept.float().mean() < 0.55
    torch.testing.assert_close(dropped[kept], 2 * full[kept])


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
        ({"dropout": 0.1, "content": "linear"}, "dropout is for content 'nonlinear', got 0.1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, complaint: str) -> None:
    """A setting without a meaning is refused by value when it is written."""
    with pytest.raises(ConfigError, match=complaint):
        BlockSpec(**settings)
