"""From a draft model's logits to candidates: what the target may choose next, and how likely each is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from outrider.calibration import by_score
from outrider.tree import Node
from workers.choice.choose import Noise, noisy_scores
from workers.choice.noise import gumbel_rows
from workers.choice.params import ChoiceParams
from workers.choice.paths import Paths
from workers.choice.penalties import edit
from workers.draft.drafter import Request
from workers.draft.drawing import draw, law_to_draw_from
from workers.draft.frontier import Candidate

MAX_CHILDREN = 4
MAX_GAP = 16.0  # the score of a choice without a runner-up


class Guesser:
    """Guesses, and learns from verdicts what they are worth: one calibration for greedy requests, one for others."""

    def __init__(
        self, vocab_size: int, output_ids: Sequence[int] | None, noise: Noise | None, device: torch.device
    ) -> None:
        """`output_ids`: the tokens that the model's logits, on `device`, are of; None: of all."""
        self._vocab_size = vocab_size
        self._output_ids = None if output_ids is None else torch.tensor(output_ids, device=device)
        self._noise = noise
        self._calibrations = {True: by_score(), False: by_score()}  # by whether the request is greedy

    def candidates(
        self,
        logits: Tensor,  # [num_places, num_outputs] f32
        places: Sequence[tuple[Request, Node | None]],  # [num_places]; what each is after; None: the root
    ) -> list[list[Candidate]]:
        """Below each place, the likeliest first; empty where the model says nothing of use."""
        if not places:
            return []
        requests = [request for request, _ in places]
        is_whole = self._output_ids is None or any(_speaks_of_ids(request.params) for request in requests)
        scores = self._whole(logits) if is_whole else logits
        for row, (request, node) in zip(torch.split(scores, 1), places, strict=True):
            if request.params.depends_on_path:
                edit(row, request.params, Paths(request.tokens + path_to(node)))
        usable = scores.amax(dim=-1).isfinite().tolist()
        guessed = [i for i, request in enumerate(requests) if usable[i] and not request.params.is_drawn_for]
        found: list[list[Candidate]] = [[] for _ in places]
        for i, best in zip(guessed, self._best(scores, [places[i] for i in guessed], guessed), strict=True):
            found[i] = best
        for i, (request, node) in enumerate(places):
            if usable[i] and request.params.is_drawn_for:
                found[i] = [_drawn(scores[i], request, node, _position(request, node))]
        return found

    def learn(self, request: Request, tokens: Sequence[int]) -> None:
        """These tokens were committed; the tree has not moved yet."""
        calibration = self._calibrations[request.params.temperature == 0]
        for node, is_accepted in request.tree.judged(tokens):
            vote = next(iter(node.votes.values()))
            calibration.learn(vote.rank, vote.score, is_accepted=is_accepted)

    def _whole(self, logits: Tensor) -> Tensor:
        """[num_places, vocab] f32; -inf for tokens that the model has no logits of."""
        if self._output_ids is None:
            return logits
        whole = logits.new_full((len(logits), self._vocab_size), -math.inf)
        whole[:, self._output_ids] = logits
        return whole

    def _best(
        self,
        logits: Tensor,  # [num_rows, vocab] f32, edited; or [num_rows, num_outputs]
        places: Sequence[tuple[Request, Node | None]],  # [num_guessed]
        which: Sequence[int],  # [num_guessed]; their rows
    ) -> list[list[Candidate]]:
        if not places:
            return []
        params = [request.params for request, _ in places]
        output_ids = self._output_ids if logits.shape[-1] < self._vocab_size else None
        noise = self._noise if output_ids is None else self._noise_of_outputs
        rows = logits if len(which) == len(logits) else logits[list(which)]
        scores = noisy_scores(rows, [_position(*place) for place in places], params, noise=noise)
        best = scores.topk(min(MAX_CHILDREN, scores.shape[-1]), dim=-1)
        tokens = best.indices if output_ids is None else output_ids[best.indices]
        return [
            self._children(node, its, values, ids)
            for (_, node), its, values, ids in zip(places, params, best.values.tolist(), tokens.tolist(), strict=True)
        ]

    def _noise_of_outputs(self, seeds: Sequence[int], positions: Sequence[int]) -> Tensor:
        """[num_rows, num_outputs] f32"""
        assert self._output_ids is not None
        if self._noise is None:
            device = self._output_ids.device
            return gumbel_rows(seeds, positions, self._vocab_size, device=device)[:, self._output_ids]
        return self._noise(seeds, positions)[:, self._output_ids]

    def _children(
        self, parent: Node | None, params: ChoiceParams, values: Sequence[float], ids: Sequence[int]
    ) -> list[Candidate]:
        calibration = self._calibrations[params.temperature == 0]
        found: list[Candidate] = []
        chance = 1.0
        for rank, (value, token) in enumerate(zip(values, ids, strict=True)):
            if value == -math.inf:
                break
            other = values[0] if rank else values[1] if len(values) > 1 else -math.inf
            gap = max(-MAX_GAP, min(MAX_GAP, value - other))
            chance = min(chance, calibration.chance(rank, gap))  # a lower rank is never the likelier one
            found.append(Candidate(parent, token, gap, chance))
        return found


def _speaks_of_ids(params: ChoiceParams) -> bool:
    """Whether something is to be done by token ids, for which the logits of all are wanted in their order."""
    return params.depends_on_path or params.is_drawn_for


def _position(request: Request, node: Node | None) -> int:
    """Of what comes after the node."""
    return len(request.tokens) + (node.depth if node is not None else 0)


def path_to(node: Node | None) -> list[int]:
    """The tokens from the root's child to the node."""
    path: list[int] = []
    while node is not None:
        path.append(node.token)
        node = node.parent
    return path[::-1]


def _drawn(
    logits: Tensor,  # [vocab] f32, edited
    request: Request,
    parent: Node | None,
    position: int,
) -> Candidate:
    """One child, drawn; the chance that it is accepted is not known."""
    law = law_to_draw_from(logits, request.params)
    token = draw(law, request.params.seed, position, len(request.tokens))
    return Candidate(parent, token, math.log(law.probability(token)), 1.0, law)
