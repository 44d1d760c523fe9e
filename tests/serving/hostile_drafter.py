"""A drafter worker that speaks the protocol, and means harm with it."""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from outrider.draft_orders import DraftOrder, orders_of
from outrider.rpc import MAX_MESSAGE_BYTES
from outrider.v1.drafter_pb2 import (
    DrafterDescription,
    DrafterReport,
    DrafterWorkerDescription,
)
from outrider.v1.drafter_pb2_grpc import DrafterServicer
from outrider.v1.worker_pb2 import SparseLaws, Vocabulary

NAME = "hostile"
MOST = (1 << 32) - 1  # that a number may be
_MILLION = [7, 8] * 1_000_000

Behaviour = Callable[[DraftOrder, random.Random], Iterable[list[int] | DrafterReport]]


class HostileDrafter(DrafterServicer):
    """Answers each order as `behave` says: each list of numbers in a report of its own."""

    def __init__(self, vocabulary: Vocabulary, behave: Behaviour, seed: int = 0) -> None:
        self._vocabulary = vocabulary
        self._behave = behave
        self._rng = random.Random(seed)
        self.num_orders = 0
        self.num_streams = 0
        self.is_back = threading.Event()  # on another stream

    async def Describe(self, request: Any, context: Any) -> DrafterWorkerDescription:  # noqa: N802 - gRPC's name
        drafter = DrafterDescription(name=NAME, kind="model", vocabulary=self._vocabulary, draws=True)
        return DrafterWorkerDescription(name=NAME, drafters=[drafter])

    async def Connect(self, request_iterator: AsyncIterator[Any], context: Any) -> None:  # type: ignore[override]  # noqa: N802
        self.num_streams += 1
        if self.num_streams > 1:
            self.is_back.set()
        async for command in request_iterator:
            for order in orders_of(command):
                self.num_orders += 1
                for each in self._behave(order, self._rng):
                    await context.write(DrafterReport(growths=each) if isinstance(each, list) else each)


def growth_for(
    order: DraftOrder,
    tokens: Iterable[int] = (),
    *,
    distances: Iterable[int] | None = None,
    scores: Iterable[int] | None = None,
    draft: int | None = None,
    moved: int | None = None,
    is_done: bool = True,
) -> list[int]:
    """A chain of these tokens, and the first growth for its order; what is given is what is wrong."""
    tokens = list(tokens)
    moved = len(order.tokens) if moved is None else moved
    distances = [0, *[1] * (len(tokens) - 1)][: len(tokens)] if distances is None else distances
    scores = [5] * len(tokens) if scores is None else scores
    numbers = [8 * len(tokens) + 6 + is_done, order.draft if draft is None else draft, moved]
    for token, distance, score in zip(tokens, distances, scores, strict=True):
        numbers += token, (8 * distance + score) & MOST
    return numbers


def garbage(order: DraftOrder, rng: random.Random) -> Iterator[list[int] | DrafterReport]:
    def any_number() -> int:
        return rng.choice([order.draft, rng.randrange(20), rng.randrange(97), rng.randrange(1 << 32)])

    for _ in range(3):
        n = rng.randrange(20)
        yield growth_for(
            order,
            [rng.choice([rng.randrange(97), rng.randrange(1 << 32)]) for _ in range(n)],
            distances=[rng.choice([0, 1, rng.randrange(1 << 29)]) for _ in range(n)],
            scores=[rng.randrange(8) for _ in range(n)],
            moved=rng.choice([0, len(order.tokens), rng.randrange(1 << 32)]),
            is_done=rng.random() < 0.5,
        )
        yield DrafterReport(
            growths=[any_number() for _ in range(n)],
            missing=[any_number() for _ in range(n // 10)],
            released=[any_number() for _ in range(n // 4)],
            laws=SparseLaws(counts=rng.randbytes(n)),
        )


def right_tokens_in_wrong_places(order: DraftOrder, rng: random.Random) -> Iterator[list[int]]:
    tokens = [rng.randrange(97) for _ in range(12)]
    yield growth_for(order, tokens, distances=[rng.randrange(13) for _ in tokens])
    yield growth_for(order, tokens, distances=[13 - i for i in range(12)], moved=0)


def below_what_is_not_there(order: DraftOrder, rng: random.Random) -> Iterator[list[int]]:
    """Parents before the first node, and beyond the last: as far as numbers go."""
    yield growth_for(order, [3, 4, 5], is_done=False)
    yield growth_for(order, [4, 3], distances=[5, 9], moved=0, is_done=False)
    yield growth_for(order, [3, 4], distances=[(1 << 29) - 2, (1 << 29) - 1], moved=0)


def at_roots_that_are_none(order: DraftOrder, rng: random.Random) -> Iterator[list[int]]:
    for moved in (0, len(order.tokens) - 1, 2, 1 << 31, MOST):
        yield growth_for(order, [5, 6, 7], moved=moved)


def for_the_drafts_of_others(order: DraftOrder, rng: random.Random) -> Iterator[list[int]]:
    for draft in (0, order.draft + 1, rng.randrange(1 << 32), MOST):
        yield growth_for(order, [5, 6, 7], draft=draft)


def numbers_given_back_in_use(order: DraftOrder, rng: random.Random) -> Iterator[list[int] | DrafterReport]:
    """And spoken of all the same."""
    yield DrafterReport(released=[order.draft, order.draft, 0, 1, 2, 3, MOST])
    yield growth_for(order, [5, 6, 7])


def everything_twice(order: DraftOrder, rng: random.Random) -> Iterator[list[int]]:
    for _ in range(2):
        yield growth_for(order, [5, 6, 7], is_done=False)
        yield growth_for(order, [5, 6, 7])


def cut_off(order: DraftOrder, rng: random.Random) -> Iterator[list[int]]:
    whole = growth_for(order, [5, 6, 7])
    for end in range(len(whole)):
        yield whole[:end]


def without_end(order: DraftOrder, rng: random.Random) -> Iterator[list[int]]:
    """As many nodes as a growth may have, again and again, and none of them done."""
    for first in range(1, 6001, 1000):
        tokens = [rng.randrange(97) for _ in range(1000)]
        distances = [rng.randrange(min(number, 50)) for number in range(first, first + 1000)]
        moved = len(order.tokens) if first == 1 else 0
        yield growth_for(order, tokens, distances=distances, moved=moved, is_done=False)


def a_million_nodes(order: DraftOrder, rng: random.Random) -> Iterator[list[int]]:
    yield [8_000_005, order.draft, *_MILLION]  # and no more will come


def more_bytes_than_a_report_may_have(order: DraftOrder, rng: random.Random) -> Iterator[DrafterReport]:
    yield DrafterReport(growths=growth_for(order), laws=SparseLaws(ids=bytes(MAX_MESSAGE_BYTES)))


def nothing(order: DraftOrder, rng: random.Random) -> Iterator[list[int]]:
    return iter(())


def missing(order: DraftOrder, rng: random.Random) -> Iterator[DrafterReport]:
    yield DrafterReport(missing=[order.draft])


BEHAVIOURS: list[Behaviour] = [
    garbage,
    right_tokens_in_wrong_places,
    below_what_is_not_there,
    at_roots_that_are_none,
    for_the_drafts_of_others,
    numbers_given_back_in_use,
    everything_twice,
    cut_off,
    without_end,
    a_million_nodes,
    more_bytes_than_a_report_may_have,
    nothing,
    missing,
]
