"""How a hosted mixer is described to those who call it."""

from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.frozen import FrozenMixer
from samix.wire import PIXEL_FORMATS, encode_rendering


def describe(mixer: FrozenMixer, max_images: int) -> pb.MixerInfo:
    """Describe a mixer.

    Args:
        mixer: a hosted one.
        max_images: most images that this server takes in one request.
    """
    spec = mixer.spec
    return pb.MixerInfo(
        name=mixer.name,
        version=mixer.version,
        sha256=mixer.sha256,
        encoder=spec.backbone.name,
        stage=spec.stage,
        mode=spec.mode,
        rendering=encode_rendering(spec.rendering),
        min_side=spec.min_side,
        max_side=spec.max_side,
        max_images=max_images,
        max_tokens=spec.max_tokens,
        stride=spec.stride,
        pixel_formats=PIXEL_FORMATS,
        image_size=spec.image_size,
    )
