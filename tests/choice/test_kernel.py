"""The kernel of noise and choice against torch's operators: the same bits, and the same choices whatever it prunes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.choice.choose import NO_TOKEN, UNUSABLE, choose, choose_by_torch, limited_scores, limited_scores_of_torch
from workers.choice.gumbel import gumbel_of_words
from workers.choice.noise import gumbel_rows, gumbel_rows_of_torch, integers, kept_noise
from workers.choice.params import ChoiceParams
from workers.engine.checkpoint import DEFAULT_CACHE_DIR
from workers.kernels import build

CPU = torch.device("cpu")
END = 2**32


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    assert build.load_kernels(DEFAULT_CACHE_DIR.expanduser())


def test_the_noise_of_words_at_both_ends_and_between_has_torchs_bits_and_is_below_its_bound() -> None:
    ends = torch.arange(2**18)
    between = torch.randint(END, (2_000_003,), generator=torch.Generator().manual_seed(0))
    words = torch.cat([ends, 0xB504_F334 - 1000 + ends, 2**31 - 1000 + ends, END - 1 - ends, between])

    noise, bound = torch.ops.outrider.gumbel_of_words(words)

    assert torch.equal(noise, gumbel_of_words(words))
    assert (bound > noise).all()
    assert (bound - noise)[noise > 3].median() < 0.1  # so it is of use


@pytest.mark.parametrize("vocab", [1, 3, 4, 5, 7, 8, 9, 31, 32, 33, 63, 64, 65, 1000, 49_152])
def test_rows_of_noise_have_torchs_bits(vocab: int) -> None:
    seeds = [0, 1, 2**63, 2**64 - 1, 0xA409_3822_0000_0007, 5, 5]
    positions = [0, 1, 2**31, 2**32 - 1, 77, 3, 4]
    salts = [0, 5, 2**31, 2**32 - 1, 0, 1, 1]
    for stream in (0, 1):
        by_torch = gumbel_rows_of_torch(*(integers(x, CPU) for x in (seeds, positions, salts)), stream, vocab)
        assert torch.equal(gumbel_rows(seeds, positions, vocab, stream=stream, salt=salts), by_torch)


def test_nothing_is_kept_of_noise_that_a_kernel_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept_noise(64, CPU) is None
    monkeypatch.setattr(build, "_is_loaded", False)
    assert kept_noise(64, CPU) is not None


LOGITS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 3e38, -3e38, 1e-45, -1e-40]),
    st.integers(-40, 8).map(float),  # ties are frequent
    st.floats(-30, 10, width=32),
)
PARAMS = st.builds(
    ChoiceParams,
    temperature=st.sampled_from([0.0, 5e-324, 1e-40, 1e-3, 0.3, 1.0, 1.0, 1.7, 50.0, 1e38, 1e300]),
    seed=st.integers(0, 2**64 - 1),
    top_k=st.sampled_from([0, 0, 0, 1, 2, 5, 16, 2**32 - 1]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 1e-9]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
    typical_p=st.sampled_from([1.0, 1.0, 1.0, 0.7]),
)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), vocab=st.integers(1, 140), num_nodes=st.integers(1, 4))
def test_choices_on_any_logits_are_torchs(data: st.DataObject, vocab: int, num_nodes: int) -> None:
    pool = data.draw(st.lists(LOGITS, min_size=1, max_size=12))
    pick = torch.randint(
        len(pool), (num_nodes, vocab), generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    )
    logits = torch.tensor(pool, dtype=torch.float32)[pick]
    params = [data.draw(PARAMS) for _ in range(num_nodes)]
    positions = data.draw(st.lists(st.integers(0, END - 1), min_size=num_nodes, max_size=num_nodes))

    assert choose(logits, positions, params).tolist() == choose_by_torch(logits, positions, params).tolist()
    is_usable = logits.amax(dim=-1).isfinite()
    of_usable = [its for its, usable in zip(params, is_usable.tolist(), strict=True) if usable]
    scores = limited_scores(logits[is_usable], of_usable)
    assert torch.equal(scores, limited_scores_of_torch(logits[is_usable], of_usable))


@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("vocab", [1000, 49_152])
def test_choices_over_a_large_vocabulary_are_torchs(vocab: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(24, vocab, generator=generator) * spread
    logits[::3] = (logits[::3] * 4).round() / 4  # ties, also at the limits' borders
    limits: list[dict[str, Any]] = [
        {},
        {"top_k": 50},
        {"top_k": vocab - 1, "min_p": 1e-4},
        {"min_p": 0.02},
        {"top_p": 0.9},
        {"top_p": 0.9999},
        {"typical_p": 0.8},
        {"top_k": 700, "top_p": 0.97, "min_p": 0.001, "typical_p": 0.9},
    ]
    params = [ChoiceParams(temperature=(0.5, 1.0, 2.0)[i % 3], seed=i, **limits[i % 8]) for i in range(24)]
    assert torch.equal(limited_scores(logits, params), limited_scores_of_torch(logits, params))

    for offset in range(5):
        positions = range(offset, 24 + offset)
        assert torch.equal(choose(logits, positions, params), choose_by_torch(logits, positions, params))


def test_the_likeliest_token_loses_to_the_noise_of_another_wherever_that_is() -> None:
    """One seed after another: the winner is often far down, where a pruning that is a little too bold would miss it."""
    logits = torch.linspace(0, -14, 3001).repeat(300, 1)
    params = [ChoiceParams(seed=seed) for seed in range(300)]

    chosen = choose(logits, [3] * 300, params)

    assert torch.equal(chosen, choose_by_torch(logits, [3] * 300, params))
    assert chosen.max() > 1000


def test_rows_that_are_not_side_by_side_are_read_where_they_lie() -> None:
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(3)).T
    params = [ChoiceParams(seed=seed) for seed in range(6)]
    assert torch.equal(choose(logits, range(6), params), choose(logits.contiguous(), range(6), params))
    assert choose(logits[:0], [], []).shape == (0,)


def test_codes_stand_where_nothing_can_be_chosen() -> None:
    logits = torch.zeros(5, 37)
    logits[0, 36] = math.nan
    logits[1, 0] = math.inf
    logits[2] = -math.inf
    logits[3] = -math.inf
    logits[3, 35] = -1e30
    for params in (ChoiceParams(temperature=0), ChoiceParams(seed=1, top_k=3), ChoiceParams(top_p=0.5)):
        chosen = choose(logits, range(5), [params] * 5).tolist()
        assert chosen[:4] == [UNUSABLE, UNUSABLE, NO_TOKEN, 35]
