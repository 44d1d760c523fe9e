"""How many CPU threads each worker of a cell gets.

Workers that compute share the cores fairly. One thread too many is not a little slower but many times:
the barriers of OpenMP spin, so one core lost to a neighbour stalls a whole pass (measured: 53 → 694 ms).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cluster.config import CellConfig

# Every library that a worker may compute with reads one of these, once, when it is loaded.
_COMPUTING = ("model", "universal")  # kinds of drafters that run a model
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class ThreadPlan:
    target: int  # threads of each rank
    drafters: tuple[int, ...]  # threads of each drafter worker, in the order of the config


def plan_threads(config: CellConfig, cores: int, num_groups: int = 1) -> ThreadPlan:
    """A fair share of `cores` for each target rank and each drafter that runs a model; explicit numbers win.
    `num_groups`: target groups that share the machine.

    An n-gram drafter only searches: it counts for nothing and gets one thread.
    """
    num_ranks = num_groups * config.target.tensor_parallel
    num_computing = num_ranks + sum(drafter.kind in _COMPUTING for drafter in config.drafters)
    share = max(1, cores // num_computing)
    return ThreadPlan(
        target=config.target.threads or share,
        drafters=tuple(drafter.threads or (share if drafter.kind in _COMPUTING else 1) for drafter in config.drafters),
    )


def thread_environment(threads: int) -> dict[str, str]:
    """The variables that a worker process must set before it imports torch, which reads them then and never again."""
    return {variable: str(threads) for variable in _THREAD_VARIABLES} | {"TOKENIZERS_PARALLELISM": "false"}


def available_cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
