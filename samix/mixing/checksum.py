"""The identity of a mixer: a hash of its settings and weights. The same identity means the same masks."""

import hashlib

import torch
from torch import Tensor


def mixer_checksum(settings: str, weights: dict[str, Tensor]) -> str:
    """Hash what decides a mixer's masks.

    Args:
        settings: the JSON of its `MixerSpec`, as it is stored.
        weights: all tensors; their order does not matter.

    Returns:
        SHA-256 in hexadecimal, of the settings and of names, dtypes, shapes and bytes of all tensors.
    """
    digest = hashlib.sha256(settings.encode())
    for key in sorted(weights):
        tensor = weights[key].detach().cpu().contiguous()
        digest.update(f"|{key}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
