from outrider.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DrafterWorkerDescription(_message.Message):
    __slots__ = ("name", "drafters", "device")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DRAFTERS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    name: str
    drafters: _containers.RepeatedCompositeFieldContainer[DrafterDescription]
    device: str
    def __init__(self, name: _Optional[str] = ..., drafters: _Optional[_Iterable[_Union[DrafterDescription, _Mapping]]] = ..., device: _Optional[str] = ...) -> None: ...

class DrafterDescription(_message.Message):
    __slots__ = ("name", "kind", "model", "vocabulary", "max_context", "draws", "reads_text")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    READS_TEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    model: str
    vocabulary: _worker_pb2.Vocabulary
    max_context: int
    draws: bool
    reads_text: bool
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., model: _Optional[str] = ..., vocabulary: _Optional[_Union[_worker_pb2.Vocabulary, _Mapping]] = ..., max_context: _Optional[int] = ..., draws: _Optional[bool] = ..., reads_text: _Optional[bool] = ...) -> None: ...

class TargetTokenizer(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: bytes
    def __init__(self, json: _Optional[bytes] = ...) -> None: ...

class TokenizerTaken(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrafterCommand(_message.Message):
    __slots__ = ("orders", "release")
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    orders: DraftOrders
    release: DraftRelease
    def __init__(self, orders: _Optional[_Union[DraftOrders, _Mapping]] = ..., release: _Optional[_Union[DraftRelease, _Mapping]] = ...) -> None: ...

class DraftOrders(_message.Message):
    __slots__ = ("orders",)
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    orders: _containers.RepeatedCompositeFieldContainer[DraftOrder]
    def __init__(self, orders: _Optional[_Iterable[_Union[DraftOrder, _Mapping]]] = ...) -> None: ...

class DraftOrder(_message.Message):
    __slots__ = ("ref", "drafter", "committed_len", "open", "tokens", "max_nodes", "min_survival")
    REF_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_LEN_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_NODES_FIELD_NUMBER: _ClassVar[int]
    MIN_SURVIVAL_FIELD_NUMBER: _ClassVar[int]
    ref: _worker_pb2.RequestRef
    drafter: str
    committed_len: int
    open: _worker_pb2.OpenRequest
    tokens: _worker_pb2.TokenSpan
    max_nodes: int
    min_survival: float
    def __init__(self, ref: _Optional[_Union[_worker_pb2.RequestRef, _Mapping]] = ..., drafter: _Optional[str] = ..., committed_len: _Optional[int] = ..., open: _Optional[_Union[_worker_pb2.OpenRequest, _Mapping]] = ..., tokens: _Optional[_Union[_worker_pb2.TokenSpan, _Mapping]] = ..., max_nodes: _Optional[int] = ..., min_survival: _Optional[float] = ...) -> None: ...

class DraftRelease(_message.Message):
    __slots__ = ("ref", "drafter")
    REF_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    ref: _worker_pb2.RequestRef
    drafter: str
    def __init__(self, ref: _Optional[_Union[_worker_pb2.RequestRef, _Mapping]] = ..., drafter: _Optional[str] = ...) -> None: ...

class DrafterReport(_message.Message):
    __slots__ = ("growths",)
    GROWTHS_FIELD_NUMBER: _ClassVar[int]
    growths: Growths
    def __init__(self, growths: _Optional[_Union[Growths, _Mapping]] = ...) -> None: ...

class Growths(_message.Message):
    __slots__ = ("growths", "step_ms", "drafter")
    GROWTHS_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    growths: _containers.RepeatedCompositeFieldContainer[Growth]
    step_ms: float
    drafter: str
    def __init__(self, growths: _Optional[_Iterable[_Union[Growth, _Mapping]]] = ..., step_ms: _Optional[float] = ..., drafter: _Optional[str] = ...) -> None: ...

class Growth(_message.Message):
    __slots__ = ("ref", "committed_len", "first_node", "tokens", "distances", "scores", "is_done", "is_prefix_missing", "laws")
    REF_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_LEN_FIELD_NUMBER: _ClassVar[int]
    FIRST_NODE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    DISTANCES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    IS_DONE_FIELD_NUMBER: _ClassVar[int]
    IS_PREFIX_MISSING_FIELD_NUMBER: _ClassVar[int]
    LAWS_FIELD_NUMBER: _ClassVar[int]
    ref: _worker_pb2.RequestRef
    committed_len: int
    first_node: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    distances: _containers.RepeatedScalarFieldContainer[int]
    scores: bytes
    is_done: bool
    is_prefix_missing: bool
    laws: _worker_pb2.SparseLaws
    def __init__(self, ref: _Optional[_Union[_worker_pb2.RequestRef, _Mapping]] = ..., committed_len: _Optional[int] = ..., first_node: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., distances: _Optional[_Iterable[int]] = ..., scores: _Optional[bytes] = ..., is_done: _Optional[bool] = ..., is_prefix_missing: _Optional[bool] = ..., laws: _Optional[_Union[_worker_pb2.SparseLaws, _Mapping]] = ...) -> None: ...
