"""Passes that compute nothing: every batch is answered at once with masks of one value, so all else can be measured."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mixer_server.engine.answers import Outcome
from mixer_server.engine.passes import Finished
from samix.mixing.frozen import FrozenMixer
from samix.wire import MixCall, MixReply

_KEPT = 16
"""Shapes whose arrays are kept; a benchmark has one or two."""


class ConstantPasses:
    """Answers of the right shape, made once. Pixels are never looked at, nor pictures decoded."""

    depth = 1

    def prepare(self, mixer: FrozenMixer, call: MixCall) -> MixCall:  # noqa: ARG002 - the shape of the protocol
        """Leave the request as it came."""
        return call

    def warm(self, mixer: FrozenMixer, side: int) -> None:
        """Do nothing."""

    def launch(self, mixer: FrozenMixer, calls: Sequence[MixCall]) -> Finished:
        """Answer."""
        return Finished(outcomes=[_answer(mixer, call) for call in calls])

    def close(self) -> None:
        """Do nothing."""


def _answer(mixer: FrozenMixer, call: MixCall) -> Outcome:
    num_images, _, height, width = call.pixels.shape
    reply = MixReply(
        mixer=mixer.name,
        version=mixer.version,
        rendering=mixer.spec.rendering,
        mask_logits=_zeros((num_images, 1, -(-height // mixer.spec.stride), -(-width // mixer.spec.stride)), "<f2"),
        images=_zeros((num_images, 3, height, width), call.image_dtype.str) if call.wants_images else None,
    )
    return Outcome(reply=reply, num_nonfinite=0, lambda_error=0.0)


@lru_cache(_KEPT)
def _zeros(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    zeros = np.full(shape, 0, dtype)  # not np.zeros, whose pages are only there once they are read
    zeros.flags.writeable = False
    return zeros
