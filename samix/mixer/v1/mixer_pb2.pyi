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
    REPLY_FORMAT_IMAGES_FLOAT16: _ClassVar[ReplyFormat]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]

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
REPLY_FORMAT_IMAGES_FLOAT16: ReplyFormat
PRIORITY_UNSPECIFIED: Priority
PRIORITY_LOW: Priority
PRIORITY_NORMAL: Priority
PRIORITY_HIGH: Priority
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
    __slots__ = ("mixer", "version", "reply_format", "pixel_format", "shape", "lam", "partner", "jpeg_lengths", "priority", "shared", "key", "traceparent", "pixels")
    MIXER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLY_FORMAT_FIELD_NUMBER: _ClassVar[int]
    PIXEL_FORMAT_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    LAM_FIELD_NUMBER: _ClassVar[int]
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    JPEG_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    mixer: str
    version: str
    reply_format: ReplyFormat
    pixel_format: PixelFormat
    shape: _containers.RepeatedScalarFieldContainer[int]
    lam: _containers.RepeatedScalarFieldContainer[float]
    partner: _containers.RepeatedScalarFieldContainer[int]
    jpeg_lengths: _containers.RepeatedScalarFieldContainer[int]
    priority: Priority
    shared: SharedPixels
    key: str
    traceparent: str
    pixels: bytes
    def __init__(self, mixer: _Optional[str] = ..., version: _Optional[str] = ..., reply_format: _Optional[_Union[ReplyFormat, str]] = ..., pixel_format: _Optional[_Union[PixelFormat, str]] = ..., shape: _Optional[_Iterable[int]] = ..., lam: _Optional[_Iterable[float]] = ..., partner: _Optional[_Iterable[int]] = ..., jpeg_lengths: _Optional[_Iterable[int]] = ..., priority: _Optional[_Union[Priority, str]] = ..., shared: _Optional[_Union[SharedPixels, _Mapping]] = ..., key: _Optional[str] = ..., traceparent: _Optional[str] = ..., pixels: _Optional[bytes] = ...) -> None: ...

class SharedPixels(_message.Message):
    __slots__ = ("lease", "offset")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    lease: int
    offset: int
    def __init__(self, lease: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

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

class MixStreamRequest(_message.Message):
    __slots__ = ("sequence", "request", "pixel_bytes", "timeout_ms", "cancel", "chunk")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PIXEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    request: MixRequest
    pixel_bytes: int
    timeout_ms: int
    cancel: bool
    chunk: bytes
    def __init__(self, sequence: _Optional[int] = ..., request: _Optional[_Union[MixRequest, _Mapping]] = ..., pixel_bytes: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., cancel: bool = ..., chunk: _Optional[bytes] = ...) -> None: ...

class MixStreamResponse(_message.Message):
    __slots__ = ("sequence", "terms", "is_ending", "refusal", "response", "pixel_bytes", "chunk")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    IS_ENDING_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    PIXEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    terms: StreamTerms
    is_ending: bool
    refusal: Refusal
    response: MixResponse
    pixel_bytes: int
    chunk: bytes
    def __init__(self, sequence: _Optional[int] = ..., terms: _Optional[_Union[StreamTerms, _Mapping]] = ..., is_ending: bool = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., response: _Optional[_Union[MixResponse, _Mapping]] = ..., pixel_bytes: _Optional[int] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class StreamTerms(_message.Message):
    __slots__ = ("credits", "max_batches", "max_chunk_bytes")
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCHES_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    credits: int
    max_batches: int
    max_chunk_bytes: int
    def __init__(self, credits: _Optional[int] = ..., max_batches: _Optional[int] = ..., max_chunk_bytes: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "message", "retry_after_ms", "field_violations")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    FIELD_VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    retry_after_ms: int
    field_violations: _containers.RepeatedCompositeFieldContainer[FieldViolation]
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ..., field_violations: _Optional[_Iterable[_Union[FieldViolation, _Mapping]]] = ...) -> None: ...

class FieldViolation(_message.Message):
    __slots__ = ("field", "description")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    field: str
    description: str
    def __init__(self, field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class MixerInfo(_message.Message):
    __slots__ = ("name", "version", "sha256", "encoder", "stage", "mode", "rendering", "min_side", "max_side", "max_images", "max_tokens", "stride", "pixel_formats", "image_size")
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
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
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
    image_size: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., sha256: _Optional[str] = ..., encoder: _Optional[str] = ..., stage: _Optional[int] = ..., mode: _Optional[str] = ..., rendering: _Optional[_Union[Rendering, _Mapping]] = ..., min_side: _Optional[int] = ..., max_side: _Optional[int] = ..., max_images: _Optional[int] = ..., max_tokens: _Optional[int] = ..., stride: _Optional[int] = ..., pixel_formats: _Optional[_Iterable[_Union[PixelFormat, str]]] = ..., image_size: _Optional[int] = ...) -> None: ...

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
