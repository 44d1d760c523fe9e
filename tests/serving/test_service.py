"""What the public service promises besides tokens: ends, cancels, limits, health, reflection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from outrider import Client, SamplingParams, ServerInfo, Speculation
from outrider.errors import DeadlineExceeded, Overloaded
from outrider.v1 import inference_pb2, inference_pb2_grpc
from scheduler.server import SchedulerConfig
from tests.serving.conftest import drafter_config
from tests.serving.local_cell import LocalCell, local_cell
from tests.tiny import save_tiny_llama
from workers.target.server import TargetConfig

pytestmark = pytest.mark.timeout(120)

NUM_LONG = 1000
LONG = SamplingParams(temperature=0, max_tokens=NUM_LONG, ignore_eos=True)
OFF = Speculation(mode="off")
SHORT = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def tiny_cell(tmp_path_factory: pytest.TempPathFactory):
    folder = save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", max_context=2048)
    target = TargetConfig(model=str(folder), dtype="float32", threads=1, kv_cache_bytes=4 << 20, profile_s=0)
    scheduler = SchedulerConfig(listen="127.0.0.1:0", max_running_requests=2, max_queued_requests=2)
    with local_cell(target, [drafter_config("ngram")], scheduler) as running:
        yield running


def until(client: Client, is_so: Callable[[ServerInfo], bool]) -> ServerInfo:
    pause = threading.Event()
    for _ in range(400):
        info = client.server_info()
        if is_so(info):
            return info
        pause.wait(0.025)
    raise AssertionError(f"it never came to be: {info}")


def is_empty(info: ServerInfo) -> bool:
    return info.num_running_requests == 0 and info.num_queued_requests == 0


def test_leaving_the_loop_releases_everything(tiny_cell: LocalCell) -> None:
    with Client(tiny_cell.endpoint) as client:
        for _ in client.generate([1, 2, 3], sampling=LONG):
            break
        until(client, is_empty)
        client.generate([1], sampling=SamplingParams(temperature=0, max_tokens=1)).result()
        info = until(client, is_empty)
        assert info.num_free_kv_blocks >= info.num_kv_blocks - 1, "only the last request's own block may be counted"


def test_a_client_that_vanishes_leaves_nothing_behind(tiny_cell: LocalCell) -> None:
    client = Client(tiny_cell.endpoint)
    next(iter(client.generate([1, 2, 3], sampling=LONG)))
    client.close()
    with Client(tiny_cell.endpoint) as other:
        until(other, is_empty)


def test_a_deadline_that_passes_ends_the_request_and_frees_its_place(tiny_cell: LocalCell) -> None:
    with Client(tiny_cell.endpoint) as client:
        with pytest.raises(DeadlineExceeded):
            client.generate([1, 2, 3], sampling=replace(LONG, max_tokens=2000), speculation=OFF, timeout_s=0.2).result()
        until(client, is_empty)


def test_beyond_the_queue_requests_are_refused_with_a_hint_and_the_admitted_ones_finish(tiny_cell: LocalCell) -> None:
    with Client(tiny_cell.endpoint) as client:
        admitted = [iter(client.generate([1, 2, number], sampling=LONG)) for number in range(2)]
        for tokens in admitted:
            next(tokens)
        waiting = [client.generate([3, number], sampling=SamplingParams(max_tokens=2)) for number in range(2)]
        threads = [threading.Thread(target=generation.result) for generation in waiting]
        for thread in threads:
            thread.start()
        until(client, lambda info: (info.num_running_requests, info.num_queued_requests) == (2, 2))
        with pytest.raises(Overloaded, match="2 requests run and 2 wait") as caught:
            client.generate([5], sampling=LONG).result()
        assert caught.value.retry_after_s is not None
        for tokens in admitted:
            assert sum(1 for _ in tokens) == NUM_LONG - 1
        for thread in threads:
            thread.join(60)
        until(client, is_empty)


def test_a_prompt_longer_than_the_whole_kv_cache_is_refused_at_once_and_others_go_on(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "tiny", max_context=2048)
    block_bytes = 16 * 2 * 2 * 4 * 8 * 4  # tokens, K and V, layers, KV heads, head size, float32
    target = TargetConfig(model=str(folder), dtype="float32", threads=1, kv_cache_bytes=20 * block_bytes)
    sampling = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    with local_cell(target) as running, Client(running.endpoint) as client:
        alone = client.generate([1, 2, 3], sampling=sampling).result().token_ids
        other = iter(generation := client.generate([1, 2, 3], sampling=sampling))
        next(other)
        with grpc.insecure_channel(running.endpoint) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            answer = stub.Generate(inference_pb2.GenerateRequest(token_ids={"ids": [5] * 400}), timeout=30)
            with pytest.raises(grpc.RpcError) as caught:
                next(answer)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        for word in ("token_ids", "400 tokens", "KV cache holds"):
            assert word in caught.value.details()
        assert sum(1 for _ in other) == 99
        assert generation.answer.token_ids == alone
        assert client.server_info().num_kv_blocks == 20


def test_the_answer_ends_where_the_stop_string_begins(tiny_cell: LocalCell) -> None:
    with Client(tiny_cell.endpoint) as client:
        whole = client.generate([1, 2, 3], sampling=SHORT).result()
        stop = whole.text[len(whole.text) // 2 :][:3]
        for mode in ("off", "auto"):
            cut = client.generate(
                [1, 2, 3],
                sampling=SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, stop=[stop]),
                speculation=Speculation(mode=mode),
            ).result()
            assert cut.text == whole.text[: whole.text.index(stop)]
            assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
            assert (cut.finish_reason, cut.matched_stop) == ("stop", stop)
            assert cut.usage.num_completion_tokens == len(cut.token_ids)


def test_a_stop_token_ends_the_answer(tiny_cell: LocalCell) -> None:
    with Client(tiny_cell.endpoint) as client:
        whole = client.generate([1, 2, 3], sampling=SHORT).result()
        stop_id = whole.token_ids[5]
        sampling = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, stop_token_ids=[stop_id])
        cut = client.generate([1, 2, 3], sampling=sampling).result()
        assert cut.token_ids == whole.token_ids[: whole.token_ids.index(stop_id) + 1]
        assert cut.finish_reason == "stop"


def test_health_and_reflection_are_served(tiny_cell: LocalCell) -> None:
    with grpc.insecure_channel(tiny_cell.endpoint) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "outrider.v1.Inference"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "outrider.v1.Inference" in database.get_services()
        found = DescriptorPool(database).FindServiceByName("outrider.v1.Inference")
        assert {method.name for method in found.methods} == {"Generate", "GetModelInfo", "GetServerInfo"}


def test_a_drafter_of_another_vocabulary_is_refused_and_the_answers_stay_the_same(
    tiny_cell: LocalCell, tmp_path_factory: pytest.TempPathFactory
) -> None:
    models = tmp_path_factory.mktemp("models")
    tiny, other = save_tiny_llama(models / "tiny", max_context=2048), save_tiny_llama(models / "other", vocab=80)
    target = TargetConfig(model=str(tiny), dtype="float32", threads=1, kv_cache_bytes=4 << 20, profile_s=0)
    with local_cell(target, [drafter_config(f"model:{other}")]) as running, Client(running.endpoint) as client:
        info = client.server_info()
        assert info.state == "degraded"
        assert [worker.state for worker in info.drafters] == ["refused"]
        assert info.drafters[0].detail == (
            "drafter 'model': it has a vocabulary of 80 tokens, the target one of 97; the first token that differs is "
            "80: nothing in the drafter, 'w80' in the target; a draft model with another tokenizer is named "
            "universal:PATH_OR_NAME instead of model:PATH_OR_NAME"
        )
        alone = client.generate([1, 2, 3], sampling=SHORT).result()
    with Client(tiny_cell.endpoint) as client:
        assert client.generate([1, 2, 3], sampling=SHORT).result().token_ids == alone.token_ids
