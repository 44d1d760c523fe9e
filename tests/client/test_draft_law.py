"""The law of a draft's nodes, from end to end."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.draft_law import DraftLaw, as_sent, pack_laws, unpack_laws
from outrider.errors import InvalidRequest
from outrider.packing import pack_f32, pack_i32
from outrider.v1.worker_pb2 import SparseLaws

HALVES = DraftLaw((3, 9), (0.5, 0.5))


@given(st.dictionaries(st.integers(0, 1000), st.floats(1e-12, 1), min_size=1, max_size=40))
def test_the_law_that_arrives_is_the_law_that_was_drawn_from(drafted: dict[int, float]) -> None:
    total = sum(drafted.values())
    law = as_sent(list(drafted), [share / total for share in drafted.values()])
    packed = pack_laws([None, law])
    assert packed is not None

    [none, arrived] = unpack_laws(SparseLaws.FromString(packed.SerializeToString()), 2)

    assert none is None
    assert arrived == law
    assert arrived.probabilities == law.probabilities
    assert sum(law.probabilities) == pytest.approx(1, abs=1e-12)


def test_tokens_without_a_chance_are_not_sent() -> None:
    assert as_sent([4, 5, 6], [0.75, 1e-60, 0.25]) == DraftLaw((4, 6), (0.75, 0.25))


def test_nodes_that_bring_no_law_cost_no_bytes() -> None:
    assert pack_laws([None, None]) is None
    assert unpack_laws(SparseLaws(), 2) == [None, None]


def test_what_is_drawn_is_left_out_and_the_rest_keeps_its_proportions() -> None:
    law = DraftLaw((1, 2, 3), (Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)))
    assert law.without([1]).probabilities == (Fraction(2, 3), Fraction(1, 3))
    assert law.without([1]).probability(3) == Fraction(1, 3)


@pytest.mark.parametrize(
    ("packed", "field"),
    [
        pytest.param(SparseLaws(counts=b"123"), "laws.counts", id="no whole number of counts"),
        pytest.param(SparseLaws(counts=pack_i32([2])), "laws.counts", id="a count too few"),
        pytest.param(SparseLaws(counts=pack_i32([-1, 1])), "laws.counts", id="a negative count"),
        pytest.param(SparseLaws(counts=pack_i32([2, 0]), ids=pack_i32([1])), "laws.ids", id="an id too few"),
        pytest.param(
            SparseLaws(counts=pack_i32([2, 0]), ids=pack_i32([1, 1]), probabilities=pack_f32([0.5, 0.5])),
            "laws.ids",
            id="a token twice",
        ),
        *(
            pytest.param(
                SparseLaws(counts=pack_i32([2, 0]), ids=pack_i32([1, 2]), probabilities=pack_f32(weights)),
                "laws.probabilities",
                id=str(weights),
            )
            for weights in ([1.0, 0.0], [0.5, 0.6], [1.5, -0.5], [float("nan"), 1.0], [float("inf"), 1.0])
        ),
    ],
)
def test_lists_that_make_no_law_are_refused_by_name(packed: SparseLaws, field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        unpack_laws(packed, 2)
