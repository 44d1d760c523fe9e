"""A node is lost under load, or announced to go, or the head is lost: the same tokens, and the cell heals by itself."""

from __future__ import annotations

import os
import signal

import pytest

from tests.cluster.nodes.conftest import TOKENS_BETWEEN, CellUnderLoad

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.nodes,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
]

NOTICE_S = 3600.0  # longer than the tests: what leaves does so by itself


async def test_a_drafter_whose_node_is_killed_comes_back_on_another(load: CellUnderLoad) -> None:
    node = await load.nodes.have("draft", 2, holding=load.drafter)
    async with load.running():
        load.begin()
        load.nodes.kill(node)
        await load.recovered("a drafter's node is killed, another has room", "drafter ngram")
        assert load.nodes.of(load.drafter) is not node


async def test_a_drafter_without_another_node_comes_back_when_one_joins(load: CellUnderLoad) -> None:
    node = await load.nodes.have("draft", 1, holding=load.drafter)
    async with load.running():
        load.nodes.kill(node)
        await load.streams.wait_tokens(TOKENS_BETWEEN)
        load.begin()
        joined = await load.nodes.add("draft")
        await load.recovered("… none has; from when a new one is started", "drafter ngram")
        assert load.nodes.of(load.drafter) is joined


async def test_a_drafter_whose_node_goes_away_moves_and_lets_the_node_go(load: CellUnderLoad) -> None:
    node = await load.nodes.have("draft", 2, holding=load.drafter)
    async with load.running():
        load.begin()
        await load.nodes.announce_end(node, NOTICE_S)
        await load.recovered("a drafter's node is announced to go, another has room", "drafter ngram")
        assert load.nodes.of(load.drafter) is not node
        await load.nodes.wait_ended(node)


async def test_a_target_whose_node_is_killed_comes_back_on_another_and_the_streams_only_pause(
    load: CellUnderLoad,
) -> None:
    node = await load.nodes.have("target", 2, holding=load.target)
    async with load.running():
        load.begin()
        load.nodes.kill(node)
        await load.recovered("the target's node is killed, another has room", "the target")
        assert load.nodes.of(load.target) is not node


async def test_a_target_whose_node_goes_away_serves_until_its_successor_does(load: CellUnderLoad) -> None:
    node = await load.nodes.have("target", 2, holding=load.target)
    async with load.running():
        load.begin()
        await load.nodes.announce_end(node, NOTICE_S)
        await load.recovered("the target's node is announced to go, another has room", "the target")
        assert load.nodes.of(load.target) is not node
        await load.nodes.wait_ended(node)


async def test_a_target_without_another_node_serves_until_its_own_is_gone_and_goes_on_when_one_joins(
    load: CellUnderLoad,
) -> None:
    node = await load.nodes.have("target", 1, holding=load.target)
    async with load.running():
        await load.nodes.announce_end(node, NOTICE_S)
        await load.streams.wait_tokens(TOKENS_BETWEEN)
        assert load.nodes.of(load.target) is node
        load.begin()
        load.nodes.kill(node)
        joined = await load.nodes.add("target")
        await load.recovered("… none has, and it is gone; from then, and one joins", "the target")
        assert load.nodes.of(load.target) is joined


async def test_a_lost_control_plane_is_not_noticed_and_what_is_lost_meanwhile_comes_back_with_it(
    load: CellUnderLoad,
) -> None:
    if not load.has_redis:
        pytest.skip("no redis-server here: apt-get install redis-server")
    async with load.running():
        load.begin()
        await load.nodes.kill_control_plane()
        await load.streams.wait_tokens(TOKENS_BETWEEN)
        await load.nodes.restart_control_plane()
        await load.went_on("the head's control plane is killed and started again")
        load.begin()
        os.kill(load.drafter.process_ids[0], signal.SIGKILL)
        await load.recovered("a drafter is killed after that", "drafter ngram")
        await load.nodes.kill_control_plane()
        os.kill(load.drafter.process_ids[0], signal.SIGKILL)
        await load.streams.wait_tokens(TOKENS_BETWEEN)
        load.begin()
        await load.nodes.restart_control_plane()
        await load.recovered("… while the head is away; from its restart", "drafter ngram")
