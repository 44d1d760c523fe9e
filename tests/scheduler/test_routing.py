"""Where a request goes: to what it finds there, unless those who run there would slow it down by more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.events import NewRequest, PassCost
from scheduler.policy.price import Price
from scheduler.preemption import Capacity
from scheduler.request import Request
from scheduler.routing import choose, expected_s
from scheduler.target_group import Load, TargetGroup
from tests.scheduler.classes import BATCH, INTERACTIVE, STANDARD, asked
from tests.scheduler.world import FACTS

# A millisecond a token, and 10 for a pass: 100 tokens of a prompt take as long as one row more does in 100 passes.
STEEP = [PassCost(1, 0, 0.011), PassCost(1001, 0, 1.011)]
FLAT = [PassCost(1, 0, 0.010), PassCost(1001, 0, 0.010)]
LONG = list(range(100))


def group_of(address: str, *sizes: int, costs: Sequence[PassCost] = STEEP, blocks: int = 10_000) -> TargetGroup:
    """With rows that have come so far, and choose."""
    facts = replace(FACTS, num_kv_blocks=blocks, pass_costs=costs)
    group = TargetGroup(address, facts, Capacity(8, blocks, facts.block_size), Price(), 1.0)
    for number, size in enumerate(sizes, 100):
        request = Request(asked(number, prompt=size), 0.0)
        group.take(request, epoch=number)
        request.target.known_len = size - 1
    return group


def place_of(new: NewRequest, *groups: TargetGroup) -> str | None:
    chosen = choose(Request(new, 0.0), groups)
    return None if chosen is None else chosen[0].address


def test_a_request_goes_where_its_prefix_is() -> None:
    here, there = group_of("here", 4), group_of("there", 4)
    there.prefixes.note(LONG)
    assert place_of(replace(asked(1), prompt=[*LONG, 7]), here, there) == "there"
    assert place_of(replace(asked(1), prompt=[7, *LONG]), here, there) == "here", "which is the first of equals"


def test_a_chat_goes_where_its_last_answer_was_computed() -> None:
    here, there = group_of("here"), group_of("there")
    first = Request(replace(asked(1, max_tokens=40), prompt=LONG[:20]), 0.0)
    there.take(first, epoch=1)
    first.commit(LONG[20:60], ())
    first.target.known_len = 60
    there.drop(first)
    assert place_of(replace(asked(2), prompt=[*LONG[:60], 7, 7]), here, there) == "there"
    assert there.prefixes.num_known(LONG) == 56, "the last token's KV was never computed, so not its block either"


@pytest.mark.parametrize(("max_tokens", "place"), [(20, "there"), (45, "here")])
def test_load_beats_a_prefix_where_it_costs_more_than_that_saves(max_tokens: int, place: str) -> None:
    """Three rows more, for as many passes as the answer has tokens, or 96 tokens of a prompt: it turns at 32."""
    here, there = group_of("here", 4), group_of("there", 4, 4, 4, 4)
    there.prefixes.note(LONG[:96])
    assert place_of(replace(asked(1, max_tokens=max_tokens), prompt=[*LONG[:96], 7]), here, there) == place


def test_prompts_that_are_still_computed_are_waited_for() -> None:
    here, there = group_of("here", 4), group_of("there", 4, 4)
    request = here.running[100]
    request.target.known_len, request.tokens = 0, [1] * 100
    assert place_of(asked(1), here, there) == "there"
    request.target.num_expected = 99
    assert place_of(asked(1), here, there) == "here", "all but one token of it should be in the prefix cache"


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_group_that_has_run_nothing_yet_gets_its_share_whatever_its_profile_says(factor: float) -> None:
    other = [PassCost(cost.num_tokens, 0, factor * cost.pass_s) for cost in STEEP]
    known, new = group_of("known", 4, 4), group_of("new", 4, costs=other)
    assert place_of(asked(1), known, new) == "new"
    new.running[101] = known.running[101]
    new.running[102] = known.running[101]
    assert place_of(asked(1), known, new) == "known"


def test_where_a_row_costs_nothing_the_emptier_group_is_taken() -> None:
    groups = [group_of("full", 4, 4, costs=FLAT), group_of("emptier", 4, costs=FLAT)]
    assert place_of(asked(1), *groups) == "emptier"


def test_room_comes_before_everything() -> None:
    full, free = group_of("full", 4, blocks=4), group_of("free", *[4] * 7)
    full.prefixes.note(LONG)
    assert place_of(replace(asked(1), prompt=[*LONG[:8]]), full, free) == "free"
    assert place_of(replace(asked(1), prompt=[1] * 4), full) is None


def test_nobody_gives_way_where_another_group_has_room_and_else_as_few_as_can_be() -> None:
    def filled(address: str, *sizes: int, blocks: int) -> TargetGroup:
        group = group_of(address, *sizes, blocks=blocks)
        for request in group.running.values():
            request.new = replace(request.new, service_class=BATCH)
        return group

    many, few = filled("many", 4, 4, 4, blocks=9), filled("few", 30, blocks=10)
    urgent = Request(asked(1, INTERACTIVE, prompt=12), 0.0)
    chosen = choose(urgent, [many, few])
    assert chosen is not None
    assert (chosen[0].address, len(chosen[1])) == ("few", 1)
    chosen = choose(urgent, [many, few, group_of("free", *[4] * 7)])
    assert chosen is not None
    assert (chosen[0].address, chosen[1]) == ("free", [])
    assert choose(Request(asked(1, BATCH), 0.0), [many, few]) is None
    assert choose(Request(asked(1, STANDARD), 0.0), []) is None


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.builds(Load, st.integers(0, 50), st.integers(0, 500), st.integers(0, 500)),
    st.integers(0, 300),
    st.integers(1, 300),
)
def test_more_of_anything_never_ends_sooner(load: Load, num_missing: int, num_tokens: int) -> None:
    def seconds(load: Load, num_missing: int, num_tokens: int) -> float:
        def pass_s(num_rows: int, num_prompt_tokens: int, context_len: int) -> float:
            return 0.01 + 0.002 * num_rows + 0.001 * num_prompt_tokens + 1e-5 * context_len

        return expected_s(load, num_missing, num_tokens, pass_s)

    base = seconds(load, num_missing, num_tokens)
    for more in (
        (replace(load, num_rows=load.num_rows + 1), num_missing, num_tokens),
        (replace(load, num_prompt_tokens=load.num_prompt_tokens + 1), num_missing, num_tokens),
        (replace(load, context_len=load.context_len + 1), num_missing, num_tokens),
        (load, num_missing + 1, num_tokens),
        (load, num_missing, num_tokens + 1),
    ):
        assert seconds(*more) >= base - 1e-12
