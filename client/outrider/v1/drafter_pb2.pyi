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
    __slots__ = ("released", "openings", "orders")
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    OPENINGS_FIELD_NUMBER: _ClassVar[int]
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    released: _containers.RepeatedScalarFieldContainer[int]
    openings: _containers.RepeatedCompositeFieldContainer[DraftOpening]
    orders: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, released: _Optional[_Iterable[int]] = ..., openings: _Optional[_Iterable[_Union[DraftOpening, _Mapping]]] = ..., orders: _Optional[_Iterable[int]] = ...) -> None: ...

class DraftOpening(_message.Message):
    __slots__ = ("draft", "ref", "drafter", "request")
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    draft: int
    ref: _worker_pb2.RequestRef
    drafter: str
    request: _worker_pb2.OpenRequest
    def __init__(self, draft: _Optional[int] = ..., ref: _Optional[_Union[_worker_pb2.RequestRef, _Mapping]] = ..., drafter: _Optional[str] = ..., request: _Optional[_Union[_worker_pb2.OpenRequest, _Mapping]] = ...) -> None: ...

class DrafterReport(_message.Message):
    __slots__ = ("growths", "laws", "missing", "released")
    GROWTHS_FIELD_NUMBER: _ClassVar[int]
    LAWS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    growths: _containers.RepeatedScalarFieldContainer[int]
    laws: _worker_pb2.SparseLaws
    missing: _containers.RepeatedScalarFieldContainer[int]
    released: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, growths: _Optional[_Iterable[int]] = ..., laws: _Optional[_Union[_worker_pb2.SparseLaws, _Mapping]] = ..., missing: _Optional[_Iterable[int]] = ..., released: _Optional[_Iterable[int]] = ...) -> None: ...
