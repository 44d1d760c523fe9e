"""A draft model's chain of guesses in its own tokens, and the nodes that it makes of a request's tree.

    said so far     … Ġthe | Ġcat | Ġs          the last of the target's tokens is held back: it may still merge with
    its nodes       … Ġthe ─ Ġcat               what comes (Ġs → Ġsat)
                         └─ Ġdog                a runner-up: what else the model found likely at that place

A node's score is the least that the draft model gave one of its own tokens that begins inside it. What such scores are
worth is learned from verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outrider.calibration import Calibration
from outrider.tree import Node
from workers.draft.alignment import DraftText, TargetText
from workers.draft.drafter import Request
from workers.draft.guessing import MAX_GAP
from workers.draft.tokenizer_pair import TokenizerPair
from workers.prefix import common_len

KIND = "universal"
_MAX_IDS_PER_NODE = 4  # a chain that has taken more of the draft model's tokens for a node is not worth going on with


@dataclass(frozen=True, slots=True)
class Guess:
    """A token, the likeliest at its place or a runner-up: of the draft model, or retold as one of the target's."""

    token: int
    score: float  # the gap to the runner-up, or how far it is behind the likeliest


class RetoldChain:
    """Of one request, whose tree is moved along what was committed after `commit`."""

    def __init__(self, pair: TokenizerPair, calibration: Calibration, target_end_ids: Sequence[int]) -> None:
        self._pair = pair
        self._calibration = calibration
        self._target_end_ids = target_end_ids
        self._heard = TargetText(pair)
        self._said = DraftText(pair)
        self._steps: list[Guess] = []  # the chain in the target's tokens
        self._ending: Guess | None = None  # the last of them, where the draft model's answer ends
        self._runners_up: list[tuple[list[int], float]] = []  # a path below the root, and its last token's score
        self.is_over = False  # nothing can come behind the chain
        self.survival = 1.0  # of the chain's end

    @property
    def ids(self) -> Sequence[int]:
        """The committed text and the chain, in the draft model's tokens."""
        return self._said.ids

    @property
    def num_steps(self) -> int:
        """The chain's length in the target's tokens."""
        return len(self._steps)

    def commit(self, tokens: Sequence[int]) -> int:
        """These tokens are committed. Returns how many of the ids stand: all, where the chain says the same."""
        self._heard.extend(tokens)
        text_before = self._said.text
        num_standing = self._said.tell(self._heard.text)
        if self._said.text != text_before:
            self.is_over, self._ending = False, None
        n = len(tokens)
        self._runners_up = [(path[n:], score) for path, score in self._runners_up if _leads_on(path, tokens)]
        self._retell()
        return num_standing

    def may_go_on(self, request: Request) -> bool:
        """Whether the draft model is to be asked what comes behind the chain."""
        is_short = len(self._said.added_scores()) < _MAX_IDS_PER_NODE * request.max_nodes
        return is_short and not self.is_over and request.num_missing > 0 and self.survival >= request.min_survival

    def guess(self, guesses: Sequence[Guess], request: Request) -> None:
        """What the draft model finds likeliest behind the chain, the best first."""
        paths: list[tuple[list[int], float]] = []
        for rank, guess in enumerate(guesses[1:], 1):
            if self.survival * self._calibration.chance(rank, guess.score) >= request.min_survival:
                paths.append((self._path_with(guess), guess.score))
        self._go_on(guesses[0])
        chain = [step.token for step in self._steps]
        for path, score in paths:
            num_same = common_len(path, chain)
            if num_same < len(path):
                self._runners_up.append((path[: num_same + 1], score))

    def grow(self, request: Request) -> None:
        """Add the nodes that the chain, and what was found beside it, can give the request's tree."""
        self._add_chain(request)
        # A runner-up is worth a node where it is likelier than what would be found by going on.
        bar = max(self.survival, request.min_survival) if self.may_go_on(request) else request.min_survival
        self._runners_up = [each for each in self._runners_up if not self._add_runner_up(request, *each, bar)]

    def _add_chain(self, request: Request) -> None:
        num_settled = len(self._steps) - (not self.is_over)
        self.survival = 1.0
        node: Node | None = None
        is_there = True
        for index, step in enumerate(self._steps):
            child = request.tree.children(node).get(step.token) if is_there else None
            chance = child.chance if child is not None else self._calibration.chance(0, step.score)
            self.survival *= chance
            is_worth_it = self.survival >= request.min_survival and request.num_missing > 0
            if child is None and is_there and index < num_settled and is_worth_it:
                child = self._add(request, node, step.token, step.score)
            node, is_there = child, child is not None

    def _add_runner_up(self, request: Request, path: list[int], score: float, bar: float) -> bool:
        """Whether it is in the tree now. The likeliest child of a place comes before its runners-up."""
        parent = request.tree.find(path[:-1])
        if parent is None and len(path) > 1:
            return False
        siblings = request.tree.children(parent)
        if path[-1] in siblings:
            return True
        survival = self._calibration.chance(len(siblings), score) * (parent.survival if parent is not None else 1.0)
        if not siblings or survival < bar or request.num_missing <= 0:
            return False
        self._add(request, parent, path[-1], score)
        return True

    def _add(self, request: Request, parent: Node | None, token: int, score: float) -> Node:
        rank = len(request.tree.children(parent))
        node = request.tree.add(parent, token, KIND, score)
        node.chance = self._calibration.chance(rank, score)
        return node

    def _go_on(self, guess: Guess) -> None:
        ending = self._ending_of(guess)
        if ending is not None:
            self._ending, self.is_over = ending, True
        elif guess.token in self._pair.draft_ends | self._pair.draft_only:
            self.is_over = True
        else:
            self.is_over = not self._said.add(guess.token, guess.score)
        self._retell()

    def _ending_of(self, guess: Guess) -> Guess | None:
        """As the target's token for the end of the answer; None where the guess is another one, or has none."""
        if guess.token not in self._pair.draft_ends:
            return None
        token = self._pair.ending(guess.token, self._target_end_ids)
        return Guess(token, guess.score) if token is not None else None

    def _path_with(self, guess: Guess) -> list[int]:
        """The target's tokens for the chain with this guess behind it; empty where they can't be told yet."""
        ending = self._ending_of(guess)
        if ending is not None:
            return [*(step.token for step in self._steps), ending.token]
        if guess.token in self._pair.draft_ends | self._pair.draft_only:
            return []
        more = self._said.would_add(guess.token)
        return [word.token for word in self._heard.continued(self._said.added + more)] if more else []

    def _retell(self) -> None:
        """The chain in the target's tokens, anew: the last ones may have merged with what has come."""
        added = self._said.added
        scores = self._said.added_scores()
        self._steps = []
        which = 0
        for word in self._heard.continued(added) if added else []:
            score = MAX_GAP
            while which < len(scores) and scores[which][0] < word.end:
                score = min(score, scores[which][1])
                which += 1
            self._steps.append(Guess(word.token, score))
        if added and not self._steps:
            self.is_over = True  # what the model says is nothing that the target can go on with
        elif self._ending is not None:
            self._steps.append(self._ending)


def _leads_on(path: Sequence[int], tokens: Sequence[int]) -> bool:
    """Whether the path goes on behind these tokens."""
    return len(path) > len(tokens) and list(path[: len(tokens)]) == list(tokens)
