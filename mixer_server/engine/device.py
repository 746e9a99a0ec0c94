"""What computes the passes of a server, as its flags say."""

from typing import Literal

import torch

from mixer_server.config import ServerConfig
from mixer_server.engine.compiling import check_compiler
from mixer_server.engine.cores import threads_per_worker
from mixer_server.engine.decoding import Decoder
from mixer_server.engine.passes import MixerPasses, Passes

_PRECISIONS: dict[Literal["fp32", "bf16"], torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def open_passes(config: ServerConfig, device: str) -> Passes:
    """Get ready to compute, on a CPU or a GPU; the caller closes it.

    Raises:
        ConfigError: if something is wanted that this machine cannot do.
    """
    if config.compile:
        check_compiler()
    precision = _PRECISIONS[config.precision]
    decoder = Decoder(config.num_threads * max(1, config.lanes) or threads_per_worker(config.workers))
    target = torch.device(device)
    if target.type != "cuda":
        return MixerPasses(decoder, precision=precision, compiles=config.compile)
    # Here, because it asks torch for streams.
    from mixer_server.engine.cuda_jpeg import check_decoder
    from mixer_server.engine.cuda_passes import CudaPasses

    if config.gpu_jpeg:
        check_decoder(target)
    return CudaPasses(
        target,
        decoder,
        precision=precision,
        graph_sizes=config.cuda_graphs,
        compiles=config.compile,
        decodes=config.gpu_jpeg,
    )
