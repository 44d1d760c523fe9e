from outrider.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RequestRef(_message.Message):
    __slots__ = ("request", "epoch")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    request: int
    epoch: int
    def __init__(self, request: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("sampling", "acceptance_rule", "num_prompt_tokens", "end_token_ids", "bad_words", "grammar")
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_RULE_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    END_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BAD_WORDS_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    sampling: _inference_pb2.SamplingParams
    acceptance_rule: _inference_pb2.AcceptanceRule
    num_prompt_tokens: int
    end_token_ids: _containers.RepeatedScalarFieldContainer[int]
    bad_words: _containers.RepeatedCompositeFieldContainer[_inference_pb2.TokenIds]
    grammar: str
    def __init__(self, sampling: _Optional[_Union[_inference_pb2.SamplingParams, _Mapping]] = ..., acceptance_rule: _Optional[_Union[_inference_pb2.AcceptanceRule, str]] = ..., num_prompt_tokens: _Optional[int] = ..., end_token_ids: _Optional[_Iterable[int]] = ..., bad_words: _Optional[_Iterable[_Union[_inference_pb2.TokenIds, _Mapping]]] = ..., grammar: _Optional[str] = ...) -> None: ...

class TokenSpan(_message.Message):
    __slots__ = ("start", "ids")
    START_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    start: int
    ids: bytes
    def __init__(self, start: _Optional[int] = ..., ids: _Optional[bytes] = ...) -> None: ...

class Vocabulary(_message.Message):
    __slots__ = ("size", "tokens")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    size: int
    tokens: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, size: _Optional[int] = ..., tokens: _Optional[_Iterable[str]] = ...) -> None: ...

class SparseLaws(_message.Message):
    __slots__ = ("counts", "ids", "probabilities")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    counts: bytes
    ids: bytes
    probabilities: bytes
    def __init__(self, counts: _Optional[bytes] = ..., ids: _Optional[bytes] = ..., probabilities: _Optional[bytes] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
