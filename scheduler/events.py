"""What the core is told (events) and what it wants done (commands): its whole contact with the world.

Plain values. The service and the links translate between these and gRPC. Nobody changes them; those that come by the
row are not frozen all the same, since a frozen one takes three times as long to make.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from outrider.draft_law import DraftLaw
from outrider.errors import OutriderError
from outrider.types import FinishReason, TokenLogprobs, TokenSource
from outrider.v1.inference_pb2 import ACCEPTANCE_RULE_REJECTION, SERVICE_CLASS_STANDARD, ServiceClass
from outrider.v1.worker_pb2 import OpenRequest

Guesses = Literal["greedy", "sampled", "drawn"]
RowStatus = Literal["ok", "prefix_missing", "no_capacity", "invalid", "failed", "no_token"]


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A validated, tokenised request. Times are seconds on the core's clock."""

    number: int  # unique in this process, never reused
    prompt: Sequence[int]
    max_tokens: int
    end_token_ids: frozenset[int]  # generation ends after one of these; empty with ignore_eos
    stop_token_ids: frozenset[int]
    opening: OpenRequest  # what the workers must know to choose; the seed is filled in
    speculates: bool
    drafters: frozenset[str]  # names that may draft; empty: all
    max_nodes: int  # draft nodes verified in one pass
    deadline_s: float | None
    resumed: Sequence[int] = ()  # tokens of the answer that the client holds already
    leader: int | None = None  # a request with the same prompt: starts when that one has its first token, or is over
    service_class: ServiceClass = SERVICE_CLASS_STANDARD
    tenant: str = ""  # who asks; empty: not known

    @property
    def is_drawn_for(self) -> bool:
        """Whether its acceptance rule asks for nodes that are drawn from a law."""
        is_sampled = self.opening.sampling.temperature > 0
        return is_sampled and self.opening.acceptance_rule == ACCEPTANCE_RULE_REJECTION

    @property
    def guesses(self) -> Guesses:
        """What its nodes are guesses of; they come true at different rates."""
        if self.is_drawn_for:
            return "drawn"
        return "greedy" if self.opening.sampling.temperature == 0 else "sampled"

    def may_use(self, drafter: str) -> bool:
        return self.speculates and (not self.drafters or drafter in self.drafters)


@dataclass(frozen=True, slots=True)
class PassCost:
    """A measured point of V: the time of a pass over so many tokens, behind so long a context."""

    num_tokens: int
    context_len: int
    pass_s: float


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What the core must know of a target: its KV pool, how much fits into a pass, and how long passes take."""

    vocab_size: int
    block_size: int
    num_kv_blocks: int
    max_pass_tokens: int
    pass_costs: Sequence[PassCost] = ()  # empty: not measured


@dataclass(slots=True)
class RowOutcome:
    """A target's answer for one row. `tokens`: those accepted along the walk, then the next token."""

    request: int
    epoch: int
    committed_len: int
    status: RowStatus
    tokens: Sequence[int] = ()
    known_len: int = 0
    num_cached_tokens: int = 0
    detail: str = ""
    logprobs: Sequence[TokenLogprobs] = ()  # one a token, or none


# ── events ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Submitted:
    request: NewRequest


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client is gone: release everything, answer nothing."""

    request: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """A stop string ended the text: the request is complete."""

    request: int


@dataclass(frozen=True, slots=True)
class TargetUp:
    """A target group serves. Groups go by their addresses; tests with one group leave it without a name."""

    facts: TargetFacts
    target: str = ""


@dataclass(frozen=True, slots=True)
class TargetDown:
    """The stream to the target group ended: whatever it held or was computing is gone."""

    target: str = ""


@dataclass(frozen=True, slots=True)
class TargetLeaving:
    """The target group is there, and is to be left: whatever starts does so elsewhere."""

    target: str


@dataclass(frozen=True, slots=True)
class TargetsExpected:
    """So many target groups the cell has, those among them that are lost or have yet to come. Not those that are
    refused."""

    number: int


@dataclass(frozen=True, slots=True)
class PassDone:
    pass_id: int
    outcomes: Sequence[RowOutcome]
    num_free_kv_blocks: int
    # Of the target's own clock; 0: it did not say.
    pass_s: float = 0.0
    idle_s: float = 0.0  # it had no pass for so long before this one
    num_tokens: int = 0  # that took part in the forward
    target: str = ""


@dataclass(frozen=True, slots=True)
class DrafterUp:
    worker: str
    drafters: Sequence[str]
    drawing: frozenset[str] = frozenset()  # those that draw their nodes where the rule asks for it


@dataclass(frozen=True, slots=True)
class DrafterLeaving:
    """The worker is there, and to be left alone."""

    worker: str


@dataclass(frozen=True, slots=True)
class DrafterDown:
    worker: str


@dataclass(slots=True)
class Growth:
    """Nodes for a request's tree; the lists have one length.

    `parents` are the drafter's numbers of nodes in this epoch, 0 for the root: the token at committed_len - 1.
    """

    worker: str
    drafter: str
    request: int
    epoch: int
    committed_len: int
    first_node: int
    tokens: Sequence[int]
    parents: Sequence[int]
    scores: Sequence[float]
    is_done: bool
    is_prefix_missing: bool
    laws: Sequence[DraftLaw | None] = ()  # empty: no node was drawn


@dataclass(frozen=True, slots=True)
class Grown:
    """One report of a drafter worker. All of it counts before the next pass is composed."""

    growths: Sequence[Growth]


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing happened but time."""


Event = (
    Submitted
    | Cancelled
    | Stopped
    | TargetUp
    | TargetDown
    | TargetLeaving
    | TargetsExpected
    | PassDone
    | DrafterUp
    | DrafterLeaving
    | DrafterDown
    | Grown
    | Tick
)

# ── commands ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class PlannedRow:
    request: int
    epoch: int
    committed_len: int
    opening: OpenRequest | None  # with the first message of an epoch
    tokens_start: int
    tokens: Sequence[int]  # committed tokens from tokens_start on; short of committed_len: a prompt chunk
    node_tokens: Sequence[int]
    node_parents: Sequence[int]
    laws: Sequence[DraftLaw | None] = ()  # of the nodes; empty: none was drawn
    is_ahead: bool = False  # of the verdict on the request's row in the pass before


@dataclass(frozen=True, slots=True)
class SendPass:
    pass_id: int  # no two passes have the same, of whatever group
    rows: Sequence[PlannedRow]
    target: str = ""


@dataclass(frozen=True, slots=True)
class ResetTarget:
    """The target group did not answer in time: end the stream to it and connect anew."""

    reason: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class ReleaseTarget:
    request: int
    epoch: int
    target: str = ""


@dataclass(slots=True)
class SendOrder:
    worker: str
    drafter: str
    request: int
    epoch: int
    committed_len: int
    opening: OpenRequest | None  # with the first message of an epoch
    tokens_start: int
    tokens: Sequence[int]
    max_nodes: int  # below this root, those that are there already included
    min_survival: float


@dataclass(frozen=True, slots=True)
class ReleaseDrafter:
    worker: str
    drafter: str
    request: int
    epoch: int


@dataclass(slots=True)
class Emit:
    """Tokens that are committed for good, with who proposed them."""

    request: int
    tokens: Sequence[int]
    sources: Sequence[TokenSource]
    logprobs: Sequence[TokenLogprobs | None]  # one a token


@dataclass(slots=True)
class DrafterCount:
    num_drafted_nodes: int = 0
    num_accepted_tokens: int = 0


@dataclass(slots=True)
class RequestStats:
    """What a request cost and gained. Times are seconds on the core's clock."""

    submitted_s: float
    num_prompt_tokens: int = 0
    started_s: float | None = None  # left the queue, for the first time
    first_token_s: float | None = None
    finished_s: float | None = None
    num_cached_prompt_tokens: int = 0
    num_generated_tokens: int = 0  # not those that the client held already
    num_passes: int = 0  # that committed tokens
    num_drafts: int = 0  # of them: with nodes
    num_drafted_nodes: int = 0  # in all passes, also those without an answer
    num_verified_nodes: int = 0
    num_accepted_tokens: int = 0
    num_accepted: Counter[int] = field(
        default_factory=Counter
    )  # passes, by how many tokens they accepted; not with none
    num_hits: int = 0  # verdicts after which a node was there already
    hit_depth: int = 0  # how deep the tree was then, summed up over the hits
    num_preemptions: int = 0
    drafters: dict[str, DrafterCount] = field(default_factory=dict)

    def of_drafter(self, name: str) -> DrafterCount:
        count = self.drafters.get(name)
        if count is None:
            count = self.drafters[name] = DrafterCount()
        return count


@dataclass(frozen=True, slots=True)
class Finish:
    """The last command of a request: an end, or the one error it ends with."""

    request: int
    reason: FinishReason | None
    end_token_id: int | None
    error: OutriderError | None
    stats: RequestStats


Command = SendPass | ResetTarget | ReleaseTarget | SendOrder | ReleaseDrafter | Emit | Finish
