"""Training steps that never happened, for what shows and averages them."""

from trainer.loop import Step


def make_steps(count: int, *, first: int = 0, seconds: float = 0.5) -> list[Step]:
    """Make steps of 4 images whose loss is their number, a quarter of each spent waiting."""
    return [
        Step(
            loss=float(number),
            lr=0.1,
            images=4,
            duration_s=seconds,
            waited_s=seconds / 4,
            figures={"spread": number / 10},
        )
        for number in range(first, first + count)
    ]
