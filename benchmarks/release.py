"""How long after a client has gone something of its request is still held: by the core, the target and the drafters.

A cell of a tiny model runs in this process, and a request with drafts in it. Its client cancels, closes its channel,
or is cut off by a TCP reset; what the servers hold is looked at every half millisecond. Prints a table, and a last
line of JSON:
{"rows": [{"how", "part", "median_ms", "max_ms"}, ...]}
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from outrider.rpc import link_options
from outrider.v1 import inference_pb2, inference_pb2_grpc
from scheduler.core import Core
from scheduler.server import SchedulerConfig
from tests.serving.conftest import drafter_config
from tests.serving.cutting_relay import CuttingRelay, cutting_relay
from tests.serving.local_cell import local_cell
from tests.tiny import save_tiny_llama
from workers.draft.hosted import Hosted
from workers.engine.kv_cache import KVCache
from workers.target.passes import Session
from workers.target.server import TargetConfig

TOKENS_BEFORE = 5
POLL_S = 0.0005
WAYS = ("cancel", "close", "reset")


def ask(address: str) -> tuple[grpc.Channel, Any]:
    """A channel of its own, and a call on it that has brought its first messages and has long to go."""
    channel = grpc.insecure_channel(address, [*link_options(), ("grpc.use_local_subchannel_pool", 1)])
    sampling = inference_pb2.SamplingParams(max_tokens=1800, ignore_eos=True, seed=1)
    request = inference_pb2.GenerateRequest(token_ids={"ids": [1, 2, 3]}, sampling=sampling)
    call: Any = inference_pb2_grpc.InferenceStub(channel).Generate(request, timeout=120)
    for _ in range(TOKENS_BEFORE):
        next(call)
    return channel, call


def leave(how: str, channel: grpc.Channel, call: Any, relay: CuttingRelay) -> None:
    if how == "cancel":
        call.cancel()
    elif how == "close":
        channel.close()
    else:
        relay.cut()


def holders() -> dict[str, Callable[[], int]]:
    """Counts of requests by part. The servers are in this process: their objects are looked for once."""
    found: dict[type, list[Any]] = {Core: [], Session: [], KVCache: [], Hosted: []}
    for thing in gc.get_objects():
        if type(thing) in found:
            found[type(thing)].append(thing)
    return {
        "core": lambda: sum(len(core._requests) for core in found[Core]),
        "target": lambda: sum(len(session.requests) for session in found[Session]),
        "KV blocks": lambda: sum(len(cache._requests) for cache in found[KVCache]),
        "drafters": lambda: sum(len(hosted._requests) for hosted in found[Hosted]),
    }


def wait_released(parts: dict[str, Callable[[], int]], since_s: float) -> dict[str, float]:
    """Milliseconds until each part holds nothing."""
    took_ms: dict[str, float] = {}
    while len(took_ms) < len(parts):
        for part, count in parts.items():
            if part not in took_ms and not count():
                took_ms[part] = 1000 * (time.perf_counter() - since_s)
        time.sleep(POLL_S)
    return took_ms


def measure(endpoint: str, how: str, rounds: int) -> list[dict[str, float]]:
    samples: list[dict[str, float]] = []
    with cutting_relay(endpoint) as relay:
        for _ in range(rounds):
            channel, call = ask(relay.address)
            parts = holders()
            gone_s = time.perf_counter()
            leave(how, channel, call, relay)
            samples.append(wait_released(parts, gone_s))
            channel.close()
    return samples


def rows_of(how: str, samples: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    return [
        {
            "how": how,
            "part": part,
            "median_ms": round(statistics.median(sample[part] for sample in samples), 1),
            "max_ms": round(max(sample[part] for sample in samples), 1),
        }
        for part in samples[0]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds: int = parser.parse_args().rounds
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_llama(Path(folder) / "tiny", max_context=2048)
        target = TargetConfig(model=str(model), dtype="float32", threads=1, kv_cache_bytes=8 << 20, profile_s=0)
        drafters = [drafter_config("ngram"), drafter_config(f"itself=model:{model}")]
        with local_cell(target, drafters, SchedulerConfig(listen="127.0.0.1:0")) as cell:
            for how in WAYS:
                rows += rows_of(how, measure(cell.endpoint, how, rounds))
    for row in rows:
        print(f"{row['how']:8}{row['part']:12}{row['median_ms']:8.1f} ms median {row['max_ms']:8.1f} ms at most")
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
