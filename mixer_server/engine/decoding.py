"""Pictures become pixels: libjpeg-turbo on a few threads of its own.

The pixels lie channels last in memory, which is how libjpeg writes and convolutions read them.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import simplejpeg

from samix.errors import BadBatch, MixerOverloaded
from samix.jpeg import JpegBatch

_MAX_WAIT_S = 60.0
"""Longest a batch may take; 256 pictures of 224 pixels take 50 ms on one core."""
_RETRY_AFTER_S = 1.0


class Decoder:
    """Decodes batches, each on all threads, which many callers share. `close` it."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, "jpeg")

    def decode(self, batch: JpegBatch) -> np.ndarray:
        """Check a batch, then decompress it.

        Returns:
            uint8 [B, 3, H, W], a view of [B, H, W, 3].

        Raises:
            BadBatch: if a picture is refused or damaged; names its row.
            MixerOverloaded: if the threads have more to do than they manage in a minute.
        """
        batch.check()
        num_images, _, height, width = batch.shape
        pixels = np.empty((num_images, height, width, 3), np.uint8)
        bounds, share = batch.bounds(), -(-num_images // self._num_threads)
        parts = [range(num_images)[start : start + share] for start in range(0, num_images, share)]
        _wait_for([self._pool.submit(_decode_rows, batch.data, bounds, pixels, rows) for rows in parts])
        return pixels.transpose(0, 3, 1, 2)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


def _decode_rows(
    data: bytes | memoryview, bounds: Sequence[tuple[int, int]], pixels: np.ndarray, rows: Sequence[int]
) -> None:
    for row in rows:
        start, end = bounds[row]
        try:
            # Strict: what libjpeg only warns of is damage as well, and the rest of such a picture is grey.
            simplejpeg.decode_jpeg(memoryview(data)[start:end], "RGB", buffer=pixels[row], strict=True)
        except ValueError as error:
            raise BadBatch(f"image {row} is a damaged JPEG ({error}); send it again", field="pixels") from error


def _wait_for(parts: Sequence[Future[None]]) -> None:
    try:
        for part in parts:
            part.result(_MAX_WAIT_S)
    except TimeoutError as error:
        raise MixerOverloaded("more pictures wait to be decoded than this server manages", _RETRY_AFTER_S) from error
    finally:
        for part in parts:
            part.cancel()
