"""More requests than a drafter's cache holds: they are served in turn, and none is given up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import pytest
from tokenizers import Tokenizer

from tests.draft.drafter_link import Link, make_order, serving
from tests.draft.drafting import BLOCK_BYTES, Driver, load_tiny, params_of
from tests.target_link import GREEDY, TIMEOUT_S, Reference
from workers.draft import server as worker
from workers.draft import universal
from workers.draft.drafter import Drafter, Resources
from workers.draft.guessing import MAX_CHILDREN
from workers.draft.hosted import Hosted
from workers.draft.model import ModelDrafter
from workers.draft.universal import UniversalDrafter
from workers.vocabulary import TOKENIZER_FILE

NUM_REQUESTS = 64
PROMPT_LEN = 20  # two blocks
NUM_BLOCKS = 12  # for five requests or so
MAX_NODES = 12


def prompt_of(key: int) -> list[int]:
    """Its first token is its own: no two requests share a block."""
    return [key + 1, *range(10, 10 + PROMPT_LEN - 1)]


def load_universal(folder: Path, num_blocks: int) -> UniversalDrafter:
    drafter = universal.load(str(folder), Resources(threads=1, kv_cache_bytes=num_blocks * BLOCK_BYTES))
    drafter.take_tokenizer(Tokenizer.from_file(str(folder / TOKENIZER_FILE)))
    return drafter


@pytest.fixture(params=["model", "universal"])
def crowded(request: pytest.FixtureRequest, tiny: Path) -> Drafter:
    load = load_tiny if request.param == "model" else load_universal
    return load(tiny, NUM_BLOCKS)


def test_each_request_has_its_whole_order_in_the_end(crowded: Drafter, reference: Reference) -> None:
    driver = Driver(crowded, may_forget=True)
    for key in range(NUM_REQUESTS):
        driver.open(key, params_of(GREEDY), prompt_of(key), 3)

    driver.finish()

    for key in range(NUM_REQUESTS):
        standing = driver.told[key].standing()
        assert tuple(reference.decode(prompt_of(key), 1, GREEDY)) in standing
        assert len(set(standing)) == 3


def test_a_target_that_overtakes_every_order_finds_all_requests_served_alike(crowded: Drafter) -> None:
    """A request gets its next order before its last one is done, and each verdict is a surprise."""
    driver = Driver(crowded, may_forget=True)
    served: dict[int, set[int]] = {key: set() for key in range(NUM_REQUESTS)}  # the roots below which it got nodes
    for key in served:
        driver.open(key, params_of(GREEDY), prompt_of(key), 30)
    for place in range(80):
        for _ in range(4):
            for new in driver.step():
                served[new.key] |= {new.committed_len} if new.tokens else set()
        for key in served:
            driver.order(key, [1 + (key + place) % 90], 30)
        counts = [len(roots) for roots in served.values()]
        assert max(counts) - min(counts) <= 2
    assert min(counts) >= 3


def test_a_text_that_the_cache_could_never_hold_costs_nobody_a_thing(crowded: Drafter, reference: Reference) -> None:
    driver = Driver(crowded, may_forget=True)
    driver.open(1, params_of(GREEDY), prompt_of(1), 4)
    driver.finish()
    before = crowded._engine.num_free_blocks  # type: ignore[attr-defined]
    driver.open(2, params_of(GREEDY), [7] * (NUM_BLOCKS * 16 + 1), 4)
    driver.finish()

    assert driver.told[2].nodes == {}
    assert crowded._engine.num_free_blocks == before  # type: ignore[attr-defined]


class Watched(Hosted):
    """A hosted drafter that the test can find."""

    found: ClassVar[list[Watched]] = []

    def __init__(self, name: str, drafter: Drafter) -> None:
        super().__init__(name, drafter)
        self.found.append(self)

    def check_bounds(self) -> None:
        """On the engine's thread: nothing is kept beyond what the requests may have."""
        assert isinstance(self.drafter, ModelDrafter)
        self.drafter._engine.check_integrity()
        assert len(self.drafter._states) <= NUM_REQUESTS
        for request in self.drafter._requests.values():
            state = self.drafter._states[request.key]
            assert len(request.tree) <= MAX_NODES
            assert len(state.frontier.candidates) <= MAX_CHILDREN * (1 + MAX_NODES)
            assert len(state.branches._branch) <= 1 + MAX_NODES


async def test_sixty_four_requests_on_one_worker_progress_alike_in_bounded_memory(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over gRPC: whoever has had a report is overtaken by a verdict at once, and so asks again."""
    monkeypatch.setattr(worker, "Hosted", Watched)
    texts = {number: prompt_of(number) for number in range(NUM_REQUESTS)}
    served = dict.fromkeys(texts, 0)
    async with serving(f"model:{tiny}", kv_cache_bytes=NUM_BLOCKS * BLOCK_BYTES) as (server, stub):
        link, hosted = Link(stub), Watched.found[-1]
        await link.send(*(make_order("model", texts[n], draft=n, is_open=True, max_nodes=MAX_NODES) for n in texts))
        while min(served.values()) < 4:
            for growth in await link.receive():
                number, text = growth.draft, texts[growth.draft]
                if growth.committed_len < len(text):
                    continue  # overtaken
                assert growth.tokens or not growth.is_done, "given up"
                served[number] += 1
                text.append(1 + (number + len(text)) % 90)
                await link.send(make_order("model", text[-1:], draft=number, max_nodes=MAX_NODES))
            assert max(served.values()) - min(served.values()) <= 2
            assert len(hosted._requests) == len(hosted._by_key) == NUM_REQUESTS
            assert len(hosted._changed) <= NUM_REQUESTS
            async with asyncio.timeout(TIMEOUT_S):
                await server._threads[0].run(hosted.check_bounds)
