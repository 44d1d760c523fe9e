"""Drafts from repeated text: what the automaton knows, and what the drafter makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import InvalidRequest
from tests.draft.drafting import Driver
from workers.choice.params import ChoiceParams
from workers.draft import suffix
from workers.draft.automaton import Automaton, State
from workers.draft.drafter import Resources
from workers.draft.suffix import SuffixDrafter, load

texts = st.lists(st.integers(0, 2), min_size=1, max_size=30)


def automaton_of(text: Sequence[int]) -> Automaton:
    automaton = Automaton()
    for token in text:
        automaton.extend(token)
    return automaton


def occurrences(text: Sequence[int], part: Sequence[int]) -> list[int]:
    """Where it ends."""
    n = len(part)
    return [end for end in range(n, len(text) + 1) if list(text[end - n : end]) == list(part)]


@settings(max_examples=200, deadline=None)
@given(texts)
def test_the_repeated_end_is_the_longest_that_occurred_before(text: list[int]) -> None:
    expected = max(n for n in range(len(text)) if n == 0 or len(occurrences(text, text[-n:])) > 1)
    assert automaton_of(text).repeated.length == expected


@settings(max_examples=200, deadline=None)
@given(texts, texts)
def test_following_tokens_leads_to_the_longest_match(text: list[int], other: list[int]) -> None:
    automaton = automaton_of(text)
    state, length = automaton.root, 0
    for end, token in enumerate(other, 1):
        state, length = automaton.follow(state, length, token)
        longest = max(n for n in range(end + 1) if n == 0 or occurrences(text, other[end - n : end]))
        assert length == longest


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=25))
def test_states_know_what_came_next_and_how_often(text: list[int]) -> None:
    automaton = automaton_of(text)

    def walk(state: State, part: list[int]) -> None:
        followers = Counter(text[end] for end in occurrences(text, part) if end < len(text))
        assert set(state.next) == set(followers)
        for token, following in state.next.items():
            if len(part) < 6:
                walk(following, [*part, token])

    walk(automaton.root, [])


def drafted(text: Sequence[int], max_nodes: int, *, drafter: SuffixDrafter | None = None) -> list[tuple[int, ...]]:
    driver = Driver(drafter or SuffixDrafter())
    driver.open(1, ChoiceParams(), text, max_nodes)
    driver.finish()
    return driver.told[1].standing()


def test_a_repeated_passage_is_continued() -> None:
    passage = [10, 11, 12, 13, 14, 15, 16]
    paths = drafted([*passage, 99, *passage[:3]], 4)
    assert paths[:4] == [(13,), (13, 14), (13, 14, 15), (13, 14, 15, 16)]


def test_what_came_more_often_comes_first() -> None:
    paths = drafted([1, 2, 7, 1, 2, 8, 1, 2, 8, 1, 2], 2)
    assert paths[0] == (8,)
    assert (7,) in drafted([1, 2, 7, 1, 2, 8, 1, 2, 8, 1, 2], 8)


def test_text_without_repetition_gives_nothing() -> None:
    assert drafted([1, 2, 3, 4], 8) == []


def test_nodes_that_survive_are_continued_and_not_told_again() -> None:
    driver = Driver(SuffixDrafter())
    passage = list(range(10, 22))
    driver.open(1, ChoiceParams(), [*passage, 99, *passage[:3]], 4)
    driver.finish()
    driver.order(1, [13, 14], 4)
    driver.finish()  # the driver fails where a node that stands is told twice
    assert driver.told[1].standing()[-1] == (15, 16, 17, 18)


def test_verdicts_teach_what_a_count_is_worth() -> None:
    """A text that is never what was seen before: soon only a little is drafted."""
    driver = Driver(SuffixDrafter())
    text = [1, 2, 3, 4, 5, 6, 7, 8]
    driver.open(1, ChoiceParams(), [*text, 1], 8)
    driver.order(1, [], 8, min_survival=0.2)
    driver.finish()
    at_first = len(driver.told[1].standing())
    for token in range(100, 140):
        driver.order(1, [token, 1], 8, min_survival=0.2)
        driver.finish()
    assert at_first > 0
    assert len(driver.told[1].standing()) == 0


@pytest.mark.parametrize("is_shared", [True, False])
def test_finished_answers_are_searched_only_where_they_are_shared(is_shared: bool) -> None:
    drafter = SuffixDrafter(is_shared=is_shared)
    driver = Driver(drafter)
    driver.open(1, ChoiceParams(num_prompt_tokens=2), [50, 51, 20, 21, 22, 23], 2)
    driver.finish()
    driver.close(1)
    driver.step()

    driver.open(2, ChoiceParams(num_prompt_tokens=1), [60, 20, 21], 2)
    driver.finish()

    assert driver.told[2].standing() == ([(22,), (22, 23)] if is_shared else [])
    driver.open(3, ChoiceParams(num_prompt_tokens=1), [60, 50], 2)
    driver.finish()
    assert driver.told[3].standing() == [], "prompts are nobody else's business"


def test_no_draft_runs_from_one_answer_into_the_next() -> None:
    drafter = SuffixDrafter(is_shared=True)
    driver = Driver(drafter)
    for key, answer in enumerate(([20, 21], [30, 31])):
        driver.open(key, ChoiceParams(), answer, 1)
        driver.step()
        driver.close(key)
    driver.step()
    driver.open(9, ChoiceParams(), [20], 5)
    driver.finish()
    assert driver.told[9].standing() == [(21,)]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suffix, "MAX_TEXT_TOKENS", 100)
    drafter = SuffixDrafter()
    driver = Driver(drafter)
    driver.open(1, ChoiceParams(), [0], 1)
    for token in range(1000):
        driver.order(1, [token % 7, token % 11], 1)
        driver.step()
    text = drafter._texts[1]
    assert text.automaton.num_tokens <= 100
    driver.close(1)
    driver.step()
    assert not drafter._texts


def test_a_period_of_any_length_is_continued_in_bounded_time() -> None:
    assert drafted([4] * 3000, 5)[0] == (4,)


def test_a_source_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="suffix:shared"):
        load("global", Resources())
