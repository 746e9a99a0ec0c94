"""The ranks that train together, as torchrun started them; one process alone is a world of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from samix.errors import ConfigError
from trainer import rendezvous

DeviceKind = Literal["auto", "cpu", "cuda"]

_TIMEOUT = timedelta(minutes=10)  # a rank may wait for another's slow mixer, not for ever


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Where this process stands among the others."""

    rank: int
    """0 .. size - 1, across all machines."""
    local_rank: int
    """0 .. on this machine; also the number of its GPU."""
    size: int
    """Number of ranks."""
    device: torch.device
    """Where this rank trains."""
    control: dist.ProcessGroup | None = None
    """Where ranks agree on small things by way of the CPU, beside their gradients; None in a world of one."""

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Sum a tensor over all ranks; every rank must call it."""
        values = values.to(self.device)
        if self.size > 1:
            dist.all_reduce(values)
        return values.cpu()

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the buffers of rank 0, such as batch-norm statistics; every rank must call it."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def gather(self, value: Any) -> list[Any]:
        """Collect one small picklable value of each rank, in their order; every rank must call it."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values


@contextmanager
def join_world(device: DeviceKind) -> Iterator[World]:
    """Join the process group that torchrun describes in the environment, and leave it at the end.

    Raises:
        ConfigError: if there are no GPUs, or too few, for the device asked for.
    """
    world = World(
        rank=int(os.environ.get("RANK", "0")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        size=int(os.environ.get("WORLD_SIZE", "1")),
        device=choose_device(device, int(os.environ.get("LOCAL_RANK", "0"))),
    )
    if world.size == 1:
        yield world
        return
    on_gpu = world.device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        rank=world.rank,
        world_size=world.size,
        store=rendezvous.fresh_store(world.rank, _TIMEOUT) if rendezvous.is_offered() else None,
        timeout=_TIMEOUT,
        device_id=world.device if on_gpu else None,
    )
    try:
        yield replace(world, control=dist.new_group(backend="gloo", timeout=_TIMEOUT))
    finally:
        dist.destroy_process_group()


def choose_device(kind: DeviceKind, local_rank: int = 0) -> torch.device:
    """Turn `auto` into the GPU of this rank where there is one, else the CPU.

    Raises:
        ConfigError: if CUDA is asked for and there is none, or there are fewer GPUs than ranks.
    """
    num_gpus = torch.cuda.device_count()
    if kind == "cpu" or (kind == "auto" and num_gpus == 0):
        return torch.device("cpu")
    if num_gpus == 0:
        raise ConfigError("device 'cuda' was asked for, but torch finds no GPU; use --device auto")
    if local_rank >= num_gpus:
        raise ConfigError(f"local rank {local_rank} finds {num_gpus} GPUs; start at most {num_gpus} ranks per machine")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
