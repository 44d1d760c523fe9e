"""The target's noise, carried over to a draft model with another tokenizer.

The noise belongs to the target's token ids, so a draft model can't look its own ids up in it. But to say a text, the
target has to choose some token that the text begins with, and the noise of that token decides whether it does. So each
of the draft model's tokens takes the noise of the target's longest token that its spelling begins with: for the many
tokens that both have, that is the very noise that decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from workers.choice.noise import gumbel_rows
from workers.draft.tokenizer_pair import TokenizerPair, decode

_NONE = -1
_LONE_BYTE = re.compile("<0x[0-9A-F]{2}>")  # for texts that no other token can write: a letter is never written so
_BEFORE = "\n"  # tokens are read behind this: some tokenizers leave a blank at the beginning of a text out


class CarriedNoise:
    """For rows of the draft model's logits, as `workers.choice.choose.Noise` wants it."""

    def __init__(self, pair: TokenizerPair, output_ids: Sequence[int], device: torch.device) -> None:
        """`output_ids`: the draft model's tokens that its logits are of."""
        self._index = torch.tensor(_targets_tokens(pair, output_ids), device=device)  # [num_outputs]
        self._vocab = int(self._index.max()) + 1

    def __call__(self, seeds: Sequence[int], positions: Sequence[int]) -> Tensor:
        """[num_rows, num_outputs] f32; 0 for a token whose spelling begins with none of the target's."""
        if self._vocab == 0:
            return torch.zeros(len(seeds), len(self._index), device=self._index.device)
        rows = gumbel_rows(seeds, positions, self._vocab, device=self._index.device)
        return torch.where(self._index == _NONE, 0.0, rows[:, self._index])


def _targets_tokens(pair: TokenizerPair, output_ids: Sequence[int]) -> list[int]:
    """For each of the draft model's tokens, the target's longest token that it begins with."""
    vocabulary = pair.target.get_vocab(with_added_tokens=True)
    target_ids = sorted(token_id for spelling, token_id in vocabulary.items() if not _LONE_BYTE.fullmatch(spelling))
    of_text = dict(zip(_texts(pair.target, target_ids), target_ids, strict=True))
    of_text.pop("", None)
    return [
        next((of_text[text[:end]] for end in range(len(text), 0, -1) if text[:end] in of_text), _NONE)
        for text in _texts(pair.draft, output_ids)
    ]


def _texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each token says in the middle of a text; empty for parts of characters."""
    before = tokenizer.encode(_BEFORE, add_special_tokens=False).ids
    start = len(decode(tokenizer, before))
    texts = tokenizer.decode_batch([[*before, token_id] for token_id in ids], skip_special_tokens=False)
    return ["" if "\ufffd" in text else text[start:] for text in texts]
