"""A scheduler that is to stop: whom it refuses, whom it waits for, and what becomes of the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from outrider import Client, Resuming, SamplingParams
from outrider.errors import ServerUnavailable, error_from_rpc
from outrider.v1 import inference_pb2, inference_pb2_grpc
from tests.serving.conftest import drafter_config
from tests.serving.local_cell import LocalCell, local_cell
from tests.serving.test_service import until
from tests.tiny import save_tiny_llama
from workers.target.server import TargetConfig

pytestmark = pytest.mark.timeout(120)

PROMPT = [1, 2, 3]
LONG = SamplingParams(seed=3, max_tokens=250, ignore_eos=True)
QUICK = Resuming(first_backoff_s=0.01)
NO_LIMIT_S = 100.0


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCell]:
    folder = save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", num_layers=1, max_context=1024)
    target = TargetConfig(model=str(folder), dtype="float32", threads=1, kv_cache_bytes=4 << 20, profile_s=0)
    with local_cell(target, [drafter_config("ngram")]) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(cell: LocalCell) -> tuple[int, ...]:
    with Client(cell.endpoint) as client:
        return client.generate(PROMPT, sampling=LONG).result().token_ids


def refusal(cell: LocalCell) -> ServerUnavailable:
    """What a new request is told, by a client that does not try again."""
    with grpc.insecure_channel(cell.endpoint, [("grpc.enable_retries", 0)]) as channel:
        request = inference_pb2.GenerateRequest(token_ids={"ids": PROMPT}, sampling={"max_tokens": 1})
        with pytest.raises(grpc.RpcError) as caught:
            list(inference_pb2_grpc.InferenceStub(channel).Generate(request, timeout=60))
    error = error_from_rpc(caught.value)
    assert isinstance(error, ServerUnavailable)
    return error


def test_running_answers_end_and_new_ones_are_sent_away_with_a_hint(
    cell: LocalCell, undisturbed: tuple[int, ...]
) -> None:
    with Client(cell.endpoint, resuming=None) as client:
        tokens = iter(generation := client.generate(PROMPT, sampling=LONG))
        next(tokens)
        drain = threading.Thread(target=cell.restart_scheduler, args=[NO_LIMIT_S])
        drain.start()
        until(client, lambda info: info.state == "draining")
        sent_away = refusal(cell)
        assert "draining" in sent_away.message
        assert sent_away.retry_after_s == 1.0
        assert generation.result().token_ids == undisturbed
        drain.join()
    with Client(cell.endpoint) as client:
        assert client.generate(PROMPT, sampling=LONG).result().token_ids == undisturbed


def test_what_runs_on_beyond_the_limit_is_ended_for_its_client_to_go_on(
    cell: LocalCell, undisturbed: tuple[int, ...]
) -> None:
    with Client(cell.endpoint, resuming=QUICK) as client, Client(cell.endpoint, resuming=None) as stubborn:
        generation, given_up = client.generate(PROMPT, sampling=LONG), stubborn.generate(PROMPT, sampling=LONG)
        tokens = iter(generation)
        next(tokens)
        chunks = given_up.chunks()
        next(chunks)
        with ThreadPoolExecutor() as pool:
            ended = pool.submit(list, chunks)
            cell.restart_scheduler(grace_s=0.0)
            assert sum(1 for _ in tokens) == LONG.max_tokens - 1
            with pytest.raises(ServerUnavailable, match="draining") as caught:
                ended.result()
    assert caught.value.retry_after_s == 1.0
    assert generation.answer.token_ids == undisturbed
    assert 0 < generation.answer.num_resumed_tokens < len(undisturbed)
