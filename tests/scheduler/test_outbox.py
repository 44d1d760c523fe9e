"""What waits for a worker that does not keep up."""

from __future__ import annotations

import asyncio

from outrider.draft_orders import orders_of
from outrider.v1.drafter_pb2 import DrafterCommand
from outrider.v1.worker_pb2 import OpenRequest
from scheduler import outbox
from scheduler.draft_stream import DraftStream
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


def new_box() -> OrderOutbox:
    return OrderOutbox(DraftStream("w"))


async def taken(box: OrderOutbox) -> DrafterCommand:
    return await asyncio.wait_for(box.take(), TIMEOUT_S)


async def test_a_drafter_that_falls_behind_finds_the_newest_order_with_all_that_it_lacks() -> None:
    box = new_box()
    box.put(an_order(2, [1, 1]))
    await taken(box)
    box.put(an_order(1, [5, 6]))
    for length in range(2, 500):
        box.put(an_order(1, [length], start=length))
        box.put(an_order(2, [length], start=length))
    first, second = orders_of(await taken(box))
    assert first.opening is not None, "it was never opened there"
    assert (first.draft, first.opening.ref.request) == (1, 1)
    assert list(first.tokens) == [5, 6, *range(2, 500)]
    assert (second.draft, second.opening) == (0, None)
    assert list(second.tokens) == [*range(2, 500)]


async def test_a_new_epoch_replaces_what_waits_of_the_old_one() -> None:
    box = new_box()
    box.put(an_order(1, [1, 2]))
    await taken(box)
    box.put(an_order(1, [9], start=2))
    box.put(an_order(1, [1, 2, 3], epoch=2))
    command = await taken(box)
    (order,) = orders_of(command)
    assert order.opening is not None
    assert list(command.released) == [0]
    assert (order.draft, order.opening.ref.epoch, order.tokens) == (1, 2, [1, 2, 3])


async def test_a_released_request_s_order_is_not_sent_and_others_are() -> None:
    box = new_box()
    box.put(an_order(1, [1, 2]))
    await taken(box)
    box.put(an_order(1, [3], start=2))
    box.put(an_order(2, [1, 2]))
    box.put(an_order(1, [1, 2], drafter="ngram"))
    box.put(ReleaseDrafter("w", "suffix", request=1, epoch=1))
    command = await taken(box)
    assert list(command.released) == [0]
    assert [(each.ref.request, each.drafter) for each in command.openings] == [(2, "suffix"), (1, "ngram")]


async def test_a_request_that_is_released_before_its_order_was_sent_leaves_nothing_to_send() -> None:
    box = new_box()
    box.put(an_order(1, [1, 2]))
    waiting = asyncio.create_task(taken(box))
    box.put(ReleaseDrafter("w", "suffix", request=1, epoch=1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    box.put(an_order(2, [1, 2]))
    command = await waiting
    assert ([each.ref.request for each in command.openings], list(command.released)) == ([2], [])


async def test_long_prompts_come_in_messages_of_bounded_size_and_each_comes() -> None:
    box = new_box()
    lengths = [outbox.MAX_MESSAGE_TOKENS * 2, outbox.MAX_MESSAGE_TOKENS // 2, outbox.MAX_MESSAGE_TOKENS // 2, 1]
    for request, length in enumerate(lengths):
        box.put(an_order(request, [1] * length))
    messages = [[opening.ref.request for opening in (await taken(box)).openings] for _ in range(3)]
    assert messages == [[0], [1, 2], [3]]


async def test_a_target_is_told_everything_in_order() -> None:
    box = TargetOutbox()
    box.put(SendPass(1, []))
    box.put(ReleaseTarget(7, 3))
    box.put(SendPass(2, []))
    kinds = [(await asyncio.wait_for(box.take(), TIMEOUT_S)).WhichOneof("command") for _ in range(3)]
    assert kinds == ["pass", "release", "pass"]


async def test_whoever_takes_from_an_empty_box_waits_for_what_comes() -> None:
    box = new_box()
    waiting = asyncio.create_task(taken(box))
    await asyncio.sleep(0)
    assert not waiting.done()
    box.put(an_order(1, [1]))
    assert len([*orders_of(await waiting)]) == 1
