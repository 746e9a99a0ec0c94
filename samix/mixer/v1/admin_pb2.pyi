from samix.mixer.v1 import mixer_pb2 as _mixer_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MixerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MIXER_STATE_UNSPECIFIED: _ClassVar[MixerState]
    MIXER_STATE_UNLOADED: _ClassVar[MixerState]
    MIXER_STATE_LOADING: _ClassVar[MixerState]
    MIXER_STATE_READY: _ClassVar[MixerState]
    MIXER_STATE_FAILED: _ClassVar[MixerState]
MIXER_STATE_UNSPECIFIED: MixerState
MIXER_STATE_UNLOADED: MixerState
MIXER_STATE_LOADING: MixerState
MIXER_STATE_READY: MixerState
MIXER_STATE_FAILED: MixerState

class RepositoryEntry(_message.Message):
    __slots__ = ("name", "version", "file", "state", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    file: str
    state: MixerState
    reason: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., file: _Optional[str] = ..., state: _Optional[_Union[MixerState, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class ListRepositoryRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRepositoryResponse(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[RepositoryEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[RepositoryEntry, _Mapping]]] = ...) -> None: ...

class LoadMixerRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LoadMixerResponse(_message.Message):
    __slots__ = ("mixer",)
    MIXER_FIELD_NUMBER: _ClassVar[int]
    mixer: _mixer_pb2.MixerInfo
    def __init__(self, mixer: _Optional[_Union[_mixer_pb2.MixerInfo, _Mapping]] = ...) -> None: ...

class UnloadMixerRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class UnloadMixerResponse(_message.Message):
    __slots__ = ("num_versions",)
    NUM_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    num_versions: int
    def __init__(self, num_versions: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
