"""Whatever happens to a model drafter's trees, they are what a drafter that starts from the tokens would find."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.draft.drafting import Driver, load_tiny
from tests.draft.rebuilt import Rebuilt
from workers.choice.params import ChoiceParams
from workers.draft.model import ModelDrafter

VOCAB = 97
KEYS = st.integers(0, 3)
PARAMS = [
    ChoiceParams(temperature=0),
    ChoiceParams(temperature=0.8, seed=7, top_k=40),
    ChoiceParams(temperature=1.2, seed=9, repetition_penalty=1.3),
    ChoiceParams(temperature=0.9, seed=5, rule="rejection"),
]


class Trees(RuleBasedStateMachine):
    drafter: ModelDrafter
    rebuilt: Rebuilt

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver(self.drafter, may_forget=True)
        self.total = self.drafter._engine.num_free_blocks
        self.numbers = count()
        self.open: dict[int, int] = {}  # slot -> key
        self.params: dict[int, ChoiceParams] = {}

    @rule(
        slot=KEYS, params=st.sampled_from(PARAMS), prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)
    )
    def open_one(self, slot: int, params: ChoiceParams, prompt: list[int]) -> None:
        if slot not in self.open:
            self.open[slot], self.params[slot] = next(self.numbers), params
            self.driver.open(self.open[slot], params, prompt, 6)

    @rule(num_steps=st.integers(1, 4))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.driver.step()

    @rule(
        slot=KEYS,
        data=st.data(),
        extra=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=2),
        size=st.integers(1, 12),
    )
    def verdict(self, slot: int, data: st.DataObject, extra: list[int], size: int) -> None:
        """A path of the tree is accepted, and another token, or another node, follows."""
        if slot in self.open:
            paths = self.driver.told[self.open[slot]].standing()
            path = list(data.draw(st.sampled_from([(), *paths])))
            is_survived = bool(path) and data.draw(st.booleans())
            tokens = path if is_survived else [*path, *extra]
            if len(self.driver.told[self.open[slot]].text) + len(tokens) < 100:
                self.driver.order(self.open[slot], tokens, size)

    @rule(slot=KEYS, size=st.integers(0, 16), min_survival=st.sampled_from([0.0, 0.05, 0.3]))
    def ask_again(self, slot: int, size: int, min_survival: float) -> None:
        if slot in self.open:
            self.driver.order(self.open[slot], [], size, min_survival)

    @rule(slot=KEYS)
    def close_one(self, slot: int) -> None:
        if slot in self.open:
            self.driver.close(self.open.pop(slot))

    @rule(slot=KEYS)
    def reset(self, slot: int) -> None:
        """The request is forgotten, and opened again with nothing but its tokens: another link, or another epoch."""
        if slot in self.open:
            told = self.driver.told[self.open[slot]]
            params = self.params[slot]
            self.close_one(slot)
            self.open_one(slot, params, list(told.text))

    @invariant()
    def tree_and_kv_are_what_the_tokens_give(self) -> None:
        self.rebuilt.check(self.drafter)

    def teardown(self) -> None:
        for slot in list(self.open):
            self.close_one(slot)
        self.driver.step()
        assert self.drafter._engine.num_free_blocks == self.total
        assert not self.drafter._states


@pytest.mark.parametrize("num_blocks", [256, 12], ids=["enough room", "hardly any room"])
def test_trees_are_those_that_the_tokens_give(tiny: Path, num_blocks: int) -> None:
    parts = {"drafter": load_tiny(tiny, num_blocks), "rebuilt": Rebuilt(load_tiny(tiny, 64))}
    machine = type("Machine", (Trees,), parts)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15,
            stateful_step_count=15,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
