"""Plans: who is mixed with whom and how much, drawn from explicit seeds or given by the caller."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samix.errors import BadBatch, ConfigError
from samix.mixing import plan as plan_module
from samix.mixing.batch import MixPlan
from samix.mixing.plan import derive_seed, draw_plan, generator_for, resolve_plan

SEEDS = st.integers(-(2**63), 2**63 - 1)


def is_permutation(partner: torch.Tensor) -> bool:
    return torch.equal(partner.sort().values, torch.arange(len(partner)))


@given(seed=SEEDS, batch_size=st.integers(1, 300), alpha=st.floats(1e-12, 1e6), per_sample=st.booleans())
def test_a_drawn_plan_is_a_permutation_with_shares(seed: int, batch_size: int, alpha: float, per_sample: bool) -> None:
    """Every drawn plan pairs each image once, with float32 shares in [0, 1], for tiny and huge alpha alike."""
    plan = draw_plan(batch_size, alpha=alpha, generator=generator_for(seed), per_sample=per_sample)

    assert is_permutation(plan.partner)
    assert plan.partner.dtype == torch.int64
    assert plan.lam.dtype == torch.float32
    assert plan.lam.shape == (batch_size,)
    assert ((plan.lam >= 0) & (plan.lam <= 1)).all()


@given(seed=SEEDS, per_sample=st.booleans())
def test_a_plan_is_a_function_of_its_seed(seed: int, per_sample: bool) -> None:
    """The same seed draws the same plan, and the global random state has no part in it."""
    before = torch.get_rng_state()

    first, second = (draw_plan(16, alpha=2.0, generator=generator_for(seed), per_sample=per_sample) for _ in range(2))

    assert torch.equal(first.lam, second.lam)
    assert torch.equal(first.partner, second.partner)
    assert torch.equal(torch.get_rng_state(), before)


@given(seed=SEEDS, batch_size=st.integers(2, 64))
def test_no_image_is_paired_with_itself_where_that_is_asked(seed: int, batch_size: int) -> None:
    """Without fixed points every partner is another image, each still once, and lam is what it is with them."""
    plan, usual = (
        draw_plan(batch_size, alpha=2.0, generator=generator_for(seed), no_fixed_points=no_fixed_points)
        for no_fixed_points in (True, False)
    )

    assert is_permutation(plan.partner)
    assert not (plan.partner == torch.arange(batch_size)).any()
    assert torch.equal(plan.lam, usual.lam)


def test_partners_without_fixed_points_are_still_drawn() -> None:
    """A batch of three has two such pairings, and both are drawn about equally often."""
    plans = [draw_plan(3, alpha=2.0, generator=generator_for(seed), no_fixed_points=True) for seed in range(400)]

    count = sum(plan.partner.tolist() == [1, 2, 0] for plan in plans)

    assert count == pytest.approx(200, abs=50)


def test_an_unlucky_batch_is_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every draw had a fixed point, each image is paired with the one before it."""
    monkeypatch.setattr(plan_module, "_REDRAWS", 0)

    plan = draw_plan(4, alpha=2.0, generator=generator_for(0), no_fixed_points=True)

    assert plan.partner.tolist() == [3, 0, 1, 2]


def test_an_image_alone_is_its_own_partner() -> None:
    """A batch of one has no other image, whatever is asked."""
    plan = draw_plan(1, alpha=2.0, generator=generator_for(0), no_fixed_points=True)

    assert plan.partner.tolist() == [0]


def test_one_lam_for_the_batch_or_one_for_each_image() -> None:
    """A batch shares one lam unless each image asks for its own."""
    shared = draw_plan(64, alpha=2.0, generator=generator_for(1))
    own = draw_plan(64, alpha=2.0, generator=generator_for(1), per_sample=True)

    assert len(shared.lam.unique()) == 1
    assert len(own.lam.unique()) == 64


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
def test_lam_follows_the_beta_distribution(alpha: float) -> None:
    """lam has the mean 1/2 and the variance 1 / (4 (2 alpha + 1)) of Beta(alpha, alpha)."""
    lam = draw_plan(20_000, alpha=alpha, generator=generator_for(5), per_sample=True).lam.double()

    assert lam.mean().item() == pytest.approx(0.5, abs=0.01)
    assert lam.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_a_tiny_alpha_takes_one_image_or_the_other() -> None:
    """For alpha near 0 lam is 0 or 1, half of the time each."""
    lam = draw_plan(2_000, alpha=1e-9, generator=generator_for(3), per_sample=True).lam

    assert set(lam.tolist()) == {0.0, 1.0}
    assert lam.mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf"), 1e308])
def test_an_alpha_that_cannot_be_drawn_from_is_refused(alpha: float) -> None:
    """An alpha that would give NaN or a biased lam is refused by value."""
    with pytest.raises(ConfigError, match=re.escape(f"got {alpha}; use")):
        draw_plan(4, alpha=alpha, generator=generator_for(0))


def test_an_empty_batch_has_no_plan() -> None:
    """A batch of no images is refused by value."""
    with pytest.raises(BadBatch, match="at least one image, got 0"):
        draw_plan(0, alpha=1.0, generator=generator_for(0))


@given(a=SEEDS, b=SEEDS)
def test_seeds_depend_on_every_part_and_its_place(a: int, b: int) -> None:
    """derive_seed tells (a, b) from (b, a), and fits a generator."""
    seed = derive_seed(a, b, "epoch")

    assert -(2**63) <= seed < 2**63
    assert (seed == derive_seed(b, a, "epoch")) == (a == b)
    assert seed != derive_seed(a, b)


def test_a_seed_counts_by_value_not_by_type() -> None:
    """A numpy integer seeds like the Python integer it equals; a fraction is no seed."""
    assert derive_seed(np.int64(7), "x") == derive_seed(7, "x")  # type: ignore[arg-type] - what np.arange hands out

    with pytest.raises(TypeError):
        derive_seed(7.5)  # type: ignore[arg-type]


def test_seeds_stay_what_they_are() -> None:
    """The hash of a seed is part of reproducibility: it is the same on every machine and in every version."""
    assert derive_seed(7) == 1686023384482870968
    assert derive_seed(7, 0, "shuffle") == -6186010976903720961


@given(lam=st.floats(0, 1, width=32), seed=SEEDS)
def test_what_the_caller_gives_is_kept_and_the_rest_is_drawn(lam: float, seed: int) -> None:
    """resolve_plan keeps a given lam, and draws the partner that the same seed draws without it."""
    drawn = resolve_plan(5, lam=None, partner=None, generator=generator_for(seed))

    plan = resolve_plan(5, lam=lam, partner=None, generator=generator_for(seed))

    assert plan.lam.tolist() == [lam] * 5
    assert torch.equal(plan.partner, drawn.partner)


def test_a_given_partner_is_kept_and_lam_is_drawn() -> None:
    """resolve_plan keeps a given partner of any integer kind as int64, and draws one lam."""
    plan = resolve_plan(3, lam=None, partner=torch.tensor([2, 0, 1], dtype=torch.int32), generator=generator_for(2))

    assert plan.partner.dtype == torch.int64
    assert plan.partner.tolist() == [2, 0, 1]
    assert len(plan.lam.unique()) == 1


def test_a_whole_plan_needs_no_seed() -> None:
    """With lam and partner given nothing is drawn."""
    plan = resolve_plan(3, lam=torch.tensor([0.1, 0.5, 1.0]), partner=torch.tensor([2, 0, 1]), generator=None)

    assert plan.lam.tolist() == pytest.approx([0.1, 0.5, 1.0])
    assert len(plan) == 3


@pytest.mark.parametrize(("lam", "partner"), [(None, None), (0.5, None), (None, torch.arange(3))])
def test_a_mix_that_cannot_be_repeated_is_refused(lam: float | None, partner: torch.Tensor | None) -> None:
    """Without a seed, both lam and partner must be given."""
    with pytest.raises(BadBatch, match="give seed=, or both"):
        resolve_plan(3, lam=lam, partner=partner, generator=None)


@pytest.mark.parametrize(
    ("lam", "complaint"),
    [
        (1.5, r"\[0, 1\], got 1\.5"),
        (-0.25, r"got -0\.25"),
        (float("nan"), "got nan"),
        (torch.tensor([0.5, 2.0, 0.5]), r"got 2\.0"),
        (torch.tensor([0.5, 0.5]), r"a number or \[3\], got \[2\]"),
        (torch.full((3, 1), 0.5), r"got \[3, 1\]"),
    ],
)
def test_a_wrong_lam_is_refused_by_value(lam: float | torch.Tensor, complaint: str) -> None:
    """A lam outside [0, 1] or of another length is refused, and the message holds it."""
    with pytest.raises(BadBatch, match=complaint):
        resolve_plan(3, lam=lam, partner=torch.arange(3), generator=None)


@pytest.mark.parametrize(
    ("partner", "complaint"),
    [
        (torch.tensor([0, 0, 1]), r"permutation of 0\.\.2, got \[0, 0, 1\]"),
        (torch.tensor([0, 1, 3]), r"got \[0, 1, 3\]"),
        (torch.tensor([-1, 1, 2]), r"got \[-1, 1, 2\]"),
        (torch.tensor([0, 1]), r"int64 \[3\], got torch.int64 \[2\]"),
        (torch.tensor([0.0, 1.0, 2.0]), r"got torch.float32"),
    ],
)
def test_a_wrong_partner_is_refused_by_value(partner: torch.Tensor, complaint: str) -> None:
    """Whatever is no permutation of the batch is refused, and the message holds it."""
    with pytest.raises(BadBatch, match=complaint):
        resolve_plan(3, lam=0.5, partner=partner, generator=None)


def test_a_long_wrong_partner_is_refused_in_one_sentence() -> None:
    """The message about a large batch stays readable."""
    with pytest.raises(BadBatch) as refusal:
        resolve_plan(4096, lam=0.5, partner=torch.zeros(4096, dtype=torch.int64), generator=None)

    assert len(str(refusal.value)) < 200


def test_a_plan_moves_as_one() -> None:
    """`to` moves both tensors and keeps their values."""
    plan = MixPlan(lam=torch.tensor([0.25]), partner=torch.tensor([0]))

    moved = plan.to(torch.device("meta"))

    assert (moved.lam.device.type, moved.partner.device.type) == ("meta", "meta")
