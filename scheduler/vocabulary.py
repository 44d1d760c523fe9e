"""Whether a drafter means by its token ids what the target means by them."""

from __future__ import annotations

from itertools import zip_longest

from outrider.errors import shown
from outrider.v1 import worker_pb2

_WAY_OUT = "a draft model with another tokenizer is named universal:PATH_OR_NAME instead of model:PATH_OR_NAME"


def mismatch(own: worker_pb2.Vocabulary, target: worker_pb2.Vocabulary) -> str:
    """What keeps a drafter with this vocabulary from drafting for the target; empty where nothing does.

    Ids beyond the last spelling are padding, which need not be the same. CPU work of milliseconds: call it in a thread.
    """
    if own.size == 0:
        return ""  # it drafts by id alone
    sizes = f"it has a vocabulary of {own.size} tokens, the target one of {target.size}"
    if not (own.tokens and target.tokens):  # without a tokenizer the size is all that can be compared
        return "" if own.size == target.size else f"{sizes}; {_WAY_OUT}"
    for token_id, (ours, theirs) in enumerate(zip_longest(own.tokens, target.tokens, fillvalue="")):
        if ours != theirs:
            difference = f"{token_id}: {_spelt(ours)} in the drafter, {_spelt(theirs)} in the target"
            return f"{sizes}; the first token that differs is {difference}; {_WAY_OUT}"
    return ""


def _spelt(token: str) -> str:
    return shown(token) if token else "nothing"
