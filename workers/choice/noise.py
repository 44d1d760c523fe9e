"""The noise that target and drafters share: a pure function of (seed, position, token id).

Gumbel noise added to log-probabilities turns argmax into an exact sample (the Gumbel-max trick). Because it is
computed, not drawn from a state, every process gets the same noise for the same position: with drafters or
without, after a restart, on any device.

Its words are those of Philox4x32-10 (philox.py): the key is the seed, the counter is (token // 4, position, stream,
salt), and the token's word is token % 4. gumbel.py makes the noise of them. On a CPU with our kernels
(kernels/choice.cpp) both are one operator; its bits are the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workers.choice.gumbel import gumbel_of_words
from workers.choice.philox import MASK, philox, philox_of_integers
from workers.kernels.build import are_kernels_loaded

_CACHE_BYTES = 64 << 20
_MOST_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 24}  # words: those of a CPU stay in its cache


def gumbel_rows(
    seeds: Sequence[int],  # [num_rows]; 64 bits, unsigned
    positions: Sequence[int],  # [num_rows]; of the token that is being chosen, 0-based from the start of the prompt
    vocab: int,
    *,
    stream: int = 0,  # independent noise for another use at the same position
    salt: int | Sequence[int] = 0,  # [num_rows]; independent noise for each, in 32 bits
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard Gumbel noise for every token, [num_rows, vocab] f32, between -3.2 and 22.9.

    The noise of a token does not depend on `vocab`, so models whose vocabularies are padded differently share it.
    """
    device = torch.device(device)
    salts = [salt] * len(seeds) if isinstance(salt, int) else salt
    rows = (integers(seeds, device), integers(positions, device), integers(salts, device))
    if device.type == "cpu" and are_kernels_loaded():
        fast: Tensor = torch.ops.outrider.gumbel_rows(*rows, stream, vocab)
        return fast
    return gumbel_rows_of_torch(*rows, stream, vocab)


def gumbel_rows_of_torch(
    seeds: Tensor,  # [num_rows] i64: the bits of an unsigned number
    positions: Tensor,  # [num_rows] i64
    salts: Tensor,  # [num_rows] i64
    stream: int,
    vocab: int,
) -> Tensor:
    """`gumbel_rows` in torch's operators, on any device. [num_rows, vocab] f32"""
    noise = torch.empty(len(seeds), vocab, device=seeds.device)
    counters = torch.arange(-(-vocab // 4), device=seeds.device)
    num_at_once = max(1, _MOST_AT_ONCE.get(seeds.device.type, 1 << 16) // vocab)
    parts = (torch.split(tensor, num_at_once) for tensor in (noise, seeds[:, None], positions[:, None], salts[:, None]))
    for target, seed, position, salt in zip(*parts, strict=True):
        words = philox((counters, position, stream, salt), (seed & MASK, (seed >> 32) & MASK))
        target.copy_(gumbel_of_words(torch.stack(words, dim=-1).flatten(1)[:, :vocab]))
    return noise


def gumbel(
    seed: int,
    position: int,
    vocab: int,
    *,
    stream: int = 0,
    salt: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The one row of `gumbel_rows`, [vocab] f32."""
    return gumbel_rows([seed], [position], vocab, stream=stream, salt=salt, device=device)[0]


def uniform(
    seed: int,  # 64 bits, unsigned
    position: int,
    *,
    index: int,  # of several numbers at one position
    stream: int,
    salt: int = 0,
) -> float:
    """One number from [0, 1), a multiple of 2**-53, for a decision that needs no vector."""
    words = philox_of_integers((index, position, stream, salt), (seed & MASK, seed >> 32))
    return float((words[0] << 21) | (words[1] >> 11)) * 2.0**-53


def integers(values: Sequence[int], device: torch.device) -> Tensor:
    """The 64 bits of each, [num_values] i64: what is above 2**63 wraps."""
    return torch.from_numpy(np.array(values, dtype=np.uint64).view(np.int64)).to(device)


def kept_noise(vocab: int, device: torch.device) -> NoiseCache | None:
    """What is kept of the noise between passes. None where our kernels compute it while they choose: most tokens
    then need none, and to read it would take longer. Ask once the engine, which loads the kernels, is there."""
    return None if device.type == "cpu" and are_kernels_loaded() else NoiseCache(vocab, device)


class NoiseCache:
    """The noise of recent positions. A position that was not reached in one pass is chosen at in the next."""

    def __init__(self, vocab: int, device: torch.device | str = "cpu", max_bytes: int = _CACHE_BYTES) -> None:
        self._vocab = vocab
        self._device = torch.device(device)
        num_slots = max(1, max_bytes // (4 * vocab))
        self._rows = torch.empty(num_slots, vocab, device=self._device)
        self._slots: OrderedDict[tuple[int, int], int] = OrderedDict()  # the longest unused first
        self._unused = list(range(num_slots))

    def __call__(self, seeds: Sequence[int], positions: Sequence[int]) -> Tensor:
        """`gumbel_rows(seeds, positions, vocab)`, [num_nodes, vocab] f32; what is missing is computed at once."""
        wanted = list(zip(seeds, positions, strict=True))
        distinct = list(dict.fromkeys(wanted))
        if len(distinct) > len(self._rows):  # these fill it several times over: nothing of them is kept
            place = {key: row for row, key in enumerate(distinct)}
            return self._computed(distinct)[self._index([place[key] for key in wanted])]
        missing = [key for key in distinct if key not in self._slots]
        for key in distinct:
            if key in self._slots:
                self._slots.move_to_end(key)
        for key in missing:
            self._slots[key] = self._unused.pop() if self._unused else self._slots.popitem(last=False)[1]
        if missing:
            self._rows[self._index([self._slots[key] for key in missing])] = self._computed(missing)
        return self._rows[self._index([self._slots[key] for key in wanted])]

    def _computed(self, keys: Sequence[tuple[int, int]]) -> Tensor:
        seeds, positions = zip(*keys, strict=True)
        return gumbel_rows(seeds, positions, self._vocab, device=self._device)

    def _index(self, places: Sequence[int]) -> Tensor:
        return torch.tensor(places, device=self._device)
