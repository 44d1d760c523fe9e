"""What waits for a worker that does not keep up."""

from __future__ import annotations

import asyncio

from outrider.packing import unpack_i32
from outrider.v1.drafter_pb2 import DrafterCommand
from outrider.v1.worker_pb2 import OpenRequest
from scheduler import outbox
from scheduler.events import ReleaseDrafter, ReleaseTarget, SendOrder, SendPass
from scheduler.outbox import OrderOutbox, TargetOutbox

TIMEOUT_S = 30.0


def an_order(request: int, tokens: list[int], *, start: int = 0, epoch: int = 1, drafter: str = "suffix") -> SendOrder:
    return SendOrder(
        worker="w",
        drafter=drafter,
        request=request,
        epoch=epoch,
        committed_len=start + len(tokens),
        opening=OpenRequest(num_prompt_tokens=2) if start == 0 else None,
        tokens_start=start,
        tokens=tokens,
        max_nodes=8,
        min_survival=0.25,
    )


async def taken(box: OrderOutbox) -> DrafterCommand:
    return await asyncio.wait_for(box.take(), TIMEOUT_S)


async def test_a_drafter_that_falls_behind_finds_the_newest_order_with_all_that_it_lacks() -> None:
    box = OrderOutbox()
    box.put(an_order(1, [5, 6]))
    for length in range(2, 500):
        box.put(an_order(1, [length], start=length))
        box.put(an_order(2, [length], start=length))
    first, second = (await taken(box)).orders.orders
    assert (first.ref.request, first.committed_len, first.tokens.start) == (1, 500, 0)
    assert unpack_i32(first.tokens.ids) == [5, 6, *range(2, 500)]
    assert first.HasField("open"), "it was never opened there"
    assert (second.ref.request, second.tokens.start, second.HasField("open")) == (2, 2, False)


async def test_a_new_epoch_replaces_what_waits_of_the_old_one() -> None:
    box = OrderOutbox()
    box.put(an_order(1, [9], start=7))
    box.put(an_order(1, [1, 2, 3], epoch=2))
    (order,) = (await taken(box)).orders.orders
    assert (order.ref.epoch, unpack_i32(order.tokens.ids)) == (2, [1, 2, 3])


async def test_a_released_request_s_order_is_not_sent_and_others_are() -> None:
    box = OrderOutbox()
    for request in (1, 2):
        box.put(an_order(request, [1, 2]))
    box.put(an_order(1, [1, 2], drafter="ngram"))
    box.put(ReleaseDrafter("w", "suffix", request=1, epoch=1))
    assert (await taken(box)).release.ref.request == 1
    assert [(order.ref.request, order.drafter) for order in (await taken(box)).orders.orders] == [
        (2, "suffix"),
        (1, "ngram"),
    ]


async def test_long_prompts_come_in_messages_of_bounded_size_and_each_comes() -> None:
    box = OrderOutbox()
    lengths = [outbox.MAX_MESSAGE_TOKENS * 2, outbox.MAX_MESSAGE_TOKENS // 2, outbox.MAX_MESSAGE_TOKENS // 2, 1]
    for request, length in enumerate(lengths):
        box.put(an_order(request, [1] * length))
    messages = [[order.ref.request for order in (await taken(box)).orders.orders] for _ in range(3)]
    assert messages == [[0], [1, 2], [3]]


async def test_a_target_is_told_everything_in_order() -> None:
    box = TargetOutbox()
    box.put(SendPass(1, []))
    box.put(ReleaseTarget(7, 3))
    box.put(SendPass(2, []))
    kinds = [(await asyncio.wait_for(box.take(), TIMEOUT_S)).WhichOneof("command") for _ in range(3)]
    assert kinds == ["pass", "release", "pass"]


async def test_whoever_takes_from_an_empty_box_waits_for_what_comes() -> None:
    box = OrderOutbox()
    waiting = asyncio.create_task(taken(box))
    await asyncio.sleep(0)
    assert not waiting.done()
    box.put(an_order(1, [1]))
    assert len((await waiting).orders.orders) == 1
