"""What crosses the wire, as numpy arrays: the one place that fills and reads the protobuf messages.

Decoding checks everything that can be checked without knowing a mixer; limits of a server are the server's business.
Arrays are views of the bulk bytes, read-only where these are; JPEGs stay JPEGs, and uint8 pixels in pieces stay so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from samix.errors import BadBatch, MixerBroken
from samix.framing import Framed, as_bytes
from samix.jpeg import JpegBatch, encode_images
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.render import LOGIT_LIMIT, Rendering, Upsampling
from samix.pieces import Pieces, Scattered, ScatteredPixels

_PIXEL_FORMATS: dict[np.dtype, pb.PixelFormat] = {
    np.dtype(np.uint8): pb.PIXEL_FORMAT_UINT8,
    np.dtype("<f4"): pb.PIXEL_FORMAT_FLOAT32,
}
_PIXEL_DTYPES = {number: dtype for dtype, number in _PIXEL_FORMATS.items()}
CLIENT_KEY = "samix-client"
"""Metadata in which a client names itself, so that all its calls have one client's share of a server."""
PIXEL_FORMATS = (*_PIXEL_DTYPES, pb.PIXEL_FORMAT_JPEG)
"""All that `decode_request` reads."""
Shape = tuple[int, int, int, int]
"""[batch, 3, height, width]."""
PixelsOf = Callable[[pb.SharedPixels, int], memoryview]
"""Finds so many bytes of pixels in memory that was leased to the caller; raises BadBatch."""
_UINT8 = np.dtype(np.uint8)
_IMAGE_FORMATS: dict[np.dtype, pb.ReplyFormat] = {
    _UINT8: pb.REPLY_FORMAT_IMAGES,
    np.dtype("<f2"): pb.REPLY_FORMAT_IMAGES_FLOAT16,
}
_IMAGE_DTYPES = {number: dtype for dtype, number in _IMAGE_FORMATS.items()}
_PRIORITIES = frozenset(pb.Priority.values())
_LIMIT_BITS = np.array(LOGIT_LIMIT, "<f2").view("<u2")
_UPSAMPLINGS: dict[Upsampling, pb.Upsampling] = {
    "nearest": pb.UPSAMPLING_NEAREST,
    "bilinear": pb.UPSAMPLING_BILINEAR,
}
_UPSAMPLING_NAMES: dict[int, Upsampling] = {number: name for name, number in _UPSAMPLINGS.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class MixCall:
    """One request. B is the batch size."""

    mixer: str
    """Name of the mixer; may be empty where the server hosts exactly one."""
    version: str = ""
    """Weights version to pin; empty takes the loaded one."""
    pixels: np.ndarray | JpegBatch | ScatteredPixels
    """uint8 or float32 (0..1) [B, 3, H, W]."""
    lam: np.ndarray
    """float32 [B] in [0, 1]."""
    partner: np.ndarray
    """int64 [B], a permutation."""
    wants_images: bool = False
    """Answer mixed images beside the logits."""
    image_dtype: np.dtype = _UINT8
    """Of the mixed images: uint8, or float16 in 0..1."""
    priority: int = pb.PRIORITY_NORMAL
    """LOW, NORMAL or HIGH of `samix.mixer.v1.Priority`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixReply:
    """One answer."""

    mixer: str
    """Name of the mixer that answered."""
    version: str
    """Version of its weights."""
    rendering: Rendering
    """How to turn the logits into masks."""
    mask_logits: np.ndarray
    """float16 [B, 1, h, w] of image i's share."""
    images: np.ndarray | ScatteredPixels | None = None
    """uint8 or float16 [B, 3, H, W], mixed; None unless they were asked for."""


def encode_request(
    call: MixCall, jpeg_quality: int | None = None, shared: pb.SharedPixels | None = None
) -> Framed[pb.MixRequest]:
    """Fill a request; the caller has checked the batch. Exact pixels are not copied, so they must not change.

    Args:
        call: what is asked for.
        jpeg_quality: 1 to 100 sends uint8 pixels as JPEGs; None sends the exact pixels.
        shared: where the exact pixels lie in memory of the server; they are not sent then.

    Raises:
        BadBatch: if the pixels cannot become JPEGs.
    """
    assert isinstance(call.pixels, np.ndarray)  # others only come back from `decode_request`
    request = pb.MixRequest(
        mixer=call.mixer,
        version=call.version,
        reply_format=_IMAGE_FORMATS[call.image_dtype] if call.wants_images else pb.REPLY_FORMAT_MASK_LOGITS,
        shape=call.pixels.shape,
        lam=call.lam.tolist(),
        partner=call.partner.tolist(),
        priority=call.priority,  # pyright: ignore[reportArgumentType] - enums of protobuf are numbers
        shared=shared,
    )
    if jpeg_quality is None:
        request.pixel_format = _PIXEL_FORMATS[call.pixels.dtype]
        return Framed(request, memoryview(b"") if shared else as_bytes(np.ascontiguousarray(call.pixels)))
    pictures = encode_images(call.pixels, jpeg_quality)
    request.pixel_format = pb.PIXEL_FORMAT_JPEG
    request.jpeg_lengths.extend(map(len, pictures))
    return Framed(request, memoryview(b"".join(pictures)))


def decode_request(
    framed: Framed[pb.MixRequest] | Scattered[pb.MixRequest],
    check_shape: Callable[[Shape], None] = lambda _shape: None,
    shared_pixels: PixelsOf | None = None,
) -> MixCall:
    """Read and check a request.

    Args:
        framed: what came; its message may be emptied.
        check_shape: called before anything of the size of the pixels is done, which may need far more memory than the
            request; raises BadBatch where the batch is too large.
        shared_pixels: finds pixels in leased memory; None refuses requests that have theirs there.

    Raises:
        BadBatch: whatever is wrong with it, by value.
    """
    request, data = framed.message, framed.bulk
    if request.reply_format not in (pb.REPLY_FORMAT_MASK_LOGITS, *_IMAGE_DTYPES):
        raise BadBatch(
            f"reply_format must be MASK_LOGITS (1), IMAGES (2) or IMAGES_FLOAT16 (3), got {request.reply_format}",
            field="reply_format",
        )
    if request.priority not in _PRIORITIES:
        raise BadBatch(f"priority must be LOW (1), NORMAL (2) or HIGH (3), got {request.priority}", field="priority")
    shape = _decode_shape(request)
    if request.HasField("shared"):
        data = _find_shared(request, shape, len(data), shared_pixels)
    _check_size(request, shape, len(data))
    lam, partner = _decode_lam(request, shape[0]), _decode_partner(request, shape[0])
    check_shape(shape)
    return MixCall(
        mixer=request.mixer,
        version=request.version,
        pixels=_decode_pixels(request, shape, data),
        lam=lam,
        partner=partner,
        wants_images=request.reply_format in _IMAGE_DTYPES,
        image_dtype=_IMAGE_DTYPES.get(request.reply_format, _UINT8),
        priority=request.priority or pb.PRIORITY_NORMAL,
    )


def encode_response(reply: MixReply) -> Framed[pb.MixResponse]:
    """Fill a response; the images are not copied."""
    message = pb.MixResponse(
        mixer=reply.mixer,
        version=reply.version,
        rendering=encode_rendering(reply.rendering),
        mask_shape=reply.mask_logits.shape,
        mask_logits=reply.mask_logits.astype("<f2", copy=False).tobytes(),
    )
    if reply.images is None:
        return Framed(message)
    assert isinstance(reply.images, np.ndarray)  # others only come back from `decode_response`
    return Framed(message, as_bytes(np.ascontiguousarray(reply.images)))


def decode_response(framed: Framed[pb.MixResponse] | Scattered[pb.MixResponse], call: MixCall) -> MixReply:
    """Read an answer to `call`.

    Raises:
        MixerBroken: if the answer does not fit the call.
    """
    response = framed.message
    shape = tuple(response.mask_shape)
    mask_logits = response.mask_logits  # once: every access copies all of it
    fits = len(shape) == 4 and shape[:2] == (len(call.pixels), 1) and 0 not in shape
    if not fits or len(mask_logits) != 2 * math.prod(shape):
        raise MixerBroken(f"got {len(mask_logits)} bytes of masks {shape} for {len(call.pixels)} images")
    logits = np.frombuffer(mask_logits, "<f2").reshape(shape)
    # As numbers without their sign bits, which is 10 times as fast; those of NaN and infinity are larger still.
    if (logits.view("<u2") & 0x7FFF > _LIMIT_BITS).any():
        raise MixerBroken(f"mask logits leave +-{LOGIT_LIMIT:.0f}; the mixer's weights may be damaged")
    return MixReply(
        mixer=response.mixer,
        version=response.version,
        rendering=decode_rendering(response.rendering),
        mask_logits=logits,
        images=_decode_images(framed.bulk, call) if call.wants_images else None,
    )


def encode_rendering(rendering: Rendering) -> pb.Rendering:
    """Fill the message of the same name."""
    return pb.Rendering(upsampling=_UPSAMPLINGS[rendering.upsampling], lam_margin=rendering.lam_margin)


def decode_rendering(message: pb.Rendering) -> Rendering:
    """Read the message of the same name.

    Raises:
        MixerBroken: if the upsampling is one this client does not know.
    """
    if message.upsampling not in _UPSAMPLING_NAMES:
        raise MixerBroken(f"unknown upsampling {message.upsampling} in the answer; upgrade this client")
    return Rendering(upsampling=_UPSAMPLING_NAMES[message.upsampling], lam_margin=message.lam_margin)


def _decode_images(data: memoryview | Pieces, call: MixCall) -> np.ndarray | ScatteredPixels:
    expected = math.prod(call.pixels.shape) * call.image_dtype.itemsize
    if len(data) != expected:
        raise MixerBroken(f"got {len(data)} bytes of images, expected {expected}")
    if isinstance(data, Pieces):
        if call.image_dtype == np.uint8:
            return ScatteredPixels(pieces=data, shape=call.pixels.shape)
        data = data.join()
    return np.frombuffer(data, call.image_dtype).reshape(call.pixels.shape)


def _decode_shape(request: pb.MixRequest) -> Shape:
    shape = tuple(request.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise BadBatch(
            f"shape must be [batch, 3, height, width] with no empty side, got {list(shape[:8])}", field="shape"
        )
    return shape


def _find_shared(request: pb.MixRequest, shape: Shape, num_bytes: int, find: PixelsOf | None) -> memoryview:
    if find is None:
        raise BadBatch("shared: this server leases no memory; send the pixels", field="shared")
    if num_bytes:
        raise BadBatch(f"shared: {num_bytes} bytes of pixels came as well; send one or the other", field="shared")
    if request.pixel_format != pb.PIXEL_FORMAT_UINT8:  # whose values stay valid if they change while they are read
        raise BadBatch(f"shared pixels must be UINT8 (1), got pixel_format {request.pixel_format}", field="shared")
    return find(request.shared, math.prod(shape))


def _check_size(request: pb.MixRequest, shape: Shape, num_bytes: int) -> None:
    if request.pixel_format == pb.PIXEL_FORMAT_JPEG:
        lengths = request.jpeg_lengths
        if len(lengths) != shape[0] or sum(lengths) != num_bytes:
            raise BadBatch(
                f"jpeg_lengths must hold the bytes of each of {shape[0]} images, {num_bytes} together, "
                f"got {len(lengths)} with a sum of {sum(lengths)}",
                field="jpeg_lengths",
            )
        return
    dtype = _PIXEL_DTYPES.get(request.pixel_format)
    if dtype is None:
        raise BadBatch(
            f"pixel_format must be UINT8 (1), FLOAT32 (2) or JPEG (3), got {request.pixel_format}", field="pixel_format"
        )
    expected = math.prod(shape) * dtype.itemsize
    if num_bytes != expected:
        raise BadBatch(
            f"pixels must be {expected} bytes for {dtype.name} {list(shape)}, got {num_bytes}", field="pixels"
        )


def _decode_pixels(
    request: pb.MixRequest, shape: Shape, data: memoryview | Pieces
) -> np.ndarray | JpegBatch | ScatteredPixels:
    if isinstance(data, Pieces):
        if request.pixel_format == pb.PIXEL_FORMAT_UINT8:  # nothing looks at these before they are computed
            return ScatteredPixels(pieces=data, shape=shape)
        data = data.join()
    if request.pixel_format == pb.PIXEL_FORMAT_JPEG:
        return JpegBatch(data=data, lengths=tuple(request.jpeg_lengths), shape=shape)
    pixels = np.frombuffer(data, _PIXEL_DTYPES[request.pixel_format]).reshape(shape)
    if pixels.dtype != np.uint8 and not (pixels.min() >= 0 and pixels.max() <= 1):  # False for NaN
        raise BadBatch(f"float pixels must lie in [0, 1], got {pixels.min()} to {pixels.max()}", field="pixels")
    return pixels


def _decode_lam(request: pb.MixRequest, batch_size: int) -> np.ndarray:
    lam = np.array(request.lam, np.float32)
    if lam.shape != (batch_size,):
        raise BadBatch(f"lam must hold one value for each of {batch_size} images, got {len(lam)}", field="lam")
    outside = ~((lam >= 0) & (lam <= 1))
    if outside.any():
        raise BadBatch(f"lam must lie in [0, 1], got {lam[outside][0]}", field="lam")
    return lam


def _decode_partner(request: pb.MixRequest, batch_size: int) -> np.ndarray:
    partner = np.array(request.partner, np.int64)
    if partner.shape != (batch_size,) or not np.array_equal(np.sort(partner), np.arange(batch_size)):
        raise BadBatch(
            f"partner must be a permutation of 0..{batch_size - 1}, got {partner.tolist()[:16]}", field="partner"
        )
    return partner
