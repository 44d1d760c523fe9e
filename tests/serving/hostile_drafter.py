"""A drafter worker that speaks the protocol, and means harm with it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from outrider.rpc import MAX_MESSAGE_BYTES
from outrider.v1.drafter_pb2 import (
    DrafterDescription,
    DrafterReport,
    DrafterWorkerDescription,
    DraftOrder,
    Growth,
    Growths,
)
from outrider.v1.drafter_pb2_grpc import DrafterServicer
from outrider.v1.worker_pb2 import Vocabulary

NAME = "hostile"
_MILLION = Growth(tokens=[7] * 1_000_000, distances=[1] * 1_000_000, scores=bytes(1_000_000))

Behaviour = Callable[[DraftOrder, random.Random], Iterable[Growth | Growths]]


class HostileDrafter(DrafterServicer):
    """Answers each order as `behave` says: each growth in a report of its own."""

    def __init__(self, vocabulary: Vocabulary, behave: Behaviour, seed: int = 0) -> None:
        self._vocabulary = vocabulary
        self._behave = behave
        self._rng = random.Random(seed)
        self.num_orders = 0
        self.num_streams = 0

    async def Describe(self, request: Any, context: Any) -> DrafterWorkerDescription:  # noqa: N802 - gRPC's name
        drafter = DrafterDescription(name=NAME, kind="model", vocabulary=self._vocabulary, draws=True)
        return DrafterWorkerDescription(name=NAME, drafters=[drafter])

    async def Connect(self, request_iterator: AsyncIterator[Any], context: Any) -> None:  # type: ignore[override]  # noqa: N802
        self.num_streams += 1
        async for command in request_iterator:
            for order in command.orders.orders:
                self.num_orders += 1
                for each in self._behave(order, self._rng):
                    growths = Growths(drafter=NAME, growths=[each]) if isinstance(each, Growth) else each
                    await context.write(DrafterReport(growths=growths))


def growth_for(order: DraftOrder, tokens: Iterable[int] = (), **changes: Any) -> Growth:
    """A chain of these tokens; `changes` to it are what is wrong."""
    tokens = list(tokens)
    fields: dict[str, Any] = {
        "ref": order.ref,
        "committed_len": order.committed_len,
        "first_node": 1,
        "tokens": tokens,
        "distances": [0, *[1] * (len(tokens) - 1)][: len(tokens)],
        "scores": bytes(len(tokens)),
        "is_done": True,
    }
    return Growth(**(fields | changes))


def garbage(order: DraftOrder, rng: random.Random) -> Iterator[Growth]:
    for _ in range(3):
        n = rng.randrange(20)
        yield growth_for(
            order,
            [rng.choice([rng.randrange(97), rng.randrange(1 << 32)]) for _ in range(n)],
            first_node=rng.choice([0, 1, rng.randrange(1 << 32)]),
            distances=[rng.choice([0, 1, rng.randrange(1 << 32)]) for _ in range(n)],
            scores=rng.randbytes(rng.choice([n, n, n + 1])),
            is_done=rng.random() < 0.5,
        )


def right_tokens_in_wrong_places(order: DraftOrder, rng: random.Random) -> Iterator[Growth]:
    tokens = [rng.randrange(97) for _ in range(12)]
    yield growth_for(order, tokens, distances=[rng.randrange(13) for _ in tokens])
    yield growth_for(order, tokens, distances=[13 - i for i in range(12)])


def cycles(order: DraftOrder, rng: random.Random) -> Iterator[Growth]:
    """Numbers that are used again, so that each node is below the other; and nodes below themselves."""
    yield growth_for(order, [3, 4, 5], is_done=False)
    yield growth_for(order, [4, 3], first_node=3, distances=[1, 2], is_done=False)
    yield growth_for(order, [3, 4], first_node=1, distances=[(1 << 32) - 2, (1 << 32) - 1])


def stale(order: DraftOrder, rng: random.Random) -> Iterator[Growth]:
    ref = type(order.ref)
    for epoch in (order.ref.epoch - 1, order.ref.epoch + 1, 0, (1 << 32) - 1):
        yield growth_for(order, [5, 6, 7], ref=ref(request=order.ref.request, epoch=epoch))
    for length in (order.committed_len - 1, order.committed_len + 1, 0, 1, (1 << 32) - 1):
        yield growth_for(order, [5, 6, 7], committed_len=length)


def unknown_requests(order: DraftOrder, rng: random.Random) -> Iterator[Growth | Growths]:
    ref = type(order.ref)
    for request in (0, order.ref.request + 1, rng.randrange(1 << 64)):
        yield growth_for(order, [5, 6, 7], ref=ref(request=request, epoch=order.ref.epoch))
        yield Growths(drafter="nobody", growths=[growth_for(order, [5, 6, 7])])


def everything_twice(order: DraftOrder, rng: random.Random) -> Iterator[Growth]:
    for _ in range(2):
        yield growth_for(order, [5, 6, 7], is_done=False)
        yield growth_for(order, [5, 6, 7])


def without_end(order: DraftOrder, rng: random.Random) -> Iterator[Growth]:
    """As many nodes as a report may have, again and again, and none of them done."""
    for first in range(1, 6001, 1000):
        tokens = [rng.randrange(97) for _ in range(1000)]
        distances = [rng.randrange(min(number, 50)) for number in range(first, first + 1000)]
        yield growth_for(order, tokens, first_node=first, distances=distances, is_done=False)


def a_million_nodes(order: DraftOrder, rng: random.Random) -> Iterator[Growth]:
    growth = Growth()
    growth.CopyFrom(_MILLION)
    growth.MergeFrom(growth_for(order))
    yield growth


def more_bytes_than_a_report_may_have(order: DraftOrder, rng: random.Random) -> Iterator[Growth]:
    yield growth_for(order, scores=bytes(MAX_MESSAGE_BYTES))


def nothing(order: DraftOrder, rng: random.Random) -> Iterator[Growth]:
    return iter(())


def missing(order: DraftOrder, rng: random.Random) -> Iterator[Growth]:
    yield growth_for(order, is_prefix_missing=True)


BEHAVIOURS: list[Behaviour] = [
    garbage,
    right_tokens_in_wrong_places,
    cycles,
    stale,
    unknown_requests,
    everything_twice,
    without_end,
    a_million_nodes,
    more_bytes_than_a_report_may_have,
    nothing,
    missing,
]
