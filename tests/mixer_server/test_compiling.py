import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from serving import tiny_mixer

from mixer_server.engine.compiling import PARTS, compile_encoder, cut
from samix.mixing.batch import MixPlan
from samix.mixing.frozen import FrozenMixer


def logits_of(mixer: FrozenMixer, num_images: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_images)
    images = torch.randint(0, 256, (num_images, 3, side, side), dtype=torch.uint8, generator=generator)
    plan = MixPlan(lam=torch.linspace(0.1, 0.9, num_images), partner=torch.arange(num_images).flip(0))
    return mixer.mask_logits(images, plan)


@given(st.integers(1, 300))
def test_every_number_is_cut_into_compiled_sizes(num_images: int):
    """Parts add up, are of compiled sizes, and no smaller ones than needed."""
    parts = list(cut(num_images))

    assert sum(parts) == num_images
    assert set(parts) <= set(PARTS)
    assert len(parts) <= num_images // PARTS[0] + len(PARTS) - 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it imports its compiler
def test_compiled_masks_are_the_same():
    """A compiled mixer gives the masks of the plain one, at sizes it was compiled for and at others."""
    from torch._dynamo.utils import counters

    plain, compiled = tiny_mixer(), tiny_mixer()
    compile_encoder(compiled, 32, torch.float32)
    num_graphs = counters["stats"]["unique_graphs"]

    for num_images, side in ((27, 32), (1, 32), (3, 24)):
        torch.testing.assert_close(
            logits_of(compiled, num_images, side), logits_of(plain, num_images, side), atol=1e-5, rtol=0
        )
    assert counters["stats"]["unique_graphs"] == num_graphs == len(PARTS)
    assert compiled.net.state_dict().keys() == plain.net.state_dict().keys()
