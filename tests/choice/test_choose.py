"""The choice: exact at every boundary, and the right law."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.choice import choose as rule
from workers.choice.choose import NO_TOKEN, UNUSABLE, Noise
from workers.choice.noise import NoiseCache, gumbel_rows
from workers.choice.params import ChoiceParams

FALSE_ALARM = 1e-6
NUM_SEEDS = 1500


def choose(
    logits: torch.Tensor, positions: Sequence[int], params: ChoiceParams, noise: Noise | None = None
) -> torch.Tensor:
    """With one set of parameters for all nodes."""
    return rule.choose(logits, positions, [params] * len(logits), noise=noise)


def kept_tokens(logits: Sequence[float], params: ChoiceParams) -> set[int]:
    """The tokens that the limits leave a chance."""
    scores = rule.limited_scores_of_torch(torch.tensor([logits]), [params])
    return set(scores.isfinite().nonzero()[:, 1].tolist())


def logits_of(*probabilities: float) -> list[float]:
    return [math.log(probability) if probability else -math.inf for probability in probabilities]


def test_greedy_takes_the_best_and_of_equals_the_lowest_token() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.0, 2.0], [-math.inf, -5.0, -5.0]])

    assert choose(logits, [0, 1, 2], ChoiceParams(temperature=0)).tolist() == [1, 0, 1]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
def test_a_vanishing_temperature_is_greedy(temperature: float) -> None:
    logits = torch.randn(50, 200, generator=torch.Generator().manual_seed(0))
    params = ChoiceParams(temperature=temperature, seed=5)

    # A thousandth: the two best of each row are further apart than any two noises can be.
    best = logits.topk(2).values
    is_clear = (best[:, 0] - best[:, 1]) / 1e-3 > 26.1
    assert is_clear.sum() > 40
    assert torch.equal(choose(logits, range(50), params)[is_clear], logits.argmax(dim=-1)[is_clear])


@pytest.mark.parametrize(
    ("logits", "top_k", "expected"),
    [
        ([1.0, 3.0, 2.0, 0.0], 0, {0, 1, 2, 3}),
        ([1.0, 3.0, 2.0, 0.0], 1, {1}),
        ([1.0, 3.0, 2.0, 0.0], 3, {0, 1, 2}),
        ([1.0, 3.0, 2.0, 0.0], 4, {0, 1, 2, 3}),
        ([1.0, 3.0, 2.0, 0.0], 2**32 - 1, {0, 1, 2, 3}),
        ([1.0, 2.0, 1.0, 1.0], 2, {0, 1}),
        ([1.0, 1.0, 1.0, 1.0], 3, {0, 1, 2}),
        ([-math.inf, 1.0, -math.inf, 0.0], 3, {1, 3}),
    ],
)
def test_top_k_keeps_the_k_best_and_among_equals_the_lowest_tokens(
    logits: list[float], top_k: int, expected: set[int]
) -> None:
    assert kept_tokens(logits, ChoiceParams(top_k=top_k)) == expected


@pytest.mark.parametrize(
    ("logits", "top_p", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], 0.5, {0, 1}),  # reached exactly: no token more
        ([0.0, 0.0, 0.0, 0.0], math.nextafter(0.5, 1), {0, 1, 2}),  # the token that crosses is included
        ([0.0, 0.0, 0.0, 0.0], math.nextafter(0.5, 0), {0, 1}),
        ([0.0, 0.0, 0.0, 0.0], 1e-9, {0}),
        ([0.0, 0.0, 0.0, 0.0], 1.0, {0, 1, 2, 3}),
        (logits_of(0.1, 0.2, 0.3, 0.4), 0.65, {2, 3}),
        (logits_of(0.1, 0.2, 0.3, 0.4), 0.75, {1, 2, 3}),
        (logits_of(0.1, 0.2, 0.3, 0.4), 0.39, {3}),
        (logits_of(0.25, 0.5, 0.25, 0.0), 0.6, {0, 1}),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(
    logits: list[float], top_p: float, expected: set[int]
) -> None:
    assert kept_tokens(logits, ChoiceParams(top_p=top_p)) == expected


@pytest.mark.parametrize(
    ("min_p", "expected"),
    [
        (0.0, {0, 1, 2, 3}),
        (0.25, {1, 2, 3}),
        (0.5, {2, 3}),  # exactly half of the best: kept
        (0.51, {3}),
        (1.0, {3}),
    ],
)
def test_min_p_keeps_what_is_at_least_that_share_of_the_best(min_p: float, expected: set[int]) -> None:
    assert kept_tokens([math.log(p) for p in (0.0625, 0.125, 0.25, 0.5)], ChoiceParams(min_p=min_p)) == expected


@pytest.mark.parametrize(
    ("probabilities", "typical_p", "expected"),
    [
        # The entropy is 1.75 bits; the surprises are 1, 2, 3, 3 bits: token 1 is nearest, then 0, then 2 before 3.
        ((0.5, 0.25, 0.125, 0.125), 0.2, {1}),
        ((0.5, 0.25, 0.125, 0.125), 0.24, {1}),
        ((0.5, 0.25, 0.125, 0.125), 0.26, {0, 1}),
        ((0.5, 0.25, 0.125, 0.125), 0.8, {0, 1, 2}),
        ((0.5, 0.25, 0.125, 0.125), 1.0, {0, 1, 2, 3}),
        ((0.25, 0.25, 0.25, 0.25), 0.5, {0, 1}),
        ((1.0, 0.0, 0.0, 0.0), 0.5, {0}),
    ],
)
def test_typical_p_keeps_the_tokens_whose_surprise_is_nearest_to_the_entropy(
    probabilities: tuple[float, ...], typical_p: float, expected: set[int]
) -> None:
    assert kept_tokens(logits_of(*probabilities), ChoiceParams(typical_p=typical_p)) == expected


def test_limits_look_at_the_law_at_the_requests_temperature() -> None:
    logits = [0.0, 1.0, 2.0, 4.0]

    assert kept_tokens(logits, ChoiceParams(temperature=0.25, top_p=0.9)) == {3}
    assert kept_tokens(logits, ChoiceParams(temperature=4.0, top_p=0.9)) == {0, 1, 2, 3}


def test_top_p_looks_at_what_top_k_has_left() -> None:
    # Among the two best, 0.4 : 0.3, the better one alone has 4/7 of the mass; among all it has not half.
    assert kept_tokens(logits_of(0.1, 0.2, 0.3, 0.4), ChoiceParams(top_k=2, top_p=0.55)) == {3}
    assert kept_tokens(logits_of(0.1, 0.2, 0.3, 0.4), ChoiceParams(top_p=0.55)) == {2, 3}


def kept_by_definition(logits: Sequence[float], params: ChoiceParams) -> set[int]:
    """The slow reference: plain lists, one sort, tokens dropped one by one."""
    scaled = [value / params.temperature for value in logits]
    ranked = sorted(range(len(scaled)), key=lambda token: (-scaled[token], token))
    if params.top_k:
        ranked = ranked[: params.top_k]
    weights = [math.exp(scaled[token] - scaled[ranked[0]]) for token in ranked]
    total = math.fsum(weights)
    kept = {}
    for i, token in enumerate(ranked):
        if math.fsum(weights[:i]) / total < params.top_p and weights[i] >= params.min_p:
            kept[token] = weights[i]
    return typical_by_definition(kept, params.typical_p)


def typical_by_definition(weights: dict[int, float], typical_p: float) -> set[int]:
    total = math.fsum(weights.values())
    law = {token: weight / total for token, weight in weights.items()}
    entropy = -math.fsum(share * math.log(share) for share in law.values())
    ranked = sorted(law, key=lambda token: (round(abs(-math.log(law[token]) - entropy), 9), token))
    return {token for i, token in enumerate(ranked) if math.fsum(law[other] for other in ranked[:i]) < typical_p}


@settings(max_examples=200, deadline=None)
@given(
    # Quarters: their exponentials never land on a boundary by rounding, and ties are frequent.
    logits=st.lists(st.integers(-20, 20).map(lambda quarter: quarter / 4), min_size=1, max_size=40),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.integers(0, 45),
    top_p=st.sampled_from([0.011, 0.203, 0.507, 0.911, 0.9901, 1.0]),
    min_p=st.sampled_from([0.0, 0.013, 0.21, 0.83]),
    typical_p=st.sampled_from([0.0303, 0.2503, 0.7717, 0.9703, 1.0]),
)
def test_limits_keep_what_their_definition_keeps(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float
) -> None:
    params = ChoiceParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p)

    assert kept_tokens(logits, params) == kept_by_definition(logits, params)


def test_top_p_on_a_large_vocabulary_keeps_what_a_full_sort_keeps() -> None:
    logits = torch.randn(49152, generator=torch.Generator().manual_seed(3)) * 3
    for top_p in (0.3, 0.9, 0.999):
        ordered = logits.double().softmax(0).sort(descending=True, stable=True)
        num_kept = 1 + int((ordered.values.cumsum(0)[:-1] < top_p).sum())

        kept = kept_tokens(logits.tolist(), ChoiceParams(top_p=top_p))

        assert kept == set(ordered.indices[:num_kept].tolist())


def test_typical_p_on_a_large_vocabulary_keeps_what_the_definition_in_float64_keeps() -> None:
    logits = torch.randn(49152, generator=torch.Generator().manual_seed(5)) * 3
    law = logits.double().softmax(0)
    entropy = -(law * law.log()).sum()
    order = (-law.log() - entropy).abs().sort(stable=True).indices
    for typical_p in (0.2, 0.9, 0.99):
        num_kept = 1 + int((law[order].cumsum(0)[:-1] < typical_p).sum())

        kept = kept_tokens(logits.tolist(), ChoiceParams(typical_p=typical_p))

        assert kept == set(order[:num_kept].tolist())


def test_a_choice_depends_on_its_own_row_seed_and_position_only() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(1))
    params = ChoiceParams(temperature=0.8, top_k=50, top_p=0.95, min_p=0.01, seed=77)
    positions = [9, 10, 10, 11, 12, 13]

    together = choose(logits, positions, params).tolist()

    alone = [int(choose(logits[i : i + 1], [positions[i]], params)) for i in range(6)]
    assert together == alone
    assert together == choose(logits, positions, params, noise=NoiseCache(300)).tolist()


def test_each_node_is_chosen_with_its_own_parameters() -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(4)) * 2
    params = [
        ChoiceParams(temperature=0),
        ChoiceParams(temperature=0.7, seed=1, top_k=5),
        ChoiceParams(temperature=1.5, seed=2, top_p=0.6, typical_p=0.5),
        ChoiceParams(seed=3, min_p=0.2),
        ChoiceParams(seed=4, top_k=17, typical_p=0.8),
    ]
    positions = [7, 3, 9, 1, 2]

    together = rule.choose(logits, positions, params).tolist()

    assert together == [int(choose(logits[i : i + 1], [positions[i]], params[i])) for i in range(5)]
    assert len(set(together)) > 1


def test_the_law_is_that_of_the_scores_and_at_temperature_0_all_on_the_choice() -> None:
    logits = torch.tensor([logits_of(0.1, 0.2, 0.3, 0.4)] * 2)
    laws = rule.laws(logits, [ChoiceParams(top_k=2), ChoiceParams(temperature=0)])

    assert laws.tolist() == [pytest.approx([0, 0, 3 / 7, 4 / 7]), [0, 0, 0, 1]]


def test_the_models_logits_are_not_written_to() -> None:
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(2))
    before = logits.clone()

    choose(logits, [0, 1], ChoiceParams(top_k=3, top_p=0.5, min_p=0.1, seed=1))
    choose(logits, [0, 1], ChoiceParams(temperature=0))

    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    "params", [ChoiceParams(temperature=0), ChoiceParams(top_k=2, top_p=0.9, typical_p=0.9, min_p=0.1)]
)
@pytest.mark.parametrize("spoiled", [math.nan, math.inf])
def test_where_logits_are_unusable_nothing_is_chosen_and_the_other_nodes_are(
    spoiled: float, params: ChoiceParams
) -> None:
    logits = torch.zeros(4, 8)
    logits[1, 5] = spoiled
    logits[2] = -math.inf
    logits[3, 6] = 9.0

    chosen = choose(logits, [0, 1, 2, 3], params).tolist()

    assert chosen[1:] == [UNUSABLE, NO_TOKEN, 6]
    assert chosen[0] == int(choose(torch.zeros(1, 8), [0], params))


# The law. Chi-square over fixed seeds; FALSE_ALARM is the chance that a right choice would fail such a test.


def chi_square_p_value(counts: Sequence[int], law: Sequence[float]) -> float:
    """The chance of counts at least this far from the law; 0 where something impossible was counted."""
    total = sum(counts)
    if any(count for count, probability in zip(counts, law, strict=True) if not probability):
        return 0.0
    cells = [(count, total * probability) for count, probability in zip(counts, law, strict=True) if probability]
    statistic = sum((count - expected) ** 2 / expected for count, expected in cells)
    return float(torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2.0), torch.tensor(statistic / 2.0)))


def choices_over_seeds(
    logits: torch.Tensor,  # [num_positions, vocab]
    positions: Sequence[int],  # [num_positions]
    params: ChoiceParams,
    noise: Noise | None = None,
) -> list[tuple[int, ...]]:
    """The choices at these positions with each of NUM_SEEDS seeds, all of them made at once."""
    of_seeds = [replace(params, seed=seed) for seed in range(NUM_SEEDS) for _ in positions]
    chosen = rule.choose(logits.repeat(NUM_SEEDS, 1), [*positions] * NUM_SEEDS, of_seeds, noise=noise)
    return list(map(tuple, chosen.view(NUM_SEEDS, -1).tolist()))


def counts_over_seeds(logits: torch.Tensor, params: ChoiceParams, noise: Noise | None = None) -> list[int]:
    """How often each token is chosen, [vocab]."""
    counted = Counter(choices_over_seeds(logits, [4], params, noise))
    return [counted[(token,)] for token in range(logits.shape[-1])]


LAWS = [
    ChoiceParams(temperature=1.0),
    ChoiceParams(temperature=0.6),
    ChoiceParams(temperature=1.7, top_k=7),
    ChoiceParams(temperature=1.0, top_p=0.8),
    ChoiceParams(temperature=1.3, min_p=0.1),
    ChoiceParams(temperature=1.1, typical_p=0.7),
    ChoiceParams(temperature=0.9, top_k=9, top_p=0.9, min_p=0.05, typical_p=0.95),
]


@pytest.mark.parametrize("params", LAWS, ids=str)
def test_choices_over_seeds_have_the_law_of_the_processed_logits(params: ChoiceParams) -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(8))
    kept = kept_by_definition(logits[0].tolist(), params)
    masked = [value if token in kept else -math.inf for token, value in enumerate(logits[0].tolist())]
    law = (torch.tensor(masked, dtype=torch.float64) / params.temperature).softmax(0).tolist()

    assert chi_square_p_value(counts_over_seeds(logits, params), law) > FALSE_ALARM


def no_noise(seeds: Sequence[int], _positions: Sequence[int]) -> torch.Tensor:
    return torch.zeros(len(seeds), 12)


def wider_noise(seeds: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
    return 1.6 * gumbel_rows(seeds, positions, 12)


def uniform_noise(seeds: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
    return (-(-gumbel_rows(seeds, positions, 12)).exp()).exp()


@pytest.mark.parametrize("wrong_noise", [no_noise, wider_noise, uniform_noise])
def test_the_law_test_sees_a_wrong_noise(wrong_noise: Noise) -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(8))
    law = logits[0].double().softmax(0).tolist()

    assert chi_square_p_value(counts_over_seeds(logits, ChoiceParams(), wrong_noise), law) < FALSE_ALARM


@pytest.mark.parametrize(
    ("noise", "is_right"),
    [
        (None, True),
        # The noise of one position, used at the next as well.
        (lambda seeds, positions: gumbel_rows(seeds, [0] * len(positions), 4), False),
    ],
    ids=["ours", "reused across positions"],
)
def test_choices_at_neighbouring_positions_are_independent(noise: Noise | None, is_right: bool) -> None:
    logits = torch.tensor([[0.5, 0.0, -0.5, 1.0]])
    marginal = logits[0].double().softmax(0).tolist()
    law = [a * b for a, b in product(marginal, marginal)]

    counted = Counter(choices_over_seeds(logits.expand(2, -1), [6, 7], ChoiceParams(), noise))
    p_value = chi_square_p_value([counted[pair] for pair in product(range(4), repeat=2)], law)

    assert (p_value > FALSE_ALARM) is is_right
