"""One request's state in the core: its tokens are the truth; the rest says what each worker knows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from outrider.tree import DraftTree, Node
from outrider.types import FinishReason, TokenSource
from outrider.v1.inference_pb2 import ACCEPTANCE_RULE_TYPICAL
from scheduler.events import NewRequest, RequestStats
from scheduler.places import MAX_OVERTAKEN, Places
from scheduler.service_class import SHARE

_MEMORY = 1 / 64  # of a verdict among those before it


@dataclass(slots=True)
class TargetView:
    """What its target group knows of a request in this epoch. Epoch 0: not opened there."""

    epoch: int = 0
    group: str | None = None  # its address; None: it has none now
    num_expected: int = 0  # tokens that should be in its prefix cache
    known_len: int = 0  # committed tokens that it has been told of, or chose


@dataclass(slots=True)
class DrafterHealth:
    """How a drafter on a worker does, for all of its requests."""

    is_late: bool = False  # it did not answer an order in time
    acceptance: float = 1.0  # how often its best guess behind the root was the choice; recent ones count most
    num_verdicts: int = 0
    num_skipped: int = 0  # orders that it was not sent since the last one, its guesses being worth no pass time
    num_requests: int = 0  # that it drafts for
    # Since it is here; nothing is decided by these.
    num_orders: int = 0
    num_orders_skipped: int = 0
    num_answers: int = 0  # orders for which something came
    answer_s: float = 0.0  # that it took to come, summed up
    num_times_late: int = 0
    num_stale_reports: int = 0  # for a request, or an epoch of it, that is over
    num_dropped_nodes: int = 0  # that had no place in their tree: verdicts had overtaken them, or they made no sense

    def learn(self, *, is_accepted: bool) -> None:
        self.num_verdicts += 1
        self.acceptance += max(_MEMORY, 1 / self.num_verdicts) * (is_accepted - self.acceptance)


@dataclass(slots=True, eq=False)
class DrafterView:
    """What one drafter knows of a request, and what it was last asked for."""

    worker: str
    drafter: str
    epoch: int
    health: DrafterHealth = field(default_factory=DrafterHealth)
    told_len: int = 0
    ordered_len: int | None = None  # committed_len of the order that it has not finished
    ordered_s: float = 0.0
    is_silent: bool = False  # nothing has come for that order
    num_reports: int = 0  # that have come for that order
    asked: dict[int, tuple[float, int]] = field(default_factory=dict)  # of late: its time, and nodes since, by length
    began_empty: bool = False  # nothing had been drafted below its root when it went out
    is_opening: bool = False  # the last order brought everything from the first token on
    places: Places = field(default_factory=Places)


@dataclass(slots=True)
class SentRow:
    """A request's row in a pass that has not been answered."""

    pass_id: int
    nodes: Sequence[Node]  # of one that is ahead, those that the verdicts since have left
    known_len: int  # committed tokens that the target knows with it, but for those that it chooses
    most_chosen: int  # tokens that it can come to at most; 0 of a prompt chunk
    is_ahead: bool  # of the verdict on the row before


@dataclass(slots=True)
class Candidates:
    """Nodes that may go into a pass, the likeliest first, parents before children."""

    nodes: Sequence[Node]
    survivals: NDArray[np.float64]  # [num_nodes]
    shares: NDArray[np.float64]  # [num_nodes]: how likely each is to be computed


NO_CANDIDATES = Candidates((), np.empty(0), np.empty(0))
_ONES = np.ones(64)  # shares of nodes that are computed for sure; few rows have more


@dataclass(slots=True)
class Commit:
    """What a walk added to a request."""

    tokens: Sequence[int]
    sources: Sequence[TokenSource]
    reason: FinishReason | None  # set: the request is complete
    end_token_id: int | None


class Request:
    """A running or queued request."""

    def __init__(self, new: NewRequest, now_s: float) -> None:
        self.new = new
        self.is_drawn_for, self.guesses = new.is_drawn_for, new.guesses
        self.wants_logprobs = new.opening.sampling.HasField("logprobs")
        self.is_lossy = new.opening.acceptance_rule == ACCEPTANCE_RULE_TYPICAL
        self.tokens = [*new.prompt, *new.resumed]
        self.tree = DraftTree()
        self.committed_nodes: dict[int, int] = {}  # places in the tokens, by the numbers of the newest ones
        self.target = TargetView()
        self.drafters: dict[str, DrafterView] = {}  # by the drafter's name
        self.assigned = 0  # the drafting's generation in which it got them
        self.settled = 0  # and in which it was last asked whether they are still the right ones
        self.stats = RequestStats(submitted_s=now_s, num_prompt_tokens=len(new.prompt))
        self.num_unanswered = 0  # passes in a row that the target did not answer in time
        self.refused_since_s: float | None = None  # the target has no blocks for it since then
        self.not_before_s = float("-inf")  # its next row waits until then
        self.sent: list[SentRow] = []  # one, and perhaps one that is ahead of the first one's verdict
        self.is_paid_for = False  # what its class was due pays for it: it is not preempted
        self.num_passed_over = 0  # passes in a row that went without its prompt
        self._candidates: tuple[int, Candidates] | None = None  # of a version of the tree

    @property
    def number(self) -> int:
        return self.new.number

    @property
    def committed_len(self) -> int:
        return len(self.tokens)

    @property
    def num_completion_tokens(self) -> int:
        return len(self.tokens) - len(self.new.prompt)

    @property
    def urgency(self) -> int:
        """Of its prompt in a pass: the lower, the sooner. One that many passes had no room for comes before all."""
        return 0 if self.num_passed_over >= 1 / SHARE else self.new.service_class

    def close(self) -> None:
        """No worker has it any more: it can be opened anew, from its tokens."""
        self.tree.clear()
        self.target, self.drafters, self.assigned = TargetView(), {}, 0
        self.refused_since_s, self.not_before_s, self.sent = None, float("-inf"), []
        self.stats.num_cached_prompt_tokens = 0  # its prompt is looked for anew

    def blocks_reserved(self, block_size: int) -> int:
        """KV blocks that this request can come to need: so reserved, a running request never lacks one.

        The tree's nodes take slots after the committed tokens; its last block may be split by a walk.
        """
        longest = len(self.new.prompt) + self.new.max_tokens + self.new.max_nodes
        return -(-longest // block_size) + 1

    @property
    def known_len(self) -> int:
        """Committed tokens that the target knows, or will with the row that was sent; what it will choose left out."""
        return self.sent[-1].known_len if self.sent else self.target.known_len

    @property
    def may_go_ahead(self) -> bool:
        """Whether another row may follow the one that was sent before its verdict: that one can't end the answer."""
        return len(self.sent) == 1 and self.num_completion_tokens + self.sent[0].most_chosen < self.new.max_tokens

    def candidates(self) -> Candidates:
        """Of the next row.

        The last token of an answer is the target's own, so a node that deep could never be committed. Nodes that were
        drawn keep their order, whatever their tokens are: anything else would bend the law of the answer.
        """
        if self._candidates is None or self._candidates[0] != self.tree.version:
            self._candidates = self.tree.version, self._find_candidates() if len(self.tree) else NO_CANDIDATES
        return self._candidates[1]

    def _find_candidates(self) -> Candidates:
        nodes = list(self.tree) if self.is_drawn_for else self.tree.ranked()
        if self.tree.depth > self._last_depth:
            nodes = [node for node in nodes if node.depth <= self._last_depth]
        nodes = nodes[: self.new.max_nodes]
        survivals = np.array([node.survival for node in nodes], dtype=np.float64)
        if self.is_drawn_for:
            survivals = np.minimum.accumulate(survivals)
        return Candidates(nodes, survivals, _ONES[: len(nodes)] if len(nodes) <= len(_ONES) else np.ones(len(nodes)))

    def candidates_ahead(self) -> Candidates:
        """Of a row that is ahead of the verdict on the one that was sent.

        That one ends with a token of the target's own, which is the root of this one. Where it is in the tree, outside
        of what was sent, what lies below it is left: so often those nodes are computed, and the likeliest of them
        are those that are chosen most often when they are.
        """
        if self.is_drawn_for or not self.sent[-1].most_chosen:
            return NO_CANDIDATES
        sent, last_depth = set(self.sent[-1].nodes), self._last_depth
        if len(sent) == len(self.tree):
            return NO_CANDIDATES
        roots: dict[
            Node | None, float
        ] = {}  # of a node outside of what was sent: the survival of the first one on its path
        below: list[tuple[float, Node]] = []  # with how often it is chosen when its root is
        for node in self.tree.nodes:
            if node in sent or node.depth > last_depth:
                continue
            root = roots.get(node.parent)
            if root is None:
                roots[node] = node.survival
            else:
                roots[node] = root
                below.append((node.survival / root, node))
        if not below:
            return NO_CANDIDATES
        below.sort(key=itemgetter(0), reverse=True)  # stable, reversed or not: parents stay before children
        nodes = [node for _, node in below[: self.new.max_nodes]]
        survivals = np.array([node.survival for node in nodes], dtype=np.float64)
        return Candidates(nodes, survivals, np.array([roots[node] for node in nodes], dtype=np.float64))

    @property
    def _last_depth(self) -> int:
        return self.new.max_tokens - self.num_completion_tokens - 1

    def note_sent(self, row: SentRow) -> None:
        self.sent.append(row)
        if not row.is_ahead:
            self.stats.num_drafted_nodes += len(row.nodes)

    def take_sent(self, pass_id: int) -> SentRow | None:
        """The row in this pass, which has been answered."""
        for place, row in enumerate(self.sent):
            if row.pass_id == pass_id:
                return self.sent.pop(place)
        return None

    def commit(self, walked: Sequence[int], nodes: Sequence[Node]) -> Commit:
        """Append a walk's tokens, the accepted ones and then the target's own, up to the request's end.

        `nodes`: those that it walked among. The tree's root moves along. Tokens after an end token, a stop token or the
        last allowed token are dropped: decoding one token at a time would never have come to them.
        """
        kept: list[int] = []
        reason: FinishReason | None = None
        end_token_id: int | None = None
        room = self.new.max_tokens - self.num_completion_tokens
        end_token_ids, stop_token_ids = self.new.end_token_ids, self.new.stop_token_ids
        for token in walked:
            kept.append(token)
            if token in end_token_ids or token in stop_token_ids:
                reason = "end" if token in end_token_ids else "stop"
                end_token_id = token
                break
            if len(kept) == room:
                reason = "length"
                break
        num_accepted = min(len(kept), len(walked) - 1)
        path = self.tree.along(kept)
        self._count(len(kept), num_accepted, path, len(nodes))
        self._move_root(kept, path)
        self.tokens.extend(kept)
        self.sent = [self._left_of(row) for row in self.sent]
        sources: list[TokenSource] = ["draft"] * num_accepted
        sources += ["target"] * (len(kept) - num_accepted)
        return Commit(kept, sources, reason, end_token_id)

    def _move_root(self, committed: Sequence[int], path: Sequence[Node]) -> None:
        """`path`: the nodes along the committed tokens, as far as they are there.

        What was drawn is used up: the verdict depended on it, also on what it did not come to.
        """
        if self.is_drawn_for:
            self.tree.clear()
            for view in self.drafters.values():
                view.places = Places()
            return
        for place, node in enumerate(path, self.committed_len):
            self.committed_nodes[node.number] = place
        while len(self.committed_nodes) > MAX_OVERTAKEN:
            del self.committed_nodes[next(iter(self.committed_nodes))]
        self.tree.advance(committed)
        for view in self.drafters.values():
            view.places.forget(self.tree, self.committed_nodes, self.committed_len + len(committed))
        if len(self.tree):
            self.stats.num_hits += 1
            self.stats.hit_depth += self.tree.depth

    def _left_of(self, row: SentRow) -> SentRow:
        """A row that was sent ahead, once what it was ahead of is known."""
        left = [node for node in row.nodes if self.tree.holds(node)]
        self.stats.num_drafted_nodes += len(left)
        return replace(row, nodes=left, known_len=self.committed_len)

    def _count(self, num_tokens: int, num_accepted: int, path: Sequence[Node], num_nodes: int) -> None:
        stats = self.stats
        stats.num_generated_tokens += num_tokens
        stats.num_passes += 1
        stats.num_drafts += num_nodes > 0
        stats.num_verified_nodes += num_nodes
        if not num_accepted:
            return
        stats.num_accepted_tokens += num_accepted
        stats.num_accepted[num_accepted] += 1
        for node in path[:num_accepted]:
            for source in node.votes:
                stats.of_drafter(source).num_accepted_tokens += 1
