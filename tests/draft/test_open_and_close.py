"""Ten thousand requests come and go, as a worker's event loop and engine thread take turns with them."""

from __future__ import annotations

import gc
import random
from pathlib import Path

from outrider.draft_orders import DraftOrder, add_orders
from outrider.v1 import drafter_pb2
from tests.draft.drafter_link import make_order
from tests.draft.drafting import load_tiny
from workers.draft.commands import carry_out
from workers.draft.growing import Order
from workers.draft.hosted import Hosted, Stream
from workers.draft.model import ModelDrafter

NUM_CYCLES = 10_000
FIRST = 100  # the first number; some below it are asked for, too
MAX_OPEN = 6
VOCAB = 97
NAME = "model"


class Host:
    """One hosted model drafter. A step may be under way while messages come."""

    def __init__(self, drafter: ModelDrafter) -> None:
        self.hosted = Hosted(NAME, drafter)
        self.by_name = {NAME: self.hosted}
        self.stream = Stream()
        self.texts: dict[int, list[int]] = {}  # of drafts that are open, by number
        self._under_way: tuple[list[int], list[Order]] | None = None

    def open(self, number: int, prompt: list[int]) -> None:
        self.texts[number] = prompt
        carry_out(self.stream, command(make_order(NAME, prompt, draft=number, is_open=True, max_nodes=8)), self.by_name)

    def order(self, number: int, tokens: list[int]) -> None:
        carry_out(self.stream, command(make_order(NAME, tokens, draft=number)), self.by_name)
        if number in self.texts:
            self.texts[number] += tokens

    def release(self, number: int) -> None:
        self.texts.pop(number, None)
        carry_out(self.stream, drafter_pb2.DrafterCommand(released=[number]), self.by_name)

    def begin_step(self) -> None:
        if self._under_way is None:
            self._under_way = self.hosted._take()

    def end_step(self) -> None:
        if self._under_way is not None:
            new_nodes = self.hosted._growing.step(*self._under_way)
            self._under_way = None
            self.hosted._report(new_nodes)
        while not self.stream.reports.empty():
            self.stream.reports.get_nowait()

    def break_stream(self) -> None:
        self.hosted.close(self.stream)
        self.stream, self.texts = Stream(), {}

    def finish(self) -> None:
        for _ in range(200):
            self.begin_step()
            self.end_step()
            if not (self.hosted._live or self.hosted._changed or self.hosted._closed):
                return
        raise AssertionError("not at rest after 200 steps")


def command(order: DraftOrder) -> drafter_pb2.DrafterCommand:
    command = drafter_pb2.DrafterCommand()
    add_orders(command, [order])
    return command


def cycle(host: Host, number: int, rng: random.Random) -> None:
    """A request opens; others are overtaken, closed while they grow, or asked for when they are gone."""
    host.open(number, [rng.randrange(1, VOCAB) for _ in range(rng.randrange(1, 24))])
    what = rng.random()
    if rng.random() < 0.3:
        host.begin_step()
    if what < 0.5:
        host.order(rng.choice(list(host.texts)), [rng.randrange(1, VOCAB)])
    elif what < 0.6:
        host.order(number - rng.randrange(MAX_OPEN, 30), [5])  # closed long ago
    elif what < 0.7:
        host.release(number + rng.randrange(1, 9))  # never opened
    elif what < 0.71:
        host.break_stream()
    if rng.random() < 0.3:
        host.end_step()
    while len(host.texts) >= rng.randrange(1, MAX_OPEN + 1):
        host.release(rng.choice(list(host.texts)))


def test_ten_thousand_open_and_close_cycles_leave_nothing_behind(tiny: Path) -> None:
    drafter, rng = load_tiny(tiny, num_blocks=48), random.Random(5)
    host, engine = Host(drafter), drafter._engine
    total = engine.num_free_blocks
    num_objects: list[int] = []
    for number in range(FIRST, FIRST + NUM_CYCLES):
        cycle(host, number, rng)
        if (number + 1 - FIRST) % (NUM_CYCLES // 5) == 0:
            for each in list(host.texts):
                host.release(each)
            host.finish()
            engine.check_integrity()
            gc.collect()
            num_objects.append(len(gc.get_objects()))

    hosted, growing = host.hosted, host.hosted._growing
    assert engine.num_free_blocks == total
    for kept in (hosted._requests, hosted._by_key, hosted._changed, hosted._closed, hosted._live):
        assert not kept
    for kept in (growing._requests, growing._num_told, growing._waiting, drafter._requests, drafter._states):
        assert not kept
    assert not engine._cache._requests
    # 8,000 requests lie between the two: one object that each leaves behind would be seen.
    assert num_objects[-1] - num_objects[0] < 1000
