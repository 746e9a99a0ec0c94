from samix.mixer.v1 import mixer_pb2 as _mixer_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WeightFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEIGHT_FORMAT_UNSPECIFIED: _ClassVar[WeightFormat]
    WEIGHT_FORMAT_FLOAT32: _ClassVar[WeightFormat]
    WEIGHT_FORMAT_BFLOAT16: _ClassVar[WeightFormat]

class LogitFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOGIT_FORMAT_UNSPECIFIED: _ClassVar[LogitFormat]
    LOGIT_FORMAT_FLOAT16: _ClassVar[LogitFormat]
    LOGIT_FORMAT_FLOAT32: _ClassVar[LogitFormat]
WEIGHT_FORMAT_UNSPECIFIED: WeightFormat
WEIGHT_FORMAT_FLOAT32: WeightFormat
WEIGHT_FORMAT_BFLOAT16: WeightFormat
LOGIT_FORMAT_UNSPECIFIED: LogitFormat
LOGIT_FORMAT_FLOAT16: LogitFormat
LOGIT_FORMAT_FLOAT32: LogitFormat

class SessionKey(_message.Message):
    __slots__ = ("session", "token")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    session: str
    token: bytes
    def __init__(self, session: _Optional[str] = ..., token: _Optional[bytes] = ...) -> None: ...

class SessionSettings(_message.Message):
    __slots__ = ("mixer", "learning", "num_classes", "clean_head", "world_size", "batch_size", "steps_per_epoch", "epochs", "seed", "weights_every", "max_staleness", "uses_bfloat16", "logit_format", "recipe")
    MIXER_FIELD_NUMBER: _ClassVar[int]
    LEARNING_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    CLEAN_HEAD_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_EVERY_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    USES_BFLOAT16_FIELD_NUMBER: _ClassVar[int]
    LOGIT_FORMAT_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    mixer: str
    learning: str
    num_classes: int
    clean_head: bool
    world_size: int
    batch_size: int
    steps_per_epoch: int
    epochs: int
    seed: int
    weights_every: int
    max_staleness: int
    uses_bfloat16: bool
    logit_format: LogitFormat
    recipe: str
    def __init__(self, mixer: _Optional[str] = ..., learning: _Optional[str] = ..., num_classes: _Optional[int] = ..., clean_head: bool = ..., world_size: _Optional[int] = ..., batch_size: _Optional[int] = ..., steps_per_epoch: _Optional[int] = ..., epochs: _Optional[int] = ..., seed: _Optional[int] = ..., weights_every: _Optional[int] = ..., max_staleness: _Optional[int] = ..., uses_bfloat16: bool = ..., logit_format: _Optional[_Union[LogitFormat, str]] = ..., recipe: _Optional[str] = ...) -> None: ...

class SessionState(_message.Message):
    __slots__ = ("step", "has_weights", "weights_step", "weights_age_s", "checkpoint_step", "is_restored", "ranks", "losses")
    STEP_FIELD_NUMBER: _ClassVar[int]
    HAS_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_STEP_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_AGE_S_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_STEP_FIELD_NUMBER: _ClassVar[int]
    IS_RESTORED_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    step: int
    has_weights: bool
    weights_step: int
    weights_age_s: float
    checkpoint_step: int
    is_restored: bool
    ranks: _containers.RepeatedScalarFieldContainer[int]
    losses: OnlineLosses
    def __init__(self, step: _Optional[int] = ..., has_weights: bool = ..., weights_step: _Optional[int] = ..., weights_age_s: _Optional[float] = ..., checkpoint_step: _Optional[int] = ..., is_restored: bool = ..., ranks: _Optional[_Iterable[int]] = ..., losses: _Optional[_Union[OnlineLosses, _Mapping]] = ...) -> None: ...

class OnlineLosses(_message.Message):
    __slots__ = ("step", "classification", "mask", "lam_error", "spread")
    STEP_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    LAM_ERROR_FIELD_NUMBER: _ClassVar[int]
    SPREAD_FIELD_NUMBER: _ClassVar[int]
    step: int
    classification: float
    mask: float
    lam_error: float
    spread: float
    def __init__(self, step: _Optional[int] = ..., classification: _Optional[float] = ..., mask: _Optional[float] = ..., lam_error: _Optional[float] = ..., spread: _Optional[float] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("key", "settings", "step")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    key: SessionKey
    settings: SessionSettings
    step: int
    def __init__(self, key: _Optional[_Union[SessionKey, _Mapping]] = ..., settings: _Optional[_Union[SessionSettings, _Mapping]] = ..., step: _Optional[int] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("state", "found_step", "is_new", "tensors", "max_chunk_bytes")
    STATE_FIELD_NUMBER: _ClassVar[int]
    FOUND_STEP_FIELD_NUMBER: _ClassVar[int]
    IS_NEW_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    state: SessionState
    found_step: int
    is_new: bool
    tensors: _containers.RepeatedCompositeFieldContainer[TensorInfo]
    max_chunk_bytes: int
    def __init__(self, state: _Optional[_Union[SessionState, _Mapping]] = ..., found_step: _Optional[int] = ..., is_new: bool = ..., tensors: _Optional[_Iterable[_Union[TensorInfo, _Mapping]]] = ..., max_chunk_bytes: _Optional[int] = ...) -> None: ...

class TensorInfo(_message.Message):
    __slots__ = ("name", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class CoTrainRequest(_message.Message):
    __slots__ = ("join", "batch", "pixel_bytes", "chunk")
    JOIN_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    PIXEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    join: RankJoin
    batch: TrainBatch
    pixel_bytes: int
    chunk: bytes
    def __init__(self, join: _Optional[_Union[RankJoin, _Mapping]] = ..., batch: _Optional[_Union[TrainBatch, _Mapping]] = ..., pixel_bytes: _Optional[int] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class RankJoin(_message.Message):
    __slots__ = ("key", "rank")
    KEY_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    key: SessionKey
    rank: int
    def __init__(self, key: _Optional[_Union[SessionKey, _Mapping]] = ..., rank: _Optional[int] = ...) -> None: ...

class TrainBatch(_message.Message):
    __slots__ = ("step", "shape", "labels", "mixers", "students", "timeout_ms")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MIXERS_FIELD_NUMBER: _ClassVar[int]
    STUDENTS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    step: int
    shape: _containers.RepeatedScalarFieldContainer[int]
    labels: _containers.RepeatedScalarFieldContainer[int]
    mixers: StepPlan
    students: StepPlan
    timeout_ms: int
    def __init__(self, step: _Optional[int] = ..., shape: _Optional[_Iterable[int]] = ..., labels: _Optional[_Iterable[int]] = ..., mixers: _Optional[_Union[StepPlan, _Mapping]] = ..., students: _Optional[_Union[StepPlan, _Mapping]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class StepPlan(_message.Message):
    __slots__ = ("lam", "partner")
    LAM_FIELD_NUMBER: _ClassVar[int]
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    lam: _containers.RepeatedScalarFieldContainer[float]
    partner: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, lam: _Optional[_Iterable[float]] = ..., partner: _Optional[_Iterable[int]] = ...) -> None: ...

class CoTrainResponse(_message.Message):
    __slots__ = ("step", "terms", "refusal", "answer", "chunk")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    step: int
    terms: CoTrainTerms
    refusal: _mixer_pb2.Refusal
    answer: CoTrainAnswer
    chunk: bytes
    def __init__(self, step: _Optional[int] = ..., terms: _Optional[_Union[CoTrainTerms, _Mapping]] = ..., refusal: _Optional[_Union[_mixer_pb2.Refusal, _Mapping]] = ..., answer: _Optional[_Union[CoTrainAnswer, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class CoTrainTerms(_message.Message):
    __slots__ = ("credits", "max_chunk_bytes", "state")
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    credits: int
    max_chunk_bytes: int
    state: SessionState
    def __init__(self, credits: _Optional[int] = ..., max_chunk_bytes: _Optional[int] = ..., state: _Optional[_Union[SessionState, _Mapping]] = ...) -> None: ...

class CoTrainAnswer(_message.Message):
    __slots__ = ("mask_shape", "logit_bytes", "learned_steps", "weights_step", "losses")
    MASK_SHAPE_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEARNED_STEPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_STEP_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    mask_shape: _containers.RepeatedScalarFieldContainer[int]
    logit_bytes: int
    learned_steps: int
    weights_step: int
    losses: OnlineLosses
    def __init__(self, mask_shape: _Optional[_Iterable[int]] = ..., logit_bytes: _Optional[int] = ..., learned_steps: _Optional[int] = ..., weights_step: _Optional[int] = ..., losses: _Optional[_Union[OnlineLosses, _Mapping]] = ...) -> None: ...

class SendWeightsRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: WeightsHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[WeightsHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class WeightsHeader(_message.Message):
    __slots__ = ("key", "step", "format", "tensors", "num_bytes", "sha256")
    KEY_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    key: SessionKey
    step: int
    format: WeightFormat
    tensors: _containers.RepeatedCompositeFieldContainer[TensorInfo]
    num_bytes: int
    sha256: bytes
    def __init__(self, key: _Optional[_Union[SessionKey, _Mapping]] = ..., step: _Optional[int] = ..., format: _Optional[_Union[WeightFormat, str]] = ..., tensors: _Optional[_Iterable[_Union[TensorInfo, _Mapping]]] = ..., num_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class SendWeightsResponse(_message.Message):
    __slots__ = ("weights_step",)
    WEIGHTS_STEP_FIELD_NUMBER: _ClassVar[int]
    weights_step: int
    def __init__(self, weights_step: _Optional[int] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: SessionKey
    def __init__(self, key: _Optional[_Union[SessionKey, _Mapping]] = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: SessionState
    def __init__(self, state: _Optional[_Union[SessionState, _Mapping]] = ...) -> None: ...

class ExportMixerRequest(_message.Message):
    __slots__ = ("key", "name")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    key: SessionKey
    name: str
    def __init__(self, key: _Optional[_Union[SessionKey, _Mapping]] = ..., name: _Optional[str] = ...) -> None: ...

class ExportMixerResponse(_message.Message):
    __slots__ = ("mixer", "chunk")
    MIXER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    mixer: ExportedMixer
    chunk: bytes
    def __init__(self, mixer: _Optional[_Union[ExportedMixer, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class ExportedMixer(_message.Message):
    __slots__ = ("name", "version", "sha256", "step", "num_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    sha256: str
    step: int
    num_bytes: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., sha256: _Optional[str] = ..., step: _Optional[int] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("key", "name")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    key: SessionKey
    name: str
    def __init__(self, key: _Optional[_Union[SessionKey, _Mapping]] = ..., name: _Optional[str] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ("file", "sha256")
    FILE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    file: str
    sha256: str
    def __init__(self, file: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...
