"""Drafts for the rejection rule: drawn from the drafter's own law, which is sent along.

The rule is lossless if the drafter's draws and the target's are independent, and no two verdicts are decided by the
same draw. So the drafter has a stream of its own, and draws anew below every root.
"""

from __future__ import annotations

from torch import Tensor

from outrider.draft_law import DraftLaw, as_sent
from workers.choice.choose import laws
from workers.choice.noise import uniform
from workers.choice.params import ChoiceParams

MAX_LAW_TOKENS = 32  # 8 bytes each on the wire; what a law has beyond its likeliest tokens is never drafted

_STREAM = 1  # 0 is the noise that target and drafters share, 2 that of the rule's decisions


def law_to_draw_from(
    logits: Tensor,  # [vocab] f32, edited
    params: ChoiceParams,
) -> DraftLaw:
    """The drafter's law under the request's parameters, cut to its likeliest tokens, as the target will read it."""
    best = laws(logits[None], [params])[0].topk(min(MAX_LAW_TOKENS, len(logits)))
    return as_sent(best.indices.tolist(), best.values.tolist())


def draw(
    law: DraftLaw,
    seed: int,
    position: int,  # of the token that is drawn
    root_len: int,  # committed tokens that it is drawn below
) -> int:
    """A token of the law: a function of the arguments alone."""
    number = uniform(seed, position, index=0, stream=_STREAM, salt=root_len)
    cumulative = 0.0
    for token, probability in zip(law.ids, law.probabilities, strict=True):
        cumulative += probability
        if number < cumulative:
            return token
    return law.ids[-1]  # by rounding, the probabilities may add up to less than 1
