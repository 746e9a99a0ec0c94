from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PixelFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PIXEL_FORMAT_UNSPECIFIED: _ClassVar[PixelFormat]
    PIXEL_FORMAT_UINT8: _ClassVar[PixelFormat]
    PIXEL_FORMAT_FLOAT32: _ClassVar[PixelFormat]
    PIXEL_FORMAT_JPEG: _ClassVar[PixelFormat]

class ReplyFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLY_FORMAT_UNSPECIFIED: _ClassVar[ReplyFormat]
    REPLY_FORMAT_MASK_LOGITS: _ClassVar[ReplyFormat]
    REPLY_FORMAT_IMAGES: _ClassVar[ReplyFormat]

class Upsampling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UPSAMPLING_UNSPECIFIED: _ClassVar[Upsampling]
    UPSAMPLING_NEAREST: _ClassVar[Upsampling]
    UPSAMPLING_BILINEAR: _ClassVar[Upsampling]
PIXEL_FORMAT_UNSPECIFIED: PixelFormat
PIXEL_FORMAT_UINT8: PixelFormat
PIXEL_FORMAT_FLOAT32: PixelFormat
PIXEL_FORMAT_JPEG: PixelFormat
REPLY_FORMAT_UNSPECIFIED: ReplyFormat
REPLY_FORMAT_MASK_LOGITS: ReplyFormat
REPLY_FORMAT_IMAGES: ReplyFormat
UPSAMPLING_UNSPECIFIED: Upsampling
UPSAMPLING_NEAREST: Upsampling
UPSAMPLING_BILINEAR: Upsampling

class Rendering(_message.Message):
    __slots__ = ("upsampling", "lam_margin")
    UPSAMPLING_FIELD_NUMBER: _ClassVar[int]
    LAM_MARGIN_FIELD_NUMBER: _ClassVar[int]
    upsampling: Upsampling
    lam_margin: float
    def __init__(self, upsampling: _Optional[_Union[Upsampling, str]] = ..., lam_margin: _Optional[float] = ...) -> None: ...

class MixRequest(_message.Message):
    __slots__ = ("mixer", "version", "reply_format", "pixel_format", "shape", "lam", "partner", "jpeg_lengths", "pixels")
    MIXER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLY_FORMAT_FIELD_NUMBER: _ClassVar[int]
    PIXEL_FORMAT_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    LAM_FIELD_NUMBER: _ClassVar[int]
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    JPEG_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    mixer: str
    version: str
    reply_format: ReplyFormat
    pixel_format: PixelFormat
    shape: _containers.RepeatedScalarFieldContainer[int]
    lam: _containers.RepeatedScalarFieldContainer[float]
    partner: _containers.RepeatedScalarFieldContainer[int]
    jpeg_lengths: _containers.RepeatedScalarFieldContainer[int]
    pixels: bytes
    def __init__(self, mixer: _Optional[str] = ..., version: _Optional[str] = ..., reply_format: _Optional[_Union[ReplyFormat, str]] = ..., pixel_format: _Optional[_Union[PixelFormat, str]] = ..., shape: _Optional[_Iterable[int]] = ..., lam: _Optional[_Iterable[float]] = ..., partner: _Optional[_Iterable[int]] = ..., jpeg_lengths: _Optional[_Iterable[int]] = ..., pixels: _Optional[bytes] = ...) -> None: ...

class MixResponse(_message.Message):
    __slots__ = ("mixer", "version", "rendering", "mask_shape", "mask_logits", "pixels")
    MIXER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RENDERING_FIELD_NUMBER: _ClassVar[int]
    MASK_SHAPE_FIELD_NUMBER: _ClassVar[int]
    MASK_LOGITS_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    mixer: str
    version: str
    rendering: Rendering
    mask_shape: _containers.RepeatedScalarFieldContainer[int]
    mask_logits: bytes
    pixels: bytes
    def __init__(self, mixer: _Optional[str] = ..., version: _Optional[str] = ..., rendering: _Optional[_Union[Rendering, _Mapping]] = ..., mask_shape: _Optional[_Iterable[int]] = ..., mask_logits: _Optional[bytes] = ..., pixels: _Optional[bytes] = ...) -> None: ...

class MixerInfo(_message.Message):
    __slots__ = ("name", "version", "sha256", "encoder", "stage", "mode", "rendering", "min_side", "max_side", "max_images", "max_tokens", "stride", "pixel_formats")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    RENDERING_FIELD_NUMBER: _ClassVar[int]
    MIN_SIDE_FIELD_NUMBER: _ClassVar[int]
    MAX_SIDE_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    PIXEL_FORMATS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    sha256: str
    encoder: str
    stage: int
    mode: str
    rendering: Rendering
    min_side: int
    max_side: int
    max_images: int
    max_tokens: int
    stride: int
    pixel_formats: _containers.RepeatedScalarFieldContainer[PixelFormat]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., sha256: _Optional[str] = ..., encoder: _Optional[str] = ..., stage: _Optional[int] = ..., mode: _Optional[str] = ..., rendering: _Optional[_Union[Rendering, _Mapping]] = ..., min_side: _Optional[int] = ..., max_side: _Optional[int] = ..., max_images: _Optional[int] = ..., max_tokens: _Optional[int] = ..., stride: _Optional[int] = ..., pixel_formats: _Optional[_Iterable[_Union[PixelFormat, str]]] = ...) -> None: ...

class ListMixersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListMixersResponse(_message.Message):
    __slots__ = ("mixers",)
    MIXERS_FIELD_NUMBER: _ClassVar[int]
    mixers: _containers.RepeatedCompositeFieldContainer[MixerInfo]
    def __init__(self, mixers: _Optional[_Iterable[_Union[MixerInfo, _Mapping]]] = ...) -> None: ...

class GetMixerRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetMixerResponse(_message.Message):
    __slots__ = ("mixer",)
    MIXER_FIELD_NUMBER: _ClassVar[int]
    mixer: MixerInfo
    def __init__(self, mixer: _Optional[_Union[MixerInfo, _Mapping]] = ...) -> None: ...
