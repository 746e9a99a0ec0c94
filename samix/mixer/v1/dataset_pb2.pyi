from samix.mixer.v1 import mixer_pb2 as _mixer_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Augmentation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUGMENTATION_UNSPECIFIED: _ClassVar[Augmentation]
    AUGMENTATION_CROP_FLIP: _ClassVar[Augmentation]
    AUGMENTATION_CENTER: _ClassVar[Augmentation]

class BatchFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BATCH_FORMAT_UNSPECIFIED: _ClassVar[BatchFormat]
    BATCH_FORMAT_UINT8: _ClassVar[BatchFormat]
    BATCH_FORMAT_FLOAT16: _ClassVar[BatchFormat]
    BATCH_FORMAT_JPEG: _ClassVar[BatchFormat]
AUGMENTATION_UNSPECIFIED: Augmentation
AUGMENTATION_CROP_FLIP: Augmentation
AUGMENTATION_CENTER: Augmentation
BATCH_FORMAT_UNSPECIFIED: BatchFormat
BATCH_FORMAT_UINT8: BatchFormat
BATCH_FORMAT_FLOAT16: BatchFormat
BATCH_FORMAT_JPEG: BatchFormat

class ListDatasetsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDatasetsResponse(_message.Message):
    __slots__ = ("datasets",)
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    datasets: _containers.RepeatedCompositeFieldContainer[DatasetInfo]
    def __init__(self, datasets: _Optional[_Iterable[_Union[DatasetInfo, _Mapping]]] = ...) -> None: ...

class DatasetInfo(_message.Message):
    __slots__ = ("name", "fingerprint", "num_samples", "num_shards", "classes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: str
    num_samples: int
    num_shards: int
    classes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[str] = ..., num_samples: _Optional[int] = ..., num_shards: _Optional[int] = ..., classes: _Optional[_Iterable[str]] = ...) -> None: ...

class Subscription(_message.Message):
    __slots__ = ("dataset", "mixer", "version", "batch_size", "image_size", "consumer", "num_consumers", "seed", "epoch", "format", "jpeg_quality", "augmentation", "drop_last", "token", "cursor")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    MIXER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    NUM_CONSUMERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    JPEG_QUALITY_FIELD_NUMBER: _ClassVar[int]
    AUGMENTATION_FIELD_NUMBER: _ClassVar[int]
    DROP_LAST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    mixer: str
    version: str
    batch_size: int
    image_size: int
    consumer: int
    num_consumers: int
    seed: int
    epoch: int
    format: BatchFormat
    jpeg_quality: int
    augmentation: Augmentation
    drop_last: bool
    token: str
    cursor: Cursor
    def __init__(self, dataset: _Optional[str] = ..., mixer: _Optional[str] = ..., version: _Optional[str] = ..., batch_size: _Optional[int] = ..., image_size: _Optional[int] = ..., consumer: _Optional[int] = ..., num_consumers: _Optional[int] = ..., seed: _Optional[int] = ..., epoch: _Optional[int] = ..., format: _Optional[_Union[BatchFormat, str]] = ..., jpeg_quality: _Optional[int] = ..., augmentation: _Optional[_Union[Augmentation, str]] = ..., drop_last: bool = ..., token: _Optional[str] = ..., cursor: _Optional[_Union[Cursor, _Mapping]] = ...) -> None: ...

class Cursor(_message.Message):
    __slots__ = ("fingerprint", "seed", "version", "epoch", "num_batches", "batch_size", "num_consumers", "consumer", "drop_last")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUM_BATCHES_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_CONSUMERS_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    DROP_LAST_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    seed: int
    version: str
    epoch: int
    num_batches: int
    batch_size: int
    num_consumers: int
    consumer: int
    drop_last: bool
    def __init__(self, fingerprint: _Optional[str] = ..., seed: _Optional[int] = ..., version: _Optional[str] = ..., epoch: _Optional[int] = ..., num_batches: _Optional[int] = ..., batch_size: _Optional[int] = ..., num_consumers: _Optional[int] = ..., consumer: _Optional[int] = ..., drop_last: bool = ...) -> None: ...

class SubscribeRequest(_message.Message):
    __slots__ = ("subscription", "credits")
    SUBSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    subscription: Subscription
    credits: int
    def __init__(self, subscription: _Optional[_Union[Subscription, _Mapping]] = ..., credits: _Optional[int] = ...) -> None: ...

class SubscribeResponse(_message.Message):
    __slots__ = ("terms", "batch", "pixel_bytes", "chunk")
    TERMS_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    PIXEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    terms: SubscriptionTerms
    batch: ReadyBatch
    pixel_bytes: int
    chunk: bytes
    def __init__(self, terms: _Optional[_Union[SubscriptionTerms, _Mapping]] = ..., batch: _Optional[_Union[ReadyBatch, _Mapping]] = ..., pixel_bytes: _Optional[int] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class SubscriptionTerms(_message.Message):
    __slots__ = ("dataset", "version", "num_batches", "rendering", "lease_ms")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_BATCHES_FIELD_NUMBER: _ClassVar[int]
    RENDERING_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    dataset: DatasetInfo
    version: str
    num_batches: int
    rendering: _mixer_pb2.Rendering
    lease_ms: int
    def __init__(self, dataset: _Optional[_Union[DatasetInfo, _Mapping]] = ..., version: _Optional[str] = ..., num_batches: _Optional[int] = ..., rendering: _Optional[_Union[_mixer_pb2.Rendering, _Mapping]] = ..., lease_ms: _Optional[int] = ...) -> None: ...

class ReadyBatch(_message.Message):
    __slots__ = ("cursor", "shape", "keys", "partner", "lam", "labels", "jpeg_lengths", "mask_shape", "skipped", "mask_logits")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    LAM_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    JPEG_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    MASK_SHAPE_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    MASK_LOGITS_FIELD_NUMBER: _ClassVar[int]
    cursor: Cursor
    shape: _containers.RepeatedScalarFieldContainer[int]
    keys: _containers.RepeatedScalarFieldContainer[str]
    partner: _containers.RepeatedScalarFieldContainer[int]
    lam: _containers.RepeatedScalarFieldContainer[float]
    labels: _containers.RepeatedScalarFieldContainer[int]
    jpeg_lengths: _containers.RepeatedScalarFieldContainer[int]
    mask_shape: _containers.RepeatedScalarFieldContainer[int]
    skipped: _containers.RepeatedScalarFieldContainer[str]
    mask_logits: bytes
    def __init__(self, cursor: _Optional[_Union[Cursor, _Mapping]] = ..., shape: _Optional[_Iterable[int]] = ..., keys: _Optional[_Iterable[str]] = ..., partner: _Optional[_Iterable[int]] = ..., lam: _Optional[_Iterable[float]] = ..., labels: _Optional[_Iterable[int]] = ..., jpeg_lengths: _Optional[_Iterable[int]] = ..., mask_shape: _Optional[_Iterable[int]] = ..., skipped: _Optional[_Iterable[str]] = ..., mask_logits: _Optional[bytes] = ...) -> None: ...
