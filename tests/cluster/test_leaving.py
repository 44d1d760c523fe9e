"""Nodes that are going away: who waits for one of his learns it, also when nobody answers for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Set

import pytest

from cluster.leaving import LeavingNodes


async def test_only_those_who_wait_for_a_node_that_is_going_away_are_told() -> None:
    leaving, answers = LeavingNodes(), iter([set(), {"b"}])
    watching = asyncio.create_task(leaving.watch(lambda: next(answers, {"b"}), look_every_s=0.0))
    others = asyncio.create_task(leaving.wait_for({"a", "c"}))
    async with asyncio.timeout(10):
        await leaving.wait_for({"a", "b"})
    async with asyncio.timeout(10):
        await leaving.wait_for({"b"})
    assert not others.done()
    for task in (watching, others):
        task.cancel()


async def test_while_nobody_answers_what_was_known_stays_and_later_news_are_heard() -> None:
    leaving, num_looks = LeavingNodes(), 0

    def look() -> Set[str]:
        nonlocal num_looks
        num_looks += 1
        if num_looks == 2:
            raise OSError("nobody answers")
        return {"a"} if num_looks < 4 else {"a", "b"}

    watching = asyncio.create_task(leaving.watch(look, look_every_s=0.0))
    async with asyncio.timeout(10):
        await leaving.wait_for({"a"})
    async with asyncio.timeout(10):
        await leaving.wait_for({"b"})
    assert num_looks >= 4
    watching.cancel()


async def test_what_is_wrong_with_the_question_itself_is_not_hidden() -> None:
    def look() -> Set[str]:
        raise ValueError("no such call")

    with pytest.raises(ValueError, match="no such call"):
        await LeavingNodes().watch(look)
