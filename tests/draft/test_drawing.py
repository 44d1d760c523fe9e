"""Drafts for the rejection rule are drawn: independently of each other, from the very law that is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch

from outrider.draft_law import DraftLaw
from tests.draft.drafting import Driver, Told, load_tiny
from tests.statistics import chi_square_p_value
from workers.choice.choose import laws
from workers.choice.noise import uniform
from workers.choice.params import ChoiceParams
from workers.draft.drawing import MAX_LAW_TOKENS, draw, law_to_draw_from

FALSE_ALARM = 1e-6
PROMPT = [5, 6, 7, 8, 9]
DRAWN = ChoiceParams(temperature=0.9, seed=5, rule="rejection")
LAW = DraftLaw((7, 2, 5, 30), (0.5, 0.25, 0.2, 0.05))


def test_draws_follow_the_law() -> None:
    counts = Counter(draw(LAW, seed, 9, 4) for seed in range(20_000))
    assert chi_square_p_value(counts, dict(zip(LAW.ids, LAW.probabilities, strict=True))) > FALSE_ALARM
    assert chi_square_p_value(counts, dict(zip(LAW.ids, (0.45, 0.25, 0.25, 0.05), strict=True))) < FALSE_ALARM


def pairs_of(second: Callable[[int], int]) -> float:
    """How far pairs of draws are from independent ones."""
    counts = Counter((draw(LAW, seed, 9, 4), second(seed)) for seed in range(20_000))
    law = {(a, b): LAW.probability(a) * LAW.probability(b) for a, b in product(LAW.ids, LAW.ids)}
    return chi_square_p_value(counts, law)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(lambda seed: draw(LAW, seed, 10, 4), id="of the next position"),
        pytest.param(lambda seed: draw(LAW, seed, 9, 5), id="below the next root"),
        pytest.param(lambda seed: draw(LAW, seed + 1, 9, 4), id="of the next seed"),
        pytest.param(lambda seed: by_number(uniform(seed, 9, index=1, stream=2)), id="of the rule's own stream"),
    ],
)
def test_no_two_draws_depend_on_each_other(second: Callable[[int], int]) -> None:
    assert pairs_of(second) > FALSE_ALARM


def test_the_same_draw_twice_is_seen() -> None:
    """The wrong twin: draws that are kept across a verdict."""
    assert pairs_of(lambda seed: draw(LAW, seed, 9, 4)) < FALSE_ALARM


def by_number(number: float) -> int:
    """A token of LAW, as `draw` picks it."""
    for token, below in zip(LAW.ids, (0.5, 0.75, 0.95, 1.0), strict=True):
        if number < below:
            return token
    raise AssertionError


def test_the_law_is_the_drafters_own_cut_to_its_likeliest_tokens() -> None:
    logits = torch.randn(97, generator=torch.Generator().manual_seed(1))
    whole = laws(logits[None], [DRAWN])[0]

    law = law_to_draw_from(logits, DRAWN)

    best = whole.topk(MAX_LAW_TOKENS)
    assert list(law.ids) == best.indices.tolist()
    assert law.probabilities == pytest.approx((best.values / best.values.sum()).tolist(), rel=1e-6)


def test_a_limit_of_the_request_limits_the_law() -> None:
    logits = torch.randn(97, generator=torch.Generator().manual_seed(1))
    assert len(law_to_draw_from(logits, ChoiceParams(top_k=3, rule="rejection")).ids) == 3


def drafted(folder: Path, params: ChoiceParams, committed: list[int], max_nodes: int) -> Told:
    driver = Driver(load_tiny(folder))
    driver.open(1, params, committed, max_nodes)
    driver.finish()
    return driver.told[1]


def test_a_chain_is_drawn_from_the_laws_that_come_with_it(tiny: Path) -> None:
    told = drafted(tiny, DRAWN, PROMPT, 5)

    assert [len(path) for path in told.standing()] == [1, 2, 3, 4, 5]
    for path, law in zip(told.standing(), told.laws.values(), strict=True):
        assert isinstance(law, DraftLaw)
        assert path[-1] == draw(law, DRAWN.seed, len(PROMPT) + len(path) - 1, len(PROMPT))
    again = drafted(tiny, DRAWN, PROMPT, 5)
    assert again == told, "a drafter that is started anew draws the same"


def test_below_a_new_root_all_is_drawn_anew(tiny: Path) -> None:
    """Also where a verdict agrees with the chain: it depended on it."""
    driver = Driver(load_tiny(tiny))
    driver.open(1, DRAWN, PROMPT, 6)
    driver.finish()
    first = driver.told[1].standing()[-1]
    before = set(driver.told[1].nodes)
    driver.order(1, first[:2], 4)
    driver.finish()

    fresh = [path[len(PROMPT) + 2 :] for number, path in driver.told[1].nodes.items() if number not in before]
    assert fresh == drafted(tiny, DRAWN, [*PROMPT, *first[:2]], 4).standing()
    assert fresh[-1] != first[2:]


def test_at_temperature_0_nothing_is_drawn(tiny: Path) -> None:
    told = drafted(tiny, ChoiceParams(temperature=0, rule="rejection"), PROMPT, 4)
    assert set(told.laws.values()) == {None}
    assert told == drafted(tiny, ChoiceParams(temperature=0), PROMPT, 4)
