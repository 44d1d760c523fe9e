"""The server around the passes: what it says of itself, and how it starts, fails and ends."""

from __future__ import annotations

import asyncio
import multiprocessing
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from outrider.errors import InvalidRequest
from outrider.v1 import target_pb2, target_pb2_grpc, worker_pb2
from tests.ports import free_address
from tests.target_link import GREEDY, SEEDED, TIMEOUT_S, Link, Reference, make_row, serving, tokens_of
from tests.tiny import save_tiny_llama
from workers.engine.runner import Engine
from workers.target.group import GroupLost
from workers.target.server import TargetConfig, TargetServer, serve_follower
from workers.vocabulary import vocabulary_of

PROMPT = [5, 6, 7, 8]


def config_of(tiny: Path) -> TargetConfig:
    return TargetConfig(model=str(tiny), kv_cache_bytes=1 << 20, threads=1, profile_s=0)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose context holds those of the cost profile."""
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "long", max_context=2048)


async def test_a_target_describes_what_it_serves(target: target_pb2_grpc.TargetAsyncStub, tiny: Path) -> None:
    description = await target.Describe(worker_pb2.DescribeRequest(), timeout=TIMEOUT_S)

    assert description == target_pb2.TargetDescription(
        name="target",
        model="tiny",
        vocabulary=vocabulary_of(tiny, 97),
        max_context=128,
        end_token_ids=[0],
        dtype="float32",
        device="cpu",
        num_ranks=1,
        block_size=16,
        num_kv_blocks=128,
        max_pass_tokens=512,
    )
    assert list(description.vocabulary.tokens) == [f"w{token}" for token in range(97)]


async def test_the_tokenizers_files_arrive_whole_and_in_pieces(tiny: Path) -> None:
    template = b"{{ messages }}" + b" " * (5 << 19)  # 2.5 MiB
    (tiny / "chat_template.jinja").write_bytes(template)
    try:
        async with serving(config_of(tiny)) as (_, stub):
            pieces = [piece async for piece in stub.GetTokenizer(target_pb2.GetTokenizerRequest(), timeout=TIMEOUT_S)]
    finally:
        (tiny / "chat_template.jinja").unlink()

    files: dict[str, bytes] = {}
    for piece in pieces:
        assert 0 < len(piece.data) <= 1 << 20
        files[piece.file] = files.get(piece.file, b"") + piece.data
    assert files == {
        "tokenizer.json": (tiny / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": (tiny / "tokenizer_config.json").read_bytes(),
        "chat_template.jinja": template,
    }


async def free_blocks(stub: target_pb2_grpc.TargetAsyncStub) -> int:
    return (await Link(stub).ask()).num_free_kv_blocks


async def wait_until_all_blocks_are_free(stub: target_pb2_grpc.TargetAsyncStub, total: int) -> None:
    """Each look is a pass of its own, so this waits on the engine, not on the clock."""
    async with asyncio.timeout(TIMEOUT_S):
        while await free_blocks(stub) != total:
            pass


@pytest.mark.parametrize("how", ["end", "cancel"])
async def test_the_end_of_a_stream_releases_all_that_was_opened_on_it(
    target: target_pb2_grpc.TargetAsyncStub, how: str
) -> None:
    total = await free_blocks(target)
    link, other = Link(target), Link(target)
    for request in range(5):
        tokens_of(await link.ask_one(make_row(request, PROMPT, open_with=GREEDY)))
    assert await free_blocks(target) == total - 5

    if how == "end":
        await link.end()
    else:
        link.cancel()

    await wait_until_all_blocks_are_free(target, total)
    missing = await other.ask_one(make_row(1, PROMPT))
    assert missing.status == target_pb2.ROW_STATUS_PREFIX_MISSING


async def test_requests_of_different_streams_do_not_meet(
    target: target_pb2_grpc.TargetAsyncStub, reference: Reference
) -> None:
    one, other = Link(target), Link(target)
    await one.ask_one(make_row(1, PROMPT, open_with=GREEDY))

    changed = await other.ask_one(make_row(1, [9, 9], open_with=SEEDED))
    after = await one.ask_one(make_row(1, PROMPT, start=len(PROMPT)))

    assert tokens_of(changed) == reference.decode([9, 9], 1, SEEDED)
    assert tokens_of(after) == reference.decode(PROMPT, 1, GREEDY)


async def health_of(channel: grpc.aio.Channel, service: str) -> int:
    check = health_pb2_grpc.HealthStub(channel).Check
    answer: health_pb2.HealthCheckResponse = await check(
        health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S
    )
    return int(answer.status)


async def test_health_and_reflection_are_served(tiny: Path) -> None:
    server = TargetServer(config_of(tiny))
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        for service in ("", "outrider.v1.Target"):
            assert await health_of(channel, service) == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]), timeout=TIMEOUT_S)
        services = [service.name async for answer in call for service in answer.list_services_response.service]
    await server.stop(0)

    assert {"outrider.v1.Target", "grpc.health.v1.Health"} <= set(services)


async def test_an_engine_that_fails_ends_the_streams_and_is_seen(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = TargetServer(config_of(tiny))
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        link, idle = (Link(target_pb2_grpc.TargetStub(channel)) for _ in range(2))
        await idle.ask()

        def broken(*_: object) -> None:
            raise RuntimeError("the device is gone")

        monkeypatch.setattr(Engine, "forward_packed", broken)
        await link.send(make_row(1, PROMPT, open_with=GREEDY))

        with pytest.raises(RuntimeError, match="the device is gone"):
            await asyncio.wait_for(server.wait_failed(), TIMEOUT_S)
        assert await link.code() == grpc.StatusCode.UNAVAILABLE
        assert "the device is gone" in await link.details()
        assert await idle.code() == grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(TIMEOUT_S):
            while await health_of(channel, "") != health_pb2.HealthCheckResponse.NOT_SERVING:
                pass
    await server.stop(0)


async def test_stopping_is_idempotent_and_not_a_failure(tiny: Path) -> None:
    server = TargetServer(config_of(tiny))
    await server.start()
    waiting = asyncio.create_task(server.wait_failed())

    await asyncio.gather(server.stop(0), server.stop(0))
    await server.stop(0)

    await asyncio.wait_for(waiting, TIMEOUT_S)


async def test_stopping_a_server_that_never_started_does_nothing(tiny: Path) -> None:
    await TargetServer(config_of(tiny)).stop(0)


async def test_a_model_that_is_not_there_is_named_at_start(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(Exception, match="empty") as caught:
        await TargetServer(TargetConfig(model=str(tmp_path / "empty"))).start()

    assert type(caught.value).__module__ == "outrider.errors"


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1:", "192.0.2.1:1"])
async def test_an_address_that_cannot_be_listened_on_is_named(tiny: Path, listen: str) -> None:
    server = TargetServer(TargetConfig(model=str(tiny), kv_cache_bytes=1 << 20, listen=listen, profile_s=0))

    with pytest.raises(InvalidRequest, match=listen):
        await server.start()


async def test_several_ranks_need_an_address_to_meet_at(tiny: Path) -> None:
    config = TargetConfig(model=str(tiny), tensor_parallel=2)

    with pytest.raises(InvalidRequest, match="group_address"):
        await TargetServer(config).start()


def test_a_target_of_one_rank_has_no_followers(tiny: Path) -> None:
    with pytest.raises(InvalidRequest, match="no followers"):
        serve_follower(config_of(tiny), rank=1)


async def test_two_ranks_measure_together_give_the_same_tokens_and_the_loss_of_one_is_seen(
    long: Path, tmp_path: Path
) -> None:
    config = TargetConfig(
        model=str(long),
        tensor_parallel=2,
        kv_cache_bytes=2 << 20,
        threads=1,
        group_address=free_address(),
        group_timeout_s=20.0,
        max_pass_tokens=8,
        cache_dir=tmp_path,
        profile_s=1e9,
    )
    # The profile is kept by rank 0; in the users' own cache a follower finds the kernels compiled.
    of_follower = replace(config, cache_dir=None)
    follower = multiprocessing.get_context("spawn").Process(target=serve_follower, args=(of_follower, 1), daemon=True)
    follower.start()
    try:
        async with serving(config) as (server, stub):
            link = Link(stub)
            expected = Reference(long).decode(PROMPT, 4, SEEDED)
            result = await link.ask_one(make_row(1, PROMPT, open_with=SEEDED, nodes=(expected[:2], [-1, 0])))
            assert tokens_of(result) == expected[:3]
            description = await stub.Describe(worker_pb2.DescribeRequest(), timeout=TIMEOUT_S)
            assert description.num_ranks == 2
            assert {cost.num_tokens for cost in description.pass_costs} == {1, 2, 4, 8}

            follower.kill()
            await link.send(make_row(1, [*PROMPT, *expected[:3]], start=len(PROMPT) + 3))

            with pytest.raises(GroupLost):
                await asyncio.wait_for(server.wait_failed(), TIMEOUT_S)
            assert await link.code() == grpc.StatusCode.UNAVAILABLE
    finally:
        follower.kill()
        await asyncio.to_thread(follower.join, TIMEOUT_S)


async def costs_of(config: TargetConfig) -> list[tuple[int, int, float]]:
    async with serving(config) as (_, stub):
        description = await stub.Describe(worker_pb2.DescribeRequest(), timeout=TIMEOUT_S)
        assert await free_blocks(stub) == description.num_kv_blocks
        return [(cost.num_tokens, cost.context_len, cost.pass_ms) for cost in description.pass_costs]


async def test_a_target_serves_its_cost_profile_which_the_next_start_finds_again(
    long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TargetConfig(
        model=str(long), kv_cache_bytes=2 << 20, threads=1, max_pass_tokens=8, cache_dir=tmp_path, profile_s=1e9
    )
    costs = await costs_of(config)
    assert [cost[:2] for cost in costs] == [(n, context) for n in (1, 2, 4, 8) for context in (256, 1024)]
    assert all(pass_ms > 0 for _, _, pass_ms in costs)

    with monkeypatch.context() as patch:
        patch.setattr("workers.engine.kept_profiles.measure", lambda *_: pytest.fail("it was measured again"))
        assert await costs_of(config) == costs
        assert await costs_of(replace(config, profile_s=0)) == []
    try:
        assert len(await costs_of(replace(config, threads=2))) == len(costs)
    finally:
        torch.set_num_threads(1)
    assert len(list((tmp_path / "profiles").iterdir())) == 2
