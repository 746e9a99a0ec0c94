"""Pictures become pixels on a GPU, by nvJPEG. Its colours are within a few grey levels of libjpeg's, not the same."""

import logging

import numpy as np
import torch
from torch import Tensor

from samix.errors import ConfigError
from samix.jpeg import JpegBatch, encode_images

log = logging.getLogger(__name__)


def decode_on_gpu(batch: JpegBatch, device: torch.device) -> Tensor | None:
    """Decompress a batch whose headers were checked, on the current stream.

    Returns:
        uint8 [B, 3, H, W] on the device; None if the GPU refuses one, without saying which. Others may take it.
    """
    try:
        images = torch.stack(_decode(batch, device))
    except torch.AcceleratorError:
        raise
    except RuntimeError as error:
        log.debug("jpeg_refused_by_gpu", extra={"reason": str(error)})
        return None
    return images if images.shape == batch.shape else None


def check_decoder(device: torch.device) -> None:
    """Decode a picture on trial.

    Raises:
        ConfigError: if this torchvision cannot.
    """
    picture = encode_images(np.zeros((1, 3, 16, 16), np.uint8), 90)[0]
    batch = JpegBatch(data=picture, lengths=(len(picture),), shape=(1, 3, 16, 16))
    try:
        _decode(batch, device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"this torchvision decodes no JPEG on {device} ({reason}); use --no-gpu-jpeg") from error


def _decode(batch: JpegBatch, device: torch.device) -> list[Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg  # takes seconds to import, and a CPU has no use for it

    data = torch.frombuffer(bytearray(batch.data), dtype=torch.uint8)  # a copy: torch has no tensors to read only
    images = decode_jpeg([data[start:end] for start, end in batch.bounds()], ImageReadMode.RGB, device=device)
    assert isinstance(images, list), "one for each that was given"
    return images
