"""Our client, as a trainer uses it, up to the decoded answer: what a system without blending can be compared with."""

from functools import cache

import torch
from closed_loop import Call, run
from mix_batch import MODEL, check_logits, draw_images, draw_lam, draw_partner

from samix import MixPlan, connect
from samix.client.config import ClientConfig
from samix.client.remote import RemoteMixer
from services.malloc import tune_malloc

_CONFIG = ClientConfig(deadline_s=60.0)


@cache
def _connect(address: str) -> RemoteMixer:
    """Make the one mixer that all threads share."""
    return connect(address, mixer=MODEL, config=_CONFIG)


def make_caller(address: str) -> Call:
    """Connect."""
    mixer = _connect(address)
    images = torch.from_numpy(draw_images())
    plan = MixPlan(lam=torch.from_numpy(draw_lam()), partner=torch.from_numpy(draw_partner()))

    def call() -> None:
        check_logits(mixer.submit(images, plan=plan).reply().mask_logits)

    return call


if __name__ == "__main__":
    tune_malloc()
    run(make_caller)
