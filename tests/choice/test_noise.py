"""The shared noise: the right bits, the right law, and nothing shared where nothing may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from workers.choice.noise import NoiseCache, gumbel, gumbel_rows, uniform
from workers.choice.philox import philox

ALL_ONES = 0xFFFF_FFFF
FALSE_ALARM = 1e-6
NUM_BINS = 16
NUM_TOKENS = 100_000

# kat_vectors of Random123 1.14, "philox4x32 10": counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
@pytest.mark.parametrize("tensor_word", range(6))
def test_philox_gives_the_known_answers_whichever_word_is_a_tensor(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...], tensor_word: int
) -> None:
    words: list[torch.Tensor | int] = [*counter, *key]
    words[tensor_word] = torch.full((9,), int(words[tensor_word]), dtype=torch.int64)

    result = philox(words[:4], (words[4], words[5]))

    assert [word.tolist() for word in result] == [[value] * 9 for value in expected]


def test_gumbel_is_the_documented_function_of_philox_words() -> None:
    seed, position, stream, salt = 0xA4093822_00000007, 5, 1, 9

    noise = gumbel(seed, position, 10, stream=stream, salt=salt)

    for token in range(10):
        counter = (torch.tensor([token // 4]), position, stream, salt)
        word = int(philox(counter, (seed & ALL_ONES, seed >> 32))[token % 4])
        expected = -math.log(-math.log((word + 0.5) / 2**32))
        assert noise[token].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("vocab", [1, 3, 4, 5, 49152])
def test_noise_of_a_token_does_not_depend_on_the_vocabulary_size(vocab: int) -> None:
    assert torch.equal(gumbel(11, 3, vocab), gumbel(11, 3, 151_936)[:vocab])


def test_rows_together_are_the_rows_alone() -> None:
    seeds, positions, salts = [0, 2**64 - 1, 7, 7], [0, 2**32 - 1, 5, 5], [0, 2**32 - 1, 1, 2]

    together = gumbel_rows(seeds, positions, 33, stream=1, salt=salts)

    alone = [gumbel(seeds[i], positions[i], 33, stream=1, salt=salts[i]) for i in range(4)]
    assert torch.equal(together, torch.stack(alone))
    assert gumbel_rows([], [], 33).shape == (0, 33)


@pytest.mark.parametrize("axis", ["position", "seed", "seed's high word", "stream", "salt", "token"])
def test_noise_at_other_coordinates_is_independent(axis: str) -> None:
    """Pairs of quantiles over 100,000 tokens, counted in 16 x 16 cells: chi-square, false alarm FALSE_ALARM."""
    here = gumbel(7, 100, NUM_TOKENS)
    there = {
        "position": lambda: gumbel(7, 101, NUM_TOKENS),
        "seed": lambda: gumbel(8, 100, NUM_TOKENS),
        "seed's high word": lambda: gumbel(7 + 2**32, 100, NUM_TOKENS),
        "stream": lambda: gumbel(7, 100, NUM_TOKENS, stream=1),
        "salt": lambda: gumbel(7, 100, NUM_TOKENS, salt=1),
        "token": lambda: gumbel(7, 100, NUM_TOKENS + 1)[1:],
    }[axis]()

    assert p_value_of_pairs(here, there) > FALSE_ALARM
    assert p_value_of_pairs(here[:-1], there[1:]) > FALSE_ALARM
    # The wrong twins: the same coordinate, and noise of which one token in ten is another's.
    assert p_value_of_pairs(here, gumbel(7, 100, NUM_TOKENS)) < FALSE_ALARM
    tenth = torch.where(torch.arange(NUM_TOKENS) % 10 == 0, here, there)
    assert p_value_of_pairs(here, tenth) < FALSE_ALARM


def p_value_of_pairs(first: torch.Tensor, second: torch.Tensor) -> float:
    """Of [num] f32 noise each: the chance of counts at least this far from those of independent noise."""
    cells = bins(first) * NUM_BINS + bins(second)
    expected = len(first) / NUM_BINS**2
    statistic = ((torch.bincount(cells, minlength=NUM_BINS**2) - expected) ** 2 / expected).sum()
    half = torch.tensor((NUM_BINS**2 - 1) / 2.0, dtype=torch.float64)
    return float(torch.special.gammaincc(half, statistic.double() / 2))


def bins(noise: torch.Tensor) -> torch.Tensor:
    return ((-(-noise.double()).exp()).exp() * NUM_BINS).long().clamp(max=NUM_BINS - 1)


@pytest.mark.parametrize("coordinate", ["seed", "position", "salt"])
def test_one_token_over_a_coordinate_has_the_gumbel_law(coordinate: str) -> None:
    """Kolmogorov–Smirnov by the bound of Dvoretzky, Kiefer, Wolfowitz; false alarm FALSE_ALARM."""
    num = 20_000
    steps, same = range(num), [99] * num
    noise = {
        "seed": lambda: gumbel_rows(steps, same, 1),
        "position": lambda: gumbel_rows(same, steps, 1),
        "salt": lambda: gumbel_rows(same, same, 1, salt=steps),
    }[coordinate]()
    bound = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * num))

    assert distance_from_gumbel(noise[:, 0]) < bound
    assert distance_from_gumbel(noise[:, 0] * 1.1) > bound  # the wrong twin


def distance_from_gumbel(noise: torch.Tensor) -> float:
    ordered = (-(-noise.double()).exp()).exp().sort().values
    steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    return max((steps[1:] - ordered).abs().max().item(), (ordered - steps[:-1]).abs().max().item())


def test_numbers_at_other_coordinates_differ_and_each_is_in_range() -> None:
    """One of 2**53 numbers each: the chance that two of these 16 are equal is 1e-14."""
    drawn = [uniform(s, 3, index=i, stream=t, salt=a) for s in (1, 2) for i in (0, 1) for t in (1, 2) for a in (0, 1)]

    assert len(set(drawn)) == len(drawn)
    assert all(0 <= number < 1 for number in drawn)
    assert uniform(1, 3, index=0, stream=1) == drawn[0]


def test_cache_gives_the_same_noise_and_computes_only_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab = 64
    cache = NoiseCache(vocab, max_bytes=3 * 4 * vocab)
    computed = computations(monkeypatch)

    def ask(*keys: tuple[int, int]) -> None:
        seeds, positions = zip(*keys, strict=True)
        assert torch.equal(cache(seeds, positions), gumbel_rows(seeds, positions, vocab))

    ask((1, 0), (1, 1), (1, 0))
    assert computed() == [(1, 0), (1, 1)]
    ask((1, 1), (1, 2), (1, 0))
    assert computed() == [(1, 2)]
    ask((1, 0), (2, 0))  # (1, 1) is the longest unused
    assert computed() == [(2, 0)]
    ask((1, 0), (1, 2), (2, 0))
    assert computed() == []
    ask((1, 1))
    assert computed() == [(1, 1)]


def test_a_pass_with_more_positions_than_the_cache_holds_gets_them_all_and_leaves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vocab = 64
    cache = NoiseCache(vocab, max_bytes=2 * 4 * vocab)
    cache([1], [0])
    computed = computations(monkeypatch)

    assert torch.equal(cache([5, 6, 5, 7], [1, 2, 1, 3]), gumbel_rows([5, 6, 5, 7], [1, 2, 1, 3], vocab))
    assert torch.equal(cache([1], [0]), gumbel_rows([1], [0], vocab))
    assert computed() == [(5, 1), (6, 2), (7, 3)]


def computations(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[int, int]]]:
    """What a cache has computed since this was last asked."""
    asked: list[tuple[int, int]] = []

    def counted(seeds: Sequence[int], positions: Sequence[int], vocab: int, **options: object) -> torch.Tensor:
        asked.extend(zip(seeds, positions, strict=True))
        return gumbel_rows(seeds, positions, vocab, **options)  # type: ignore[arg-type]

    def taken() -> list[tuple[int, int]]:
        result = asked.copy()
        asked.clear()
        return result

    monkeypatch.setattr("workers.choice.noise.gumbel_rows", counted)
    return taken
