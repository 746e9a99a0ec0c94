"""Averages of an epoch survive an interruption."""

import io
from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from steps import make_steps

from trainer.loop import Step
from trainer.tally import EpochTally, Tally

numbers = st.floats(-1e6, 1e6)
times = st.floats(1e-6, 1e3)


@st.composite
def measured_steps(draw: st.DrawFn) -> list[Step]:
    names = draw(st.sets(st.sampled_from(["mask_loss", "spread", "grad_norm"])))
    step = st.builds(
        Step,
        loss=numbers,
        lr=st.floats(0, 10),
        images=st.integers(1, 512),
        duration_s=times,
        waited_s=times,
        figures=st.fixed_dictionaries(dict.fromkeys(sorted(names), numbers)),
    )
    return draw(st.lists(step, min_size=1, max_size=20))


def through_a_checkpoint(tally: EpochTally) -> EpochTally:
    file = io.BytesIO()
    torch.save(tally.state_dict(), file)
    file.seek(0)
    resumed = EpochTally()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    return resumed


@given(measured_steps(), st.data())
def test_interrupted_anywhere_it_ends_the_same(steps: list[Step], data: st.DataObject):
    """A tally that went through a checkpoint after any step equals that of an uninterrupted epoch, to the last bit."""
    at, window_at = data.draw(st.integers(0, len(steps))), data.draw(st.integers(0, len(steps)))
    whole, resumed = EpochTally(), EpochTally()

    for number, step in enumerate(steps):
        if number == at:
            resumed = through_a_checkpoint(resumed)
        if number == window_at:
            whole.close_window()
            resumed.close_window()
        whole.add(step, world_size=2)
        resumed.add(step, world_size=2)

    assert resumed == whole


def test_averages():
    """Averages are over steps, speed and waiting over time, the learning rate is the last one."""
    tally = Tally()

    for step in [*make_steps(3), replace(make_steps(1)[0], loss=7.0, lr=1.25e-9)]:
        tally.add(step, world_size=2)

    assert tally.averages() == {
        "loss": 2.5,
        "lr": 1.25e-9,
        "wait_share": 0.25,
        "images_per_s": 16.0,
        "spread": 0.075,
    }


def test_state_is_a_copy():
    """A state that was taken does not change with further steps."""
    tally = EpochTally()
    tally.add(make_steps(1)[0], world_size=1)

    state = tally.state_dict()
    tally.add(make_steps(1)[0], world_size=1)

    assert state["whole"]["steps"] == 1
    assert state["whole"]["figures"] == {"spread": 0.0}
