from outrider.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RowStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROW_STATUS_UNSPECIFIED: _ClassVar[RowStatus]
    ROW_STATUS_OK: _ClassVar[RowStatus]
    ROW_STATUS_PREFIX_MISSING: _ClassVar[RowStatus]
    ROW_STATUS_NO_CAPACITY: _ClassVar[RowStatus]
    ROW_STATUS_INVALID: _ClassVar[RowStatus]
    ROW_STATUS_FAILED: _ClassVar[RowStatus]
    ROW_STATUS_NO_TOKEN: _ClassVar[RowStatus]
ROW_STATUS_UNSPECIFIED: RowStatus
ROW_STATUS_OK: RowStatus
ROW_STATUS_PREFIX_MISSING: RowStatus
ROW_STATUS_NO_CAPACITY: RowStatus
ROW_STATUS_INVALID: RowStatus
ROW_STATUS_FAILED: RowStatus
ROW_STATUS_NO_TOKEN: RowStatus

class TargetDescription(_message.Message):
    __slots__ = ("name", "model", "vocabulary", "max_context", "end_token_ids", "dtype", "device", "num_ranks", "block_size", "num_kv_blocks", "max_pass_tokens", "pass_costs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    END_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NUM_RANKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_PASS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PASS_COSTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    vocabulary: _worker_pb2.Vocabulary
    max_context: int
    end_token_ids: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    device: str
    num_ranks: int
    block_size: int
    num_kv_blocks: int
    max_pass_tokens: int
    pass_costs: _containers.RepeatedCompositeFieldContainer[PassCost]
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., vocabulary: _Optional[_Union[_worker_pb2.Vocabulary, _Mapping]] = ..., max_context: _Optional[int] = ..., end_token_ids: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., num_ranks: _Optional[int] = ..., block_size: _Optional[int] = ..., num_kv_blocks: _Optional[int] = ..., max_pass_tokens: _Optional[int] = ..., pass_costs: _Optional[_Iterable[_Union[PassCost, _Mapping]]] = ...) -> None: ...

class PassCost(_message.Message):
    __slots__ = ("num_tokens", "context_len", "pass_ms")
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LEN_FIELD_NUMBER: _ClassVar[int]
    PASS_MS_FIELD_NUMBER: _ClassVar[int]
    num_tokens: int
    context_len: int
    pass_ms: float
    def __init__(self, num_tokens: _Optional[int] = ..., context_len: _Optional[int] = ..., pass_ms: _Optional[float] = ...) -> None: ...

class GetTokenizerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TokenizerPiece(_message.Message):
    __slots__ = ("file", "data")
    FILE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    file: str
    data: bytes
    def __init__(self, file: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class TargetCommand(_message.Message):
    __slots__ = ("release",)
    PASS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    release: _worker_pb2.RequestRef
    def __init__(self, release: _Optional[_Union[_worker_pb2.RequestRef, _Mapping]] = ..., **kwargs) -> None: ...

class Pass(_message.Message):
    __slots__ = ("pass_id", "rows")
    PASS_ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    pass_id: int
    rows: _containers.RepeatedCompositeFieldContainer[Row]
    def __init__(self, pass_id: _Optional[int] = ..., rows: _Optional[_Iterable[_Union[Row, _Mapping]]] = ...) -> None: ...

class Row(_message.Message):
    __slots__ = ("ref", "committed_len", "open", "tokens", "node_tokens", "node_parents", "laws", "is_ahead")
    REF_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_LEN_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    NODE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NODE_PARENTS_FIELD_NUMBER: _ClassVar[int]
    LAWS_FIELD_NUMBER: _ClassVar[int]
    IS_AHEAD_FIELD_NUMBER: _ClassVar[int]
    ref: _worker_pb2.RequestRef
    committed_len: int
    open: _worker_pb2.OpenRequest
    tokens: _worker_pb2.TokenSpan
    node_tokens: bytes
    node_parents: bytes
    laws: _worker_pb2.SparseLaws
    is_ahead: bool
    def __init__(self, ref: _Optional[_Union[_worker_pb2.RequestRef, _Mapping]] = ..., committed_len: _Optional[int] = ..., open: _Optional[_Union[_worker_pb2.OpenRequest, _Mapping]] = ..., tokens: _Optional[_Union[_worker_pb2.TokenSpan, _Mapping]] = ..., node_tokens: _Optional[bytes] = ..., node_parents: _Optional[bytes] = ..., laws: _Optional[_Union[_worker_pb2.SparseLaws, _Mapping]] = ..., is_ahead: _Optional[bool] = ...) -> None: ...

class RowResult(_message.Message):
    __slots__ = ("ref", "committed_len", "status", "tokens", "known_len", "num_cached_tokens", "detail", "logprobs")
    REF_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_LEN_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_LEN_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ref: _worker_pb2.RequestRef
    committed_len: int
    status: RowStatus
    tokens: bytes
    known_len: int
    num_cached_tokens: int
    detail: str
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobsPacked]
    def __init__(self, ref: _Optional[_Union[_worker_pb2.RequestRef, _Mapping]] = ..., committed_len: _Optional[int] = ..., status: _Optional[_Union[RowStatus, str]] = ..., tokens: _Optional[bytes] = ..., known_len: _Optional[int] = ..., num_cached_tokens: _Optional[int] = ..., detail: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobsPacked, _Mapping]]] = ...) -> None: ...

class TokenLogprobsPacked(_message.Message):
    __slots__ = ("ids", "logprobs")
    IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ids: bytes
    logprobs: bytes
    def __init__(self, ids: _Optional[bytes] = ..., logprobs: _Optional[bytes] = ...) -> None: ...

class PassResult(_message.Message):
    __slots__ = ("pass_id", "rows", "pass_ms", "idle_ms", "num_tokens", "num_free_kv_blocks")
    PASS_ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PASS_MS_FIELD_NUMBER: _ClassVar[int]
    IDLE_MS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    pass_id: int
    rows: _containers.RepeatedCompositeFieldContainer[RowResult]
    pass_ms: float
    idle_ms: float
    num_tokens: int
    num_free_kv_blocks: int
    def __init__(self, pass_id: _Optional[int] = ..., rows: _Optional[_Iterable[_Union[RowResult, _Mapping]]] = ..., pass_ms: _Optional[float] = ..., idle_ms: _Optional[float] = ..., num_tokens: _Optional[int] = ..., num_free_kv_blocks: _Optional[int] = ...) -> None: ...

class TargetReport(_message.Message):
    __slots__ = ("pass_result",)
    PASS_RESULT_FIELD_NUMBER: _ClassVar[int]
    pass_result: PassResult
    def __init__(self, pass_result: _Optional[_Union[PassResult, _Mapping]] = ...) -> None: ...
