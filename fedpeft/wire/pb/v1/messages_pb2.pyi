from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TensorSpec(_message.Message):
    __slots__ = ("name", "shape", "dtype")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("version", "job", "round", "config_hash", "plan_hash", "base_hash", "manifest", "manifest_hash", "codec", "num_elements", "payload_sha256", "privacy", "fence", "run", "answers", "broadcast", "update", "join", "joined", "evaluated")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CONFIG_HASH_FIELD_NUMBER: _ClassVar[int]
    PLAN_HASH_FIELD_NUMBER: _ClassVar[int]
    BASE_HASH_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_HASH_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    NUM_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SHA256_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    BROADCAST_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    version: int
    job: str
    round: int
    config_hash: str
    plan_hash: str
    base_hash: str
    manifest: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    manifest_hash: str
    codec: _containers.RepeatedScalarFieldContainer[str]
    num_elements: int
    payload_sha256: bytes
    privacy: str
    fence: int
    run: bytes
    answers: bytes
    broadcast: Broadcast
    update: Update
    join: Join
    joined: Joined
    evaluated: Evaluated
    def __init__(self, version: _Optional[int] = ..., job: _Optional[str] = ..., round: _Optional[int] = ..., config_hash: _Optional[str] = ..., plan_hash: _Optional[str] = ..., base_hash: _Optional[str] = ..., manifest: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., manifest_hash: _Optional[str] = ..., codec: _Optional[_Iterable[str]] = ..., num_elements: _Optional[int] = ..., payload_sha256: _Optional[bytes] = ..., privacy: _Optional[str] = ..., fence: _Optional[int] = ..., run: _Optional[bytes] = ..., answers: _Optional[bytes] = ..., broadcast: _Optional[_Union[Broadcast, _Mapping]] = ..., update: _Optional[_Union[Update, _Mapping]] = ..., join: _Optional[_Union[Join, _Mapping]] = ..., joined: _Optional[_Union[Joined, _Mapping]] = ..., evaluated: _Optional[_Union[Evaluated, _Mapping]] = ...) -> None: ...

class Broadcast(_message.Message):
    __slots__ = ("kind", "client", "directive", "changes")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Broadcast.Kind]
        KIND_TRAIN: _ClassVar[Broadcast.Kind]
        KIND_EVALUATE: _ClassVar[Broadcast.Kind]
    KIND_UNSPECIFIED: Broadcast.Kind
    KIND_TRAIN: Broadcast.Kind
    KIND_EVALUATE: Broadcast.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    DIRECTIVE_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    kind: Broadcast.Kind
    client: int
    directive: Directive
    changes: Changes
    def __init__(self, kind: _Optional[_Union[Broadcast.Kind, str]] = ..., client: _Optional[int] = ..., directive: _Optional[_Union[Directive, _Mapping]] = ..., changes: _Optional[_Union[Changes, _Mapping]] = ...) -> None: ...

class Changes(_message.Message):
    __slots__ = ("since", "until", "adapter_hash")
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_HASH_FIELD_NUMBER: _ClassVar[int]
    since: int
    until: int
    adapter_hash: str
    def __init__(self, since: _Optional[int] = ..., until: _Optional[int] = ..., adapter_hash: _Optional[str] = ...) -> None: ...

class Directive(_message.Message):
    __slots__ = ("train", "rank", "scale", "held")
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    train: Slots
    rank: int
    scale: float
    held: int
    def __init__(self, train: _Optional[_Union[Slots, _Mapping]] = ..., rank: _Optional[int] = ..., scale: _Optional[float] = ..., held: _Optional[int] = ...) -> None: ...

class Slots(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class Update(_message.Message):
    __slots__ = ("client", "num_examples", "num_steps", "train_loss", "seconds")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_LOSS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    client: int
    num_examples: int
    num_steps: int
    train_loss: float
    seconds: float
    def __init__(self, client: _Optional[int] = ..., num_examples: _Optional[int] = ..., num_steps: _Optional[int] = ..., train_loss: _Optional[float] = ..., seconds: _Optional[float] = ...) -> None: ...

class Evaluated(_message.Message):
    __slots__ = ("client", "num_examples", "sums")
    class SumsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SUMS_FIELD_NUMBER: _ClassVar[int]
    client: int
    num_examples: int
    sums: _containers.ScalarMap[str, float]
    def __init__(self, client: _Optional[int] = ..., num_examples: _Optional[int] = ..., sums: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Joined(_message.Message):
    __slots__ = ("client", "versions")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    client: int
    versions: _containers.ScalarMap[str, str]
    def __init__(self, client: _Optional[int] = ..., versions: _Optional[_Mapping[str, str]] = ...) -> None: ...
