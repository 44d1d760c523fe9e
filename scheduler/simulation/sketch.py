"""What a modelled drafter keeps of one request in one epoch: its tree, and where that can grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from outrider.draft_law import DraftLaw
from outrider.step_size import num_promoted
from outrider.tree import DraftTree, Node
from outrider.v1.inference_pb2 import ACCEPTANCE_RULE_REJECTION
from scheduler.events import Growth, SendOrder
from scheduler.simulation.guessing import Guess, GuessModel
from scheduler.simulation.law import Law


@dataclass(slots=True)
class _Candidate:
    """A child of an expanded node, or of the root, that is no node yet."""

    parent: Node | None
    guess: Guess
    survival: float


@dataclass(slots=True)
class Sketch:
    epoch: int
    is_drawn_for: bool
    state: int  # the law's fold of the committed tokens
    known: list[int] = field(default_factory=list)  # committed tokens that it was told
    tokens: list[int] = field(default_factory=list)  # of them, those that the tree's root has moved along
    is_ordered: bool = False  # there is an order that no step has seen
    num_computed: int = 0  # of them: their KV is there
    max_nodes: int = 0
    min_survival: float = 0.0
    is_live: bool = False  # more nodes are wanted, and may be found
    tree: DraftTree = field(default_factory=DraftTree)
    states: dict[int, int] = field(default_factory=dict)  # the fold behind each node, by its number
    leaves: list[Node] = field(default_factory=list)  # not expanded
    candidates: list[_Candidate] = field(default_factory=list)
    is_root_expanded: bool = False
    num_told: int = 0  # nodes that were sent

    @classmethod
    def of(cls, order: SendOrder, law: Law) -> Sketch:
        """For an order that opens an epoch."""
        assert order.opening is not None
        sampling, rule = order.opening.sampling, order.opening.acceptance_rule
        is_drawn_for = rule == ACCEPTANCE_RULE_REJECTION and sampling.temperature > 0
        return cls(order.epoch, is_drawn_for, law.start(sampling.seed))

    def note(self, order: SendOrder) -> bool:
        """Take an order's tokens; the tree moves with the next step. False where they don't lead from what is known
        to its committed_len."""
        start = order.tokens_start if order.tokens else len(self.known)
        overlap = self.known[start : start + len(order.tokens)]
        if start > len(self.known) or overlap != list(order.tokens[: len(overlap)]):
            return False
        self.known += order.tokens[len(self.known) - start :] if order.tokens else ()
        self.max_nodes, self.min_survival, self.is_ordered = order.max_nodes, order.min_survival, True
        return len(self.known) == order.committed_len

    def move(self, law: Law) -> None:
        """Go to where the newest order wants the root."""
        if len(self.known) > len(self.tokens):
            self._commit(self.known[len(self.tokens) :], law)
        self.is_ordered, self.is_live = False, self.may_grow()

    def _commit(self, new: Sequence[int], law: Law) -> None:
        if self.is_drawn_for:
            self.tree.clear()
        survivor: Node | None = None
        for depth in range(1, len(new) + 1):
            node = self.tree.find(new[:depth])
            if node is None or node in self.leaves:  # identity: nodes compare by it
                break
            self.num_computed += 1
        survivor = self.tree.find(new)
        self.is_root_expanded = survivor is not None and survivor not in self.leaves
        self.tree.advance(new)
        standing = {node.number for node in self.tree}
        self.leaves = [leaf for leaf in self.leaves if leaf.number in standing]
        self.candidates = [each for each in self.candidates if self._survives(each, survivor, standing)]
        self.states = {number: state for number, state in self.states.items() if number in standing}
        self.tokens += new
        self.state = law.fold(self.state, new)

    def _survives(self, candidate: _Candidate, survivor: Node | None, standing: set[int]) -> bool:
        if candidate.parent is None or survivor is None:
            return False
        if candidate.parent is survivor:
            candidate.parent = None
            return True
        return candidate.parent.number in standing

    # ── a step ──────────────────────────────────────────────────────────────────────────────────────

    def places(self, max_leaves: int) -> list[Node | None]:
        """What to expand next: the root, or the likeliest leaves."""
        if not self.is_root_expanded:
            return [None]
        best: list[Node | None] = [*sorted(self.leaves, key=lambda leaf: -leaf.survival)[:max_leaves]]
        return best

    def num_tokens(self, places: Sequence[Node | None]) -> int:
        """That expanding these computes."""
        missing = len(self.tokens) - self.num_computed
        return sum(max(missing, 1) if place is None else 1 for place in places)

    def expand(self, places: Sequence[Node | None], guess: GuessModel, law: Law) -> None:
        for place in places:
            if place is None:
                self.is_root_expanded, self.num_computed = True, len(self.tokens)
                state, depth, survival = self.state, 1, 1.0
            else:
                self.leaves.remove(place)
                state, depth, survival = self.states[place.number], place.depth + 1, place.survival
            found = guess.guesses(law, state, depth)[: 1 if self.is_drawn_for else None]
            self.candidates += [_Candidate(place, each, survival * each.chance) for each in found]

    def promote(self, source: str, law: Law) -> None:
        """The best candidates become nodes, and leaves if anything can come after them."""
        best = self._best()
        num_missing = self.max_nodes - len(self.tree)
        for candidate in best[: num_promoted([each.survival for each in best], num_missing)]:
            guess, parent = candidate.guess, candidate.parent
            drawn = DraftLaw((guess.token,), (1.0,)) if self.is_drawn_for else None
            node = self.tree.add(parent, guess.token, source, guess.score, drawn)
            node.chance = guess.chance
            above = self.states[parent.number] if parent is not None else self.state
            self.states[node.number] = law.fold(above, [guess.token])
            self.candidates.remove(candidate)
            if not law.end_every or guess.token != law.end_token:
                self.leaves.append(node)
        self.is_live = self.may_grow()

    def may_grow(self) -> bool:
        if len(self.tree) >= self.max_nodes:
            return False
        return not self.is_root_expanded or bool(self.leaves or self._best())

    def _best(self) -> list[_Candidate]:
        worth = [candidate for candidate in self.candidates if candidate.survival >= self.min_survival]
        return sorted(worth, key=lambda candidate: -candidate.survival)

    def news(self, worker: str, drafter: str, request: int) -> Growth:
        """The nodes that were not told yet, below the present root."""
        nodes = sorted((node for node in self.tree if node.number > self.num_told), key=lambda node: node.number)
        first_node, self.num_told = self.num_told + 1, self.num_told + len(nodes)
        return Growth(
            worker=worker,
            drafter=drafter,
            request=request,
            epoch=self.epoch,
            committed_len=len(self.tokens),
            first_node=first_node,
            tokens=[node.token for node in nodes],
            parents=[node.parent.number if node.parent is not None else 0 for node in nodes],
            scores=[next(iter(node.votes.values())).score for node in nodes],
            is_done=not self.is_live,
            is_prefix_missing=False,
            laws=[node.law for node in nodes] if self.is_drawn_for else (),
        )
