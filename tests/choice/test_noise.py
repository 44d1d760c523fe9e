"""The shared noise: the right bits, the right law, and nothing shared where nothing may be."""

from __future__ import annotations

import math

import pytest
import torch

from workers.choice.noise import NoiseCache, gumbel, philox

ALL_ONES = 0xFFFF_FFFF
EULER_GAMMA = 0.5772156649015329

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
@pytest.mark.parametrize("tensor_word", range(4))
def test_philox_gives_the_known_answers_whichever_word_is_a_tensor(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...], tensor_word: int
) -> None:
    words: list[torch.Tensor | int] = list(counter)
    words[tensor_word] = torch.full((9,), counter[tensor_word], dtype=torch.int64)

    result = philox(words, key)

    assert [word.tolist() for word in result] == [[value] * 9 for value in expected]


def test_gumbel_is_the_documented_function_of_philox_words() -> None:
    seed, position, stream = 0xA4093822_00000007, 5, 1

    noise = gumbel(seed, position, 10, stream=stream)

    for token in range(10):
        counter = (torch.tensor([token // 4]), position, stream, 0)
        word = int(philox(counter, (seed & ALL_ONES, seed >> 32))[token % 4])
        expected = -math.log(-math.log((word + 0.5) / 2**32))
        assert noise[token].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("vocab", [1, 3, 4, 5, 49152])
def test_noise_of_a_token_does_not_depend_on_the_vocabulary_size(vocab: int) -> None:
    assert torch.equal(gumbel(11, 3, vocab), gumbel(11, 3, 151_936)[:vocab])


def test_noise_is_finite_at_both_ends_of_the_words() -> None:
    # What the formula gives for the smallest and the largest word bounds everything that it can give.
    smallest, largest = (-math.log(-math.log((word + 0.5) / 2**32)) for word in (0, ALL_ONES))

    noise = gumbel(0, 0, 1_000_000)

    assert smallest > -3.2
    assert largest < 22.9
    assert smallest <= noise.min().item() < -2.3  # P(all of 10**6 above -2.3) < 1e-19
    assert largest >= noise.max().item() > 11.0  # P(all of 10**6 below 11) < 1e-7


def distance_from_uniform(uniform: torch.Tensor) -> float:
    """The Kolmogorov–Smirnov distance of [num] f64 samples from the uniform law."""
    ordered = uniform.sort().values
    steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    return max((steps[1:] - ordered).abs().max().item(), (ordered - steps[:-1]).abs().max().item())


def test_noise_over_the_vocabulary_has_the_gumbel_law() -> None:
    num = 200_000
    noise = gumbel(2024, 17, num).double()

    distance = distance_from_uniform((-(-noise).exp()).exp())

    # Dvoretzky–Kiefer–Wolfowitz: false alarm below 1e-9.
    bound = math.sqrt(math.log(2 / 1e-9) / (2 * num))
    assert distance < bound
    assert noise.mean().item() == pytest.approx(EULER_GAMMA, abs=6 * math.pi / math.sqrt(6 * num))
    # The wrong twin: the same test must see a noise that is a twentieth too wide.
    assert distance_from_uniform((-(-noise * 1.05).exp()).exp()) > bound


@pytest.mark.parametrize("axis", ["position", "seed", "seed's high word", "stream"])
def test_noise_at_other_coordinates_is_independent(axis: str) -> None:
    num = 100_000
    here = gumbel(7, 100, num)
    there = {
        "position": lambda: gumbel(7, 101, num),
        "seed": lambda: gumbel(8, 100, num),
        "seed's high word": lambda: gumbel(7 + 2**32, 100, num),
        "stream": lambda: gumbel(7, 100, num, stream=1),
    }[axis]()

    def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a, b]))[0, 1])

    bound = 6 / math.sqrt(num)  # false alarm about 2e-9
    assert abs(correlation(here, there)) < bound
    assert abs(correlation(here[1:], there[:-1])) < bound
    assert abs(correlation(here, gumbel(7, 100, num))) > bound  # the wrong twin


def test_one_token_over_positions_has_the_gumbel_law() -> None:
    noise = torch.stack([gumbel(99, position, 1) for position in range(3000)]).squeeze(1).double()

    # False alarm below 1e-9.
    assert distance_from_uniform((-(-noise).exp()).exp()) < math.sqrt(math.log(2 / 1e-9) / (2 * len(noise)))


def test_cache_gives_the_same_noise_and_forgets_the_least_recent_position() -> None:
    vocab = 64
    cache = NoiseCache(vocab, max_bytes=2 * 4 * vocab)
    first = cache(1, 0)
    cache(1, 1)

    assert cache(1, 0) is first
    cache(1, 2)  # drops position 1, not 0
    assert cache(1, 0) is first
    cache(1, 1)
    cache(1, 2)
    assert cache(1, 0) is not first
    assert torch.equal(cache(1, 0), gumbel(1, 0, vocab))
