"""From words to noise: exact at the ends, monotone, and of the right law. What is wrong must be seen."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from workers.choice.gumbel import exponential_of_words, gumbel_of_words
from workers.choice.philox import philox

FALSE_ALARM = 1e-6
END = 2**32
NEAR_ONE = 0xB504_F334  # where u passes √½

# The noise of a word in exact arithmetic, by mpmath with 40 digits.
KNOWN = {
    0: -3.129994640884816,
    1: -3.0807737589468562,
    2**31 - 1: 0.3665129202457607,
    2**31: 0.36651292091756793,
    END - 2: 21.775244669635462,
    END - 1: 22.87385695841999,
}


def near(word: int, reach: int = 300) -> range:
    return range(max(0, word - reach), min(END, word + reach))


def border_words() -> Tensor:
    """Around all words at which the computation takes another way, [num_words] i64, ascending: powers of two of u and
    of 1 - u, at √½ and at 1, and the words whose -log(u) passes such a border."""
    borders = {0, END - 1, NEAR_ONE}
    for power in range(33):
        for scale in (1.0, math.sqrt(0.5)):
            borders |= {int(2**power * scale), END - int(2**power * scale)}
            for exponential in (2.0**power * scale, 2.0**-power * scale):
                borders.add(int(math.exp(-exponential) * END))
    return torch.tensor(sorted({word for border in borders for word in near(border)}))


def random_words(num: int, seed: int = 0) -> Tensor:
    """Evenly over all words, and evenly over the magnitudes at either end. [3 * num] i64"""
    generator = torch.Generator().manual_seed(seed)
    small = (2.0 ** (32 * torch.rand(num, generator=generator, dtype=torch.float64))).long().clamp(max=END - 1)
    return torch.cat([torch.randint(END, (num,), generator=generator), small, END - 1 - small])


def exact_exponential(words: Tensor) -> Tensor:
    """-log(u) in float64, [num_words] f64."""
    u, complement = (words.double() + 0.5) / END, ((END - words).double() - 0.5) / END
    return torch.where(u < 0.5, -u.log(), -(-complement).log1p())


@pytest.mark.parametrize(("word", "noise"), KNOWN.items())
def test_noise_at_the_ends_and_in_the_middle_is_known(word: int, noise: float) -> None:
    assert gumbel_of_words(torch.tensor([word])).item() == pytest.approx(noise, rel=2e-7)


def test_minus_log_u_is_exact_to_a_few_units_wherever_u_is() -> None:
    words = torch.cat([border_words(), random_words(1_000_000)])
    exact = exact_exponential(words)

    assert ((exponential_of_words(words) - exact).abs() / exact).max() < 3.2e-7
    noise = -exact.log()
    assert ((gumbel_of_words(words) - noise).abs() / noise.abs().clamp(min=1)).max() < 4e-7


def test_where_u_is_rounded_to_float32_near_one_the_same_test_sees_it() -> None:
    """The wrong twin: without the complement, the words next to the end are one and the same."""
    words = border_words()
    wrong = -((words.float() + 0.5) / END).log()

    assert not ((wrong - exact_exponential(words)).abs() / exact_exponential(words)).max() < 3.2e-7


def test_noise_never_falls_when_the_word_grows() -> None:
    assert (gumbel_of_words(border_words()).diff() >= 0).all()
    words = random_words(1_000_000, seed=1).clamp(max=END - 2)
    assert (gumbel_of_words(words) <= gumbel_of_words(words + 1)).all()


def chi_square_p_value(values: Tensor, expected: Tensor) -> float:
    """The chance of counts at least this far from those expected, [num_cells] each."""
    statistic = ((values - expected) ** 2 / expected).sum()
    half = torch.tensor((len(expected) - 1) / 2.0, dtype=torch.float64)
    return float(torch.special.gammaincc(half, statistic.double() / 2))


def uniform_p_value(u: Tensor) -> float:
    """Of [num] f64 from 0 to 1, counted in 256 cells."""
    counted = torch.bincount((u * 256).long().clamp(0, 255), minlength=256)
    return chi_square_p_value(counted, torch.full((256,), len(u) / 256))


def cdf(noise: Tensor) -> Tensor:
    return (-(-noise.double()).exp()).exp()


def philox_words(num: int) -> Tensor:
    return torch.stack(philox((torch.arange(num // 4), 17, 0, 0), (2024, 0)), dim=1).flatten()


def test_a_million_tokens_have_the_gumbel_law() -> None:
    words = philox_words(1_000_000)

    assert uniform_p_value((words.double() + 0.5) / END) > FALSE_ALARM
    assert uniform_p_value(cdf(gumbel_of_words(words))) > FALSE_ALARM


@pytest.mark.parametrize(
    "wrong",
    [
        lambda words: gumbel_of_words(words) * 1.01,
        lambda words: gumbel_of_words(words & ~0xFF00_0000),
        lambda words: gumbel_of_words(words | 0x0100_0000),
        lambda words: -(-((words.double() + 1e8) / (END + 1e8)).log()).log(),
    ],
    ids=["wider", "no high byte", "a stuck bit", "u off by 0.02"],
)
def test_the_law_test_sees_wrong_noise(wrong: Callable[[Tensor], Tensor]) -> None:
    assert uniform_p_value(cdf(wrong(philox_words(1_000_000)))) < FALSE_ALARM


def test_large_noise_comes_as_often_as_it_should() -> None:
    """Of 4,000,000 tokens, those with more than 10, 11, 12: each count is Poisson; false alarm FALSE_ALARM a side."""
    noise = gumbel_of_words(philox_words(4_000_000))
    for least in (10.0, 11.0, 12.0):
        expected = 4_000_000 * -math.expm1(-math.exp(-least))

        assert is_poisson(int((noise > least).sum()), expected)
    # The wrong twin: the noise of words without their last 16 bits ends at 11.1.
    coarse = gumbel_of_words(philox_words(4_000_000) & ~0xFFFF)
    assert not is_poisson(int((coarse > 12.0).sum()), 4_000_000 * -math.expm1(-math.exp(-12.0)))


def is_poisson(count: int, expected: float) -> bool:
    """Whether both tails from the count on have a chance of FALSE_ALARM at least."""
    mean = torch.tensor(expected, dtype=torch.float64)
    at_most = float(torch.special.gammaincc(torch.tensor(count + 1.0, dtype=torch.float64), mean))
    at_least = float(torch.special.gammainc(torch.tensor(float(count), dtype=torch.float64), mean)) if count else 1.0
    return min(at_most, at_least) > FALSE_ALARM
