"""Requests that wait, without a server."""

import math
from typing import Any

import numpy as np

from mixer_server.scheduling.job import GroupKey, Job
from samix.mixing.frozen import random_mixer
from samix.mixing.presets import tiny_spec
from samix.wire import MixCall

MIXER = random_mixer(tiny_spec(), seed=0, name="m")


def make_job(num_images: int = 1, side: int = 8, deadline_s: float = math.inf, **changes: Any) -> Job:
    """Make a request that says it holds images of `side` pixels; nobody here looks at them."""
    call = MixCall(
        mixer="m",
        pixels=np.zeros((num_images, 3, 1, 1), np.uint8),
        lam=np.zeros(num_images, np.float32),
        partner=np.arange(num_images),
    )
    values: dict[str, Any] = {"max_pass_images": 1 << 20}
    key = GroupKey("m", "v", side, side, "uint8")
    return Job(key=key, mixer=MIXER, call=call, deadline_s=deadline_s, **(values | changes))
