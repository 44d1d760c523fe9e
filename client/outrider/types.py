"""What a caller says and what it gets back: plain values, no gRPC.

Every field that is None is left unset on the wire, and so means the server's documented default
(`protos/outrider/v1/inference.proto`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

SpeculationMode = Literal["auto", "off"]
AcceptanceRule = Literal["coupled", "rejection", "typical"]
ServiceClass = Literal["interactive", "standard", "batch"]
FinishReason = Literal["end", "stop", "length"]
TokenSource = Literal["target", "draft"]


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the target chooses tokens. Temperature 0 is greedy; the same seed gives the same tokens.

    At most one of `json_schema` (its text), `regex`, `grammar` (Lark) and `choice` constrains the answer.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool | None = None
    include_stop: bool | None = None
    min_tokens: int | None = None
    bad_words: Sequence[str] = ()
    allowed_token_ids: Sequence[int] = ()
    n: int | None = None
    logprobs: int | None = None
    skip_special_tokens: bool | None = None
    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Whether and how drafts are used. With the default rule they change the speed, never the tokens."""

    mode: SpeculationMode | None = None
    drafters: Sequence[str] = ()
    max_nodes: int | None = None
    acceptance_rule: AcceptanceRule | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """What the server says before the first token. With `seed` the same answer can be had again."""

    request_id: str
    model: str
    seed: int
    num_prompt_tokens: int
    max_tokens: int = 0  # of this answer, as asked for or by default; 0: an older server
    prompt_hash: int = 0  # of the prompt's token ids; 0: an older server


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the target's probabilities: of the token itself, and of the likeliest ones."""

    logprob: float
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]  # parallel to top_ids


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer. `text` is empty where the token ends inside a character."""

    id: int
    text: str
    source: TokenSource
    logprobs: TokenLogprobs | None = None  # None unless SamplingParams.logprobs asked for them


@dataclass(frozen=True, slots=True)
class Usage:
    num_prompt_tokens: int
    num_cached_prompt_tokens: int
    num_completion_tokens: int
    queue_s: float
    time_to_first_token_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class DrafterStats:
    name: str
    num_drafted_nodes: int
    num_accepted_tokens: int


@dataclass(frozen=True, slots=True)
class SpeculationStats:
    mode: SpeculationMode
    acceptance_rule: AcceptanceRule
    is_lossy: bool
    num_passes: int
    num_drafted_nodes: int
    num_accepted_tokens: int
    drafters: tuple[DrafterStats, ...]
    num_hits: int = 0  # passes after which drafted nodes were there already: run-ahead
    mean_hit_depth: float = 0.0  # how deep they reached then, over the hits


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. The tuples are parallel, one entry a token."""

    request_id: str
    model: str
    seed: int
    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    sources: tuple[TokenSource, ...]
    text: str  # the texts, joined
    logprobs: tuple[TokenLogprobs, ...] | None  # None unless SamplingParams.logprobs asked for them
    finish_reason: FinishReason
    matched_stop: str
    usage: Usage
    speculation: SpeculationStats
    # That were here when the stream broke for the last time: the times, cached tokens, passes and drafts in usage and
    # speculation are of what came after it. 0: it did not break.
    num_resumed_tokens: int = 0

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The answer token by token, as it was streamed."""
        logprobs = self.logprobs or (None,) * len(self.token_ids)
        return tuple(map(Token, self.token_ids, self.texts, self.sources, logprobs))

    @property
    def tokens_per_pass(self) -> float:
        """Tokens of this answer per pass of the target; 1 with no draft accepted."""
        num_tokens = len(self.token_ids) - self.num_resumed_tokens
        return num_tokens / self.speculation.num_passes if self.speculation.num_passes else 0.0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    model: str
    vocab_size: int
    max_context: int
    end_token_ids: tuple[int, ...]
    dtype: str
    has_chat_template: bool


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    name: str
    kind: str
    model: str
    state: str
    detail: str
    num_ranks: int
    num_verdicts: int = 0  # of a drafter: on its best guess for the next token
    acceptance: float = 0.0  # how often that was the target's choice, of late
    address: str = ""
    num_running_requests: int = 0  # on a target group, as the next two
    num_free_kv_blocks: int = 0
    num_kv_blocks: int = 0


@dataclass(frozen=True, slots=True)
class DrafterPool:
    """The drafters of one name, where their number is scaled."""

    name: str
    num_wanted: int
    num_present: int  # serving, and wanted
    num_starting: int
    num_draining: int  # not wanted any more, and still there
    min_workers: int
    max_workers: int
    goodput: float | None  # tokens a second of the whole cell with as many as are wanted; None: not known
    worth_of_one_more: float | None  # tokens a second that it would add
    worth_of_the_last: float | None  # that one fewer would lose
    reason: str  # for the number that is wanted


@dataclass(frozen=True, slots=True)
class TargetPool:
    """The target groups, where their number is scaled."""

    num_wanted: int
    num_present: int  # serving, and wanted
    num_starting: int
    num_draining: int  # not wanted any more, and still there
    min_groups: int
    max_groups: int
    num_waiting: int  # requests that wait for a place or KV blocks
    demand: float  # groups that all requests which run or wait would fill
    reason: str  # for the number that is wanted


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    pool: str  # a name of drafters, or "target groups"
    time_s: float  # Unix time
    num_before: int
    num_after: int
    reason: str


@dataclass(frozen=True, slots=True)
class Scaling:
    """Of the cell's drafters and target groups; empty where nothing scales them."""

    is_dry_run: bool = False  # decided, and not done
    pools: tuple[DrafterPool, ...] = ()
    decisions: tuple[ScalingDecision, ...] = ()  # the newest first
    target: TargetPool | None = None


@dataclass(frozen=True, slots=True)
class ServerInfo:
    version: str
    state: str
    max_running_requests: int
    max_queued_requests: int
    max_message_bytes: int
    max_nodes_per_pass: int
    num_running_requests: int
    num_queued_requests: int
    num_free_kv_blocks: int
    num_kv_blocks: int
    num_passes: int  # of all target groups, since the scheduler started
    busy_s: float  # in which passes ran
    bubble_s: float  # in which none did, while requests wanted one
    targets: tuple[WorkerInfo, ...]
    drafters: tuple[WorkerInfo, ...]
    scaling: Scaling = Scaling()
