"""How far a draft model is accepted on the target's own answers, position by position, with no pass run.

Where all drafted tokens before it were accepted, a drafted token was chosen behind the target's own text. So one
forward of the draft model over that text says what any chain of its choices would have come to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from workers.choice.noise import gumbel
from workers.training.batches import batch_of
from workers.training.shards import Answer
from workers.training.student import Student

CHAIN_LEN = 4


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Of greedy chains of CHAIN_LEN, or of chains with the target's noise."""

    temperature: float
    by_depth: tuple[float, ...]  # [CHAIN_LEN]; how often a token is right where those before it were
    tokens_per_pass: float

    @property
    def first_token(self) -> float:
        return self.by_depth[0]


@torch.inference_mode()
def acceptance(
    student: Student,
    draft_ids: Sequence[int],
    answers: Sequence[Answer],  # picked as served, at one temperature
) -> Acceptance:
    ids = torch.tensor(draft_ids)
    hits = [_hits(student, ids, answer) for answer in answers]
    reached = [0] * (CHAIN_LEN + 1)  # positions whose first so many drafts are right
    for run in hits:
        for start in range(len(run) - CHAIN_LEN + 1):
            depth = next((i for i, is_hit in enumerate(run[start : start + CHAIN_LEN]) if not is_hit), CHAIN_LEN)
            for each in range(depth + 1):
                reached[each] += 1
    by_depth = tuple(deeper / max(1, above) for above, deeper in pairwise(reached))
    num_passes = sum(map(_num_passes, hits))
    return Acceptance(answers[0].temperature, by_depth, sum(map(len, hits)) / max(1, num_passes))


def _hits(student: Student, ids: Tensor, answer: Answer) -> list[bool]:
    """Whether the draft's choice is the target's, at each token of the answer."""
    scores = student.log_probabilities(batch_of([answer]))  # [num_tokens, num_draft_tokens]
    if answer.temperature > 0:
        vocab = len(student.get_buffer("places"))
        first = len(answer.prompt)
        noise = torch.stack([gumbel(answer.number, first + place, vocab)[ids] for place in range(len(answer.tokens))])
        scores = scores / answer.temperature + noise
    chosen = ids[scores.argmax(-1)]
    return (chosen == torch.tensor(answer.tokens)).tolist()


def _num_passes(hits: Sequence[bool]) -> int:
    """Passes for an answer: each takes the right drafts at its beginning, CHAIN_LEN at most, and one token more."""
    place = num_passes = 0
    while place < len(hits):
        run = 0
        while run < CHAIN_LEN and place + run < len(hits) and hits[place + run]:
            run += 1
        place += run + 1
        num_passes += 1
    return num_passes
