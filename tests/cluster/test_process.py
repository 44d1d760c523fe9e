"""Calls of a process, and what is said of one that has ended."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from concurrent.futures import Future
from unittest.mock import MagicMock

import pytest

from cluster.errors import WorkerFailed
from cluster.process import WorkerProcess, _plain_reason
from cluster.ray_runtime import _SETTINGS

FIELDS = "\tclass_name: TargetActor\n\tactor_id: 22f0fb8b95c5b90aacfb5abb01000000"


@pytest.mark.parametrize(
    ("account", "reason"),
    [
        (f"The actor died unexpectedly.\n{FIELDS}", "The actor died unexpectedly."),
        (f"The actor died unexpectedly.\n{FIELDS}\nIts node has died.", "Its node has died."),
        ("The actor is dead. Worker exit detail: End of file. Some common causes include: many.", "End of file."),
    ],
)
def test_the_reason_is_the_last_sentence_of_rays_account_and_no_field(account: str, reason: str) -> None:
    assert _plain_reason(RuntimeError(account)) == f"its process ended: {reason}"


def process_that_answers(answer: Future[str]) -> WorkerProcess:
    process = WorkerProcess("drafter one", object)
    process._handle = MagicMock()
    process._handle.ping.remote.return_value.future.return_value = answer
    return process


_SEEN = """
import logging, os, ray
ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False,
         logging_level=logging.ERROR, object_store_memory=80 << 20, _node_ip_address="127.0.0.1")
look = ray.remote(num_cpus=0, num_gpus=0)(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
print(repr(ray.get(look.remote())))
ray.shutdown()
"""


def test_who_asks_for_no_gpu_sees_none() -> None:
    """transformers would take one that it sees for ranks on the CPU. (Ray is told of a GPU that is not there.)"""
    asked = subprocess.run(
        [sys.executable, "-c", _SEEN], env=os.environ | _SETTINGS, capture_output=True, text=True, timeout=120
    )
    assert asked.stdout.strip() == "''", asked.stderr


async def test_a_call_that_is_cancelled_as_its_answer_comes_is_cancelled() -> None:
    """Else what was to end would go on, and whoever waits for its end would wait for ever."""
    answer: Future[str] = Future()
    call = asyncio.create_task(process_that_answers(answer).call("ping", timeout_s=60))
    await asyncio.sleep(0)
    answer.set_result("pong")  # asyncio learns of it in its next round, the call in the one after that
    asyncio.get_running_loop().call_soon(call.cancel)
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_call_that_is_not_answered_in_time_names_process_method_and_limit() -> None:
    with pytest.raises(WorkerFailed, match=r"drafter one failed: did not answer ping within 0\.01 s"):
        await process_that_answers(Future()).call("ping", timeout_s=0.01)
