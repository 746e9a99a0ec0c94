"""The latest mixed pictures: a few, seldom, and small, for the status page.

The engine copies the pixels of two images now and then; whoever looks at a picture pays for the rest.
"""

import io
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from mixer_server.engine.answers import Outcome
from mixer_server.scheduling.job import Job
from mixer_server.status.snapshot import PictureLine
from samix.jpeg import JpegBatch
from samix.mixing.render import Rendering, render_masks
from samix.pieces import ScatteredPixels

log = logging.getLogger(__name__)

NUM_PICTURES = 12
"""That are listed."""
_NUM_KEPT = 2 * NUM_PICTURES
"""More than are listed, for browsers that ask for the pictures of a list that has changed since."""
PERIOD_S = 1.0
"""Shortest time between two pictures."""
_MAX_KEPT_SIDE = 256
"""Of the copies; larger images are thinned out."""
_SIDE = 128
"""Longer side of each image of a picture."""
_GAP = 4
_JPEG_QUALITY = 88


@dataclass(frozen=True, kw_only=True, slots=True)
class _Material:
    """What a picture is made of."""

    images: tuple[np.ndarray, np.ndarray]
    """The image and its partner: uint8 or float32 in 0..1 [3, h, w], thinned out."""
    mask_logits: np.ndarray
    """float16 [1, 1, h, w] of the image's share."""
    rendering: Rendering
    """Of the mixer."""


class _Picture:
    """One picture; drawn when somebody looks at it first."""

    def __init__(self, number: int, job: Job, lam: float, taken_s: float, material: _Material) -> None:
        self.number = number
        self.lam = lam
        self.taken_s = taken_s
        self.mixer = job.mixer.name
        self.client = job.client
        self.size = (job.key.height, job.key.width)
        self._material: _Material | None = material
        self._jpeg = b""
        self._lock = threading.Lock()

    def jpeg(self) -> bytes:
        """Draw it, once."""
        with self._lock:
            if self._material is not None:
                self._jpeg = _draw(self._material, self.lam, self.size)
                self._material = None
            return self._jpeg


class Gallery:
    """Keeps pictures of what the engine has answered. Safe for threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pictures: deque[_Picture] = deque(maxlen=_NUM_KEPT)
        self._num_taken = 0
        self._next_s = 0.0

    def note(self, job: Job, outcome: Outcome) -> None:
        """Copy one mix of a batch, if it is time for another; for the engine's thread, before the job is settled."""
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._next_s = now_s + PERIOD_S
        try:
            self._take(job, outcome, now_s)
        except Exception:  # whatever is wrong with a picture, its batch must be answered
            log.exception("picture_not_taken", extra={"mixer": job.mixer.name})

    def list(self) -> list[PictureLine]:
        """List the pictures, newest first."""
        now_s = self._clock()
        return [
            PictureLine(
                key=str(picture.number),
                mixer=picture.mixer,
                client=picture.client,
                lam=picture.lam,
                height=picture.size[0],
                width=picture.size[1],
                age_s=max(0.0, now_s - picture.taken_s),
            )
            for picture in list(self._pictures)[: -NUM_PICTURES - 1 : -1]
        ]

    def jpeg(self, key: str) -> bytes | None:
        """Find a picture by its key: the image, its partner and their mix, side by side; None if it is gone."""
        for picture in list(self._pictures):
            if str(picture.number) == key:
                return picture.jpeg()
        return None

    def _take(self, job: Job, outcome: Outcome, now_s: float) -> None:
        call, reply = job.call, outcome.reply
        row = self._num_taken % job.num_images
        material = _Material(
            images=(_copy(call.pixels, row), _copy(call.pixels, int(call.partner[row]))),
            mask_logits=reply.mask_logits[row : row + 1].copy(),
            rendering=reply.rendering,
        )
        self._pictures.append(_Picture(self._num_taken, job, float(call.lam[row]), now_s, material))
        self._num_taken += 1


def _copy(pixels: np.ndarray | JpegBatch | ScatteredPixels, row: int) -> np.ndarray:
    image = _image_of(pixels, row)
    step = -(-max(image.shape[1:]) // _MAX_KEPT_SIDE)
    return image[:, ::step, ::step].copy()


def _image_of(pixels: np.ndarray | JpegBatch | ScatteredPixels, row: int) -> np.ndarray:
    """Find one image [3, H, W] of a batch."""
    if isinstance(pixels, ScatteredPixels):
        return _gather(pixels, row)
    if isinstance(pixels, JpegBatch):
        start, end = pixels.bounds()[row]
        with Image.open(io.BytesIO(pixels.data[start:end])) as picture:
            return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    return pixels[row]


def _gather(pixels: ScatteredPixels, row: int) -> np.ndarray:
    size = pixels.nbytes // len(pixels)
    image, begin = np.empty(size, np.uint8), row * size
    for place, values in pixels.pieces:
        start, end = max(place.start, begin), min(place.stop, begin + size)
        if start < end:
            image[start - begin : end - begin] = values[start - place.start : end - place.start]
    return image.reshape(pixels.shape[1:])


def _draw(material: _Material, lam: float, size: tuple[int, int]) -> bytes:
    """Draw the image, its partner and their mix, as a JPEG."""
    height, width = _drawn_size(size)
    one, other = (_resize(image, height, width) for image in material.images)
    # So small that torch starts no threads, of which every thread that draws would get a set of its own.
    logits = torch.from_numpy(material.mask_logits)
    masks = render_masks(logits, torch.tensor([lam]), (height, width), material.rendering)
    mask = masks.numpy().reshape(height, width, 1)
    strip = np.full((height, 3 * width + 2 * _GAP, 3), 128, np.uint8)
    for place, image in enumerate((one, other, mask * one + (1 - mask) * other)):
        left = place * (width + _GAP)
        strip[:, left : left + width] = np.rint(image).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(strip).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def _drawn_size(size: tuple[int, int]) -> tuple[int, int]:
    """Small images grow by whole steps, so that their pixels are seen as they are; large ones shrink."""
    longer = max(size)
    if longer <= _SIDE:
        return size[0] * (_SIDE // longer), size[1] * (_SIDE // longer)
    return max(1, size[0] * _SIDE // longer), max(1, size[1] * _SIDE // longer)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize [3, h, w], uint8 or float in 0..1, to float32 [height, width, 3] in 0..255."""
    if image.dtype != np.uint8:
        image = np.rint(np.nan_to_num(image).clip(0, 1) * 255).astype(np.uint8)
    how = Image.Resampling.NEAREST if image.shape[1] <= height else Image.Resampling.LANCZOS
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).resize((width, height), how)
    return np.asarray(picture, np.float32)
