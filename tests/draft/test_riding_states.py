"""Whatever comes between a scheduler and its drafters, their trees are those that the tokens give, and the same ones.

The real core and two workers with one model drafter each, joined by bytes that arrive when hypothesis says so: orders
and growths wait, verdicts overtake both, streams break with all that was on its way, workers start over with nothing,
and requests move from one worker to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from outrider.tree import DraftTree
from outrider.v1.inference_pb2 import ACCEPTANCE_RULE_REJECTION, SamplingParams
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.events import Cancelled, DrafterDown, PassCost, TargetDown, TargetFacts, TargetUp, Tick
from scheduler.request import Request
from tests.draft.drafting import load_tiny
from tests.draft.rebuilt import Rebuilt
from tests.draft.riding import Riding, Worker, new_request
from workers.choice.params import guess_params
from workers.draft.model import ModelDrafter

VOCAB = 97
FLAT = [PassCost(1, 0, 0.02), PassCost(64, 0, 0.02)]  # nodes cost nothing: all that there are go into a pass
FACTS = TargetFacts(vocab_size=VOCAB, block_size=16, num_kv_blocks=1000, max_pass_tokens=64, pass_costs=FLAT)
NAME = "small"
MAX_TOKENS = 60  # with the prompt, the drafter's context is never full
WORKERS = st.sampled_from(["one", "two"])
OPENINGS = [
    OpenRequest(sampling=SamplingParams(temperature=0, top_p=1, typical_p=1, repetition_penalty=1)),
    OpenRequest(sampling=SamplingParams(temperature=0.8, seed=7, top_k=40, top_p=1, typical_p=1, repetition_penalty=1)),
    OpenRequest(
        sampling=SamplingParams(temperature=0.9, seed=5, top_p=1, typical_p=1, repetition_penalty=1),
        acceptance_rule=ACCEPTANCE_RULE_REJECTION,
    ),
]


class Rides(RuleBasedStateMachine):
    engines: dict[str, ModelDrafter]  # by worker; only their engines outlive an example
    rebuilt: Rebuilt

    @initialize(openings=st.lists(st.sampled_from(OPENINGS), min_size=2, max_size=2))
    def start(self, openings: list[OpenRequest]) -> None:
        self.riding = Riding(FACTS)
        self.numbers = iter(range(1, 1000))
        self.free = {name: drafter._engine.num_free_blocks for name, drafter in self.engines.items()}
        for name in self.engines:
            self.come_up(name)
        for opening in openings:
            self.submit(opening, [5, 6, 7], 4)

    # ── requests and their verdicts ─────────────────────────────────────────────────────────────────

    @precondition(lambda self: len(self.running) < 3)
    @rule(
        opening=st.sampled_from(OPENINGS),
        prompt=st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=20),
        max_nodes=st.integers(1, 6),
    )
    def submit(self, opening: OpenRequest, prompt: list[int], max_nodes: int) -> None:
        self.riding.submit(new_request(next(self.numbers), prompt, MAX_TOKENS, max_nodes, opening))

    @precondition(lambda self: self.riding.passes)
    @rule(
        data=st.data(),
        other=st.integers(1, VOCAB - 1),
        when=st.sampled_from(["now", "after all is done", "while drafters tell"]),
    )
    def verdict(self, data: st.DataObject, other: int, when: str) -> None:
        """Of each row: some of its nodes are accepted, and the next token is one that drafters propose, or another."""
        if when == "after all is done":
            self.all_is_done()
        elif when == "while drafters tell":  # what they have found is on its way, and is overtaken
            for name in list(self.riding.workers):
                self.messages_arrive(name, 10, 0)
                self.steps(name, 2, False)
        walked: dict[int, list[int]] = {}
        for row in self.riding.next_rows:
            paths: list[tuple[int, ...]] = [()]
            for token, parent in zip(row.node_tokens, row.node_parents, strict=True):
                paths.append((*paths[parent + 1], token))
            is_chunk = row.tokens_start + len(row.tokens) < row.committed_len
            accepted = data.draw(st.sampled_from(paths), label="accepted")
            following = data.draw(st.sampled_from([*self.drafted_behind(row.request, accepted), other]), label="next")
            walked[row.request] = [] if is_chunk else [*accepted, following]
        self.riding.verdict(walked)

    # ── messages and steps ──────────────────────────────────────────────────────────────────────────

    @rule(name=WORKERS, num_commands=st.integers(0, 6), num_reports=st.integers(0, 4))
    def messages_arrive(self, name: str, num_commands: int, num_reports: int) -> None:
        for worker in self.up(name):
            for _ in range(min(num_commands, len(worker.commands))):
                worker.take_command()
            for _ in range(min(num_reports, worker.stream.reports.qsize())):
                self.riding.take_report(worker)

    @precondition(lambda self: self.is_busy)
    @rule(name=WORKERS, num_steps=st.integers(1, 3), between=st.booleans())
    def steps(self, name: str, num_steps: int, between: bool) -> None:
        """`between`: what is on its way arrives while the last one is under way."""
        for worker in self.up(name):
            for _ in range(num_steps):
                worker.begin_step(NAME)
                while between and worker.commands:
                    worker.take_command()
                worker.end_step(NAME)
        self.check_what_drafters_keep()

    @precondition(lambda self: self.is_busy)
    @rule(name=WORKERS)
    def a_step_begins(self, name: str) -> None:
        """It ends at the worker's next step: whatever comes before that, comes in the middle of it."""
        for worker in self.up(name):
            worker.begin_step(NAME)

    @precondition(lambda self: self.is_busy)
    @rule()
    def all_is_done(self) -> None:
        self.riding.settle()
        self.check_what_drafters_keep()
        self.check_both_ends_agree()

    # ── what breaks ─────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: self.running)
    @rule(what=st.sampled_from(["stream", "memory", "down", "up", "target", "client", "time"]), name=WORKERS)
    def something_breaks(self, what: str, name: str) -> None:
        if what == "stream":
            for worker in self.up(name):
                self.riding.reconnect(worker)
        elif what == "memory":  # the worker has forgotten what the scheduler thinks that it knows
            for worker in self.up(name):
                worker.hosted[NAME].close(worker.stream)
        elif what == "down":
            self.go_down(name)
        elif what == "up" and not self.up(name):
            self.come_up(name)
        elif what == "target":
            self.riding.passes.clear()
            self.riding.handle(TargetDown() if self.riding.core.has_target else TargetUp(FACTS))
        elif what == "client":
            self.riding.handle(Cancelled(min(self.running)))
        elif what == "time":  # so much that a drafter from which nothing came is late
            self.riding.now_s += 2.0
            self.riding.handle(Tick())

    def go_down(self, name: str) -> None:
        """The process is gone, and all that it knew."""
        for worker in self.up(name):
            del self.riding.workers[name]
            drafter = self.drafter(worker)
            for request in list(drafter._requests.values()):
                drafter.close(request)
            self.riding.handle(DrafterDown(name))

    def come_up(self, name: str) -> None:
        """A new process: an empty drafter, which has to be told everything."""
        engine = self.engines[name]._engine
        drafter = ModelDrafter(engine, self.engines[name].vocabulary, self.engines[name]._guesser._noise)
        self.riding.connect(name, {NAME: drafter})

    # ── the laws ────────────────────────────────────────────────────────────────────────────────────

    @property
    def running(self) -> dict[int, Request]:
        return self.riding.core._running

    def drafted_behind(self, number: int, accepted: Sequence[int]) -> list[int]:
        """What a drafter proposes there, whether it has said so yet or not: the likeliest first."""
        request = self.running.get(number)
        if request is None:
            return []
        text = [*request.tokens, *accepted]
        return list(self.rebuilt.children(guess_params(request.new.opening), text, len(request.tokens)))[:2]

    @property
    def is_busy(self) -> bool:
        return any(worker.has_work for worker in self.riding.workers.values())

    def up(self, name: str) -> list[Worker]:
        return [self.riding.workers[name]] if name in self.riding.workers else []

    @staticmethod
    def drafter(worker: Worker) -> ModelDrafter:
        drafter = worker.hosted[NAME].drafter
        assert isinstance(drafter, ModelDrafter)
        return drafter

    def check_what_drafters_keep(self) -> None:
        for worker in self.riding.workers.values():
            self.rebuilt.check(self.drafter(worker))

    @invariant()
    def a_drafter_knows_of_committed_tokens_alone(self) -> None:
        for worker in self.riding.workers.values():
            hosted = worker.hosted[NAME]
            assert len(hosted._by_key) == len(hosted._requests)
            assert len(hosted._changed) <= len(hosted._requests)
            for request in hosted._requests.values():
                running = self.running.get(request.ref.request)
                if running is not None:
                    assert running.tokens[: len(request.known)] == request.known
                own = hosted._growing._requests.get(request.key)
                assert own is None or request.known[: len(own.tokens)] == own.tokens

    @invariant()
    def the_schedulers_nodes_are_where_the_drafters_put_them(self) -> None:
        """A node in a wrong place would be one that the model does not give there."""
        for request in self.running.values():
            params = guess_params(request.new.opening)
            for path in paths_of(request.tree):
                if not params.is_drawn_for:  # what is drawn depends on the root below which it was
                    text = [*request.tokens, *path[:-1]]
                    assert path[-1] in self.rebuilt.children(params, text, len(request.tokens))

    def check_both_ends_agree(self) -> None:
        """Nothing is on its way: a drafter's nodes are in the scheduler's tree, by the numbers that it gave them."""
        for number, request in self.running.items():
            for view in request.drafters.values():
                hosted = self.riding.workers[view.worker].hosted[NAME]
                known = next((each for each in hosted._requests.values() if each.ref.request == number), None)
                if known is None:
                    continue  # it has forgotten the request, and has not been asked since
                assert (known.ref.epoch, known.known) == (view.epoch, request.tokens)
                tree = hosted._growing._requests[known.key].tree
                assert set(paths_of(tree)) <= set(paths_of(request.tree))
                if len(tree) == len(request.tree):
                    assert {node.number for node in tree} <= set(view.places)

    def teardown(self) -> None:
        if not hasattr(self, "riding"):
            return  # an example that failed before it began
        for number in list(self.running):
            self.riding.handle(Cancelled(number))
        self.riding.settle()
        self.check_what_drafters_keep()
        for worker in self.riding.workers.values():
            assert not self.drafter(worker)._states
            assert not worker.hosted[NAME]._by_key
        for name, drafter in self.engines.items():
            assert drafter._engine.num_free_blocks == self.free[name]


def paths_of(tree: DraftTree) -> list[tuple[int, ...]]:
    paths: dict[int, tuple[int, ...]] = {}
    for node in tree:
        paths[node.number] = (*(paths[node.parent.number] if node.parent is not None else ()), node.token)
    return list(paths.values())


@pytest.mark.parametrize("num_blocks", [256, 10], ids=["enough room", "hardly any room"])
def test_both_ends_keep_the_trees_that_the_tokens_give(tiny: Path, num_blocks: int) -> None:
    engines = {name: load_tiny(tiny, num_blocks) for name in ("one", "two")}
    machine = type("Machine", (Rides,), {"engines": engines, "rebuilt": Rebuilt(load_tiny(tiny, 64))})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=8,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
