from __future__ import annotations

import pytest

from cluster.config import load_config, parse_drafters
from cluster.threads import ThreadPlan, available_cores, plan_threads, thread_environment


@pytest.mark.parametrize(
    ("cores", "tensor_parallel", "drafters", "plan"),
    [
        (2, 1, ["ngram"], ThreadPlan(2, (1,))),
        (2, 2, ["ngram"], ThreadPlan(1, (1,))),
        (2, 1, ["model:x"], ThreadPlan(1, (1,))),
        (1, 4, ["model:x"], ThreadPlan(1, (1,))),
        (16, 2, ["model:x", "ngram", "model:y"], ThreadPlan(4, (4, 1, 4))),
    ],
)
def test_workers_that_compute_share_the_cores_and_each_has_at_least_one(
    cores: int, tensor_parallel: int, drafters: list[str], plan: ThreadPlan
) -> None:
    config = load_config(None, {"target": {"tensor_parallel": tensor_parallel}, "drafters": parse_drafters(drafters)})
    assert plan_threads(config, cores) == plan


def test_target_groups_that_share_a_machine_share_its_cores() -> None:
    config = load_config(None, {"target": {"groups": 2, "tensor_parallel": 2}, "drafters": parse_drafters(["ngram"])})
    assert plan_threads(config, cores=16, num_groups=2).target == 4
    assert plan_threads(config, cores=16).target == 8


def test_explicit_numbers_win() -> None:
    config = load_config(
        None,
        {"target": {"threads": 7}, "drafters": [{"kind": "ngram", "threads": 2}, {"kind": "model", "source": "x"}]},
    )
    assert plan_threads(config, cores=8) == ThreadPlan(7, (2, 4))


def test_the_environment_of_a_worker_holds_its_number_of_threads() -> None:
    assert thread_environment(3)["OMP_NUM_THREADS"] == "3"


def test_this_process_may_use_at_least_one_core() -> None:
    assert available_cores() >= 1
