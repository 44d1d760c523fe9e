"""What a policy is: it says which rows go into the next pass, with which nodes, and when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from outrider.tree import Node, pack_nodes, with_ancestors
from outrider.v1.inference_pb2 import ServiceClass
from scheduler.events import PlannedRow, TargetFacts
from scheduler.request import NO_CANDIDATES, DrafterView, Request, SentRow


@dataclass(frozen=True, slots=True)
class Expected:
    """Of a pass with rows that drafters may draft for."""

    num_tokens: int  # without nodes
    num_choosing: int
    num_nodes: float  # that should be computed: of a row that is ahead, its verdict may leave none
    gain: float  # tokens that these should bring
    has_drafts: bool  # of some row, be they worth verifying or not


@dataclass(frozen=True, slots=True)
class PassInFlight:
    """A pass that was sent and not answered. Times are on the core's clock."""

    pass_id: int
    requests: Sequence[int]
    num_tokens: int  # that take part in the forward
    context_len: int  # tokens before them, the mean of its rows
    sent_s: float
    deadline_s: float
    expected_s: float  # when its answer should be here
    free_since_s: float | None  # nothing was in flight since this time, when the last answer came; None: something was
    expected: Expected | None = None


@dataclass(frozen=True, slots=True)
class PassReport:
    """What the target says of a pass that it has finished. 0: it did not say."""

    pass_s: float
    idle_s: float  # it had no pass for so long before
    num_tokens: int
    num_chosen: int  # tokens that rows come to
    num_running: int  # requests on the target group
    was_wanted: bool  # requests ran there already when the pass before ended


class Base:
    """A row without nodes: what it must carry in any case. `start`: of its tokens, among the committed ones."""

    __slots__ = (
        "candidates",
        "gain",
        "is_ahead",
        "is_chunk",
        "num_expected_nodes",
        "num_nodes",
        "num_tokens",
        "request",
        "start",
        "tokens",
    )

    def __init__(self, request: Request, start: int, tokens: list[int]) -> None:
        num_tokens = len(tokens)
        self.request, self.start, self.tokens = request, start, tokens
        self.num_tokens = num_tokens or 1  # a row whose tokens the target already knows still forwards its root
        self.is_chunk = start + num_tokens < len(request.tokens)  # a part of a prompt: nothing is chosen behind it
        self.is_ahead = bool(request.sent)  # of the verdict on the row that its request has already
        self.candidates = NO_CANDIDATES
        self.num_nodes = 0  # of these, that go with it
        self.gain = 0.0  # tokens that they should bring
        # That should be computed: of a row that is ahead, those that a verdict leaves.
        self.num_expected_nodes = 0.0

    def find_candidates(self) -> None:
        if not self.is_chunk:
            self.candidates = self.request.candidates_ahead() if self.is_ahead else self.request.candidates()

    def take(self, num_nodes: int, gain: float, num_expected: float) -> None:
        """So many of the candidates, from the first one on."""
        self.num_nodes, self.gain, self.num_expected_nodes = num_nodes, gain, num_expected

    @property
    def service_class(self) -> ServiceClass:
        return self.request.new.service_class

    def shortened(self, num_tokens: int) -> Base:
        """The same with so much of its tokens."""
        return Base(self.request, self.start, self.tokens[:num_tokens])

    def planned(self, nodes: Sequence[Node]) -> PlannedRow:
        """With these nodes, parents first."""
        request = self.request
        node_tokens, node_parents = pack_nodes(nodes)
        return PlannedRow(
            request=request.number,
            epoch=request.target.epoch,
            committed_len=request.committed_len,
            opening=request.new.opening if self.start == 0 else None,
            tokens_start=self.start,
            tokens=self.tokens,
            node_tokens=node_tokens,
            node_parents=node_parents,
            laws=[node.law for node in nodes] if request.is_drawn_for else (),
            is_ahead=self.is_ahead,
        )

    def sent(self, pass_id: int, nodes: Sequence[Node]) -> SentRow:
        chosen_len = 0 if self.is_chunk else 1
        if nodes:
            chosen_len += max([node.depth for node in nodes])
        return SentRow(pass_id, nodes, self.start + len(self.tokens), chosen_len, self.is_ahead)

    @property
    def nodes(self) -> Sequence[Node]:
        """Parents first; of a row that is ahead, with the paths to them."""
        chosen = self.candidates.nodes[: self.num_nodes]
        return with_ancestors(chosen) if self.is_ahead else chosen


@dataclass(frozen=True, slots=True)
class Plan:
    """The next pass, or when to ask again if nothing happens before: None, never."""

    rows: Sequence[Base] = ()
    again_s: float | None = None
    waits_for_drafts: bool = False  # to be asked again as soon as nodes come, too

    @property
    def num_tokens(self) -> int:
        """That are expected to take part in the forward."""
        return round(sum(row.num_tokens + row.num_expected_nodes for row in self.rows))

    @property
    def context_len(self) -> int:
        return mean_context(self.rows)

    @property
    def expected(self) -> Expected | None:
        """None: nobody drafts."""
        if not any(row.request.drafters for row in self.rows):
            return None
        return Expected(
            num_tokens=sum(row.num_tokens for row in self.rows),
            num_choosing=sum(not row.is_chunk for row in self.rows),
            num_nodes=sum(row.num_expected_nodes for row in self.rows),
            gain=sum(row.gain for row in self.rows),
            has_drafts=any(len(row.request.tree) for row in self.rows),
        )


class Policy(Protocol):
    """Of one target group. Asked whenever something has happened and a pass could be sent; told what was measured."""

    def plan(
        self,
        free: Sequence[Request],
        ahead: Sequence[Request],
        in_flight: Sequence[PassInFlight],
        facts: TargetFacts,
        now_s: float,
    ) -> Plan:
        """`free`: the running requests that are in no pass, in order of start. `ahead`: those in the pass that runs
        which may be in the next one too, before its verdict is here."""

    def expected_s(self, plan: Plan, in_flight: Sequence[PassInFlight], now_s: float) -> float:
        """When the answer to a pass that is sent now should be here."""

    def note_target(self, facts: TargetFacts) -> None:
        """The target group is there: its profile."""

    def for_another(self) -> Policy:
        """The same for one more target group: what is learned of drafters is shared, what of targets is not."""

    def pass_s(self, num_rows: int, num_prompt_tokens: int, context_len: int) -> float:
        """What a pass takes the target group: of so many rows that choose, with as many nodes as usual, and so much of
        prompts, behind so many tokens. No less than one over fewer."""

    def note_rows(self, num_rows: int, now_s: float) -> None:
        """So many requests run in the whole cell."""

    def note_pass(self, sent: PassInFlight, report: PassReport, now_s: float) -> None:
        """The answer to a pass is here."""

    def note_growth(self, request: Request, view: DrafterView, now_s: float) -> None:
        """Nodes for a drafter's newest order are in the tree."""

    def note_verdict(self, request: Request) -> None:
        """The target has chosen below this request's root; the tree is still the one before."""

    def note_report(self, view: DrafterView, num_nodes: int, seconds: float) -> None:
        """So many nodes had come so long after their order, be it the newest one or not."""

    def note_drafters(self) -> None:
        """There are new ones."""

    @property
    def drafts_pay(self) -> bool:
        """Whether drafters are to be asked at all."""

    @property
    def min_survival(self) -> float:
        """Nodes that are reached less often are not worth a drafter's time."""


def bases(requests: Iterable[Request], max_pass_tokens: int) -> list[Base]:
    """Rows without nodes while the pass has room for their tokens: those that choose, in their order, and then prompts,
    the most urgent first. A prompt that does not fit comes in chunks."""
    rows: list[Base] = []
    prompts: list[Request] = []
    room = max_pass_tokens
    for request in requests:
        start, tokens = request.known_len, request.tokens
        if len(tokens) - start > 1:
            prompts.append(request)
        elif room > 0:
            rows.append(Base(request, start, tokens[start:]))
            room -= 1
    for request in sorted(prompts, key=lambda request: request.urgency):
        if room <= 0:
            break
        start = request.known_len
        rows.append(Base(request, start, request.tokens[start : start + room]))
        room -= rows[-1].num_tokens
    return rows


def mean_context(rows: Sequence[Base]) -> int:
    """Tokens before a row's own."""
    return sum(row.start for row in rows) // max(len(rows), 1)
