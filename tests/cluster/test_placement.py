"""An impossible request is refused at once, with the resource that is missing and where."""

from __future__ import annotations

import os
from concurrent.futures import Future
from typing import Any
from unittest.mock import MagicMock

import pytest

from cluster import placement
from cluster.config import RaySection, load_config
from cluster.errors import PlacementError
from cluster.placement import (
    Machine,
    check_feasible,
    cores_of,
    groups_together,
    local_resources,
    machines_with_room,
)
from cluster.ray_runtime import _LOCAL_SETTINGS, _SETTINGS

SMALL = Machine("10.0.0.1", {"CPU": 4.0, "target": 1.0, "draft": 1.0})
LARGE = Machine("10.0.0.2", {"CPU": 16.0, "target": 2.0, "GPU": 2.0})


def config(**sections: Any) -> Any:
    return load_config(None, sections)


def test_this_machine_offers_exactly_what_the_cell_needs() -> None:
    cell = config(target={"tensor_parallel": 3}, drafters=[{"kind": "ngram"}, {"kind": "ngram"}])
    resources = local_resources(cell)
    assert resources == {"target": 3.0, "draft": 2.0}
    check_feasible(cell, [Machine("here", resources)])


def test_all_ranks_must_fit_on_one_machine() -> None:
    check_feasible(config(target={"tensor_parallel": 2}), [SMALL, LARGE])
    with pytest.raises(PlacementError) as raised:
        check_feasible(config(target={"tensor_parallel": 3}), [SMALL, LARGE])
    for part in ("3 × target on one machine", "10.0.0.1 with 1 × target", "10.0.0.2 with 2 × target", '{"target": 3}'):
        assert part in raised.value.message


def test_each_target_group_has_a_machine_of_its_own_or_shares_one_that_has_room() -> None:
    two = config(target={"groups": 2}, drafters=[])
    assert local_resources(two)["target"] == 2.0
    check_feasible(two, [LARGE])
    check_feasible(two, [SMALL, SMALL])
    assert [groups_together(two, machines) for machines in ([LARGE], [SMALL, SMALL])] == [2, 1]
    wide = config(target={"groups": 2, "tensor_parallel": 2}, drafters=[])
    check_feasible(wide, [LARGE, LARGE])
    with pytest.raises(PlacementError) as raised:
        check_feasible(wide, [SMALL, SMALL, LARGE])
    for part in ("the 2 target groups need 2 × target on one machine each", "room for 1", "lower target.groups or"):
        assert part in raised.value.message


SCALED = {"target": {"groups": 2, "min_groups": 1, "max_groups": 3}, "drafters": [], "autoscale": {"enabled": True}}


def test_groups_that_may_come_have_room_here_and_elsewhere_need_none_yet() -> None:
    assert local_resources(config(**SCALED))["target"] == 3.0
    check_feasible(config(**SCALED), [SMALL, SMALL])
    with pytest.raises(PlacementError, match="the 2 target groups need"):
        check_feasible(config(**SCALED), [SMALL])
    assert groups_together(config(**SCALED), [Machine("10.0.0.3", {"target": 8.0})]) == 3


def test_where_machines_are_added_on_demand_the_fewest_groups_need_theirs_at_once() -> None:
    check_feasible(config(**SCALED, ray={"autoscaled": True}), [SMALL])
    with pytest.raises(PlacementError, match="the target needs"):
        check_feasible(config(**SCALED, ray={"autoscaled": True}), [])


def test_drafters_may_be_spread_over_machines_but_all_must_have_a_place() -> None:
    one, two = [{"kind": "ngram"}], [{"kind": "ngram"}, {"kind": "ngram"}]
    check_feasible(config(drafters=one), [SMALL, LARGE])
    check_feasible(config(drafters=two), [SMALL, LARGE, SMALL])
    with pytest.raises(PlacementError, match=r"drafters need 2 × draft in all, .*10\.0\.0\.1 with 1 × draft"):
        check_feasible(config(drafters=two), [SMALL, LARGE])


def test_a_drafter_on_a_gpu_takes_a_place_in_the_pool_from_the_others() -> None:
    mixed = config(drafters=[{"kind": "ngram"}, {"kind": "model", "source": "m", "device": "cuda"}])
    check_feasible(mixed, [LARGE, Machine("10.0.0.3", {"draft": 2.0, "GPU": 1.0})])
    with pytest.raises(PlacementError, match=r"drafters need 2 × draft in all, .*10\.0\.0\.3 with 1 × draft"):
        check_feasible(mixed, [LARGE, Machine("10.0.0.3", {"draft": 1.0, "GPU": 1.0})])


def test_on_cuda_a_rank_needs_a_gpu_beside_its_place_in_the_pool() -> None:
    check_feasible(config(target={"tensor_parallel": 2, "device": "cuda"}), [SMALL, LARGE])
    with pytest.raises(PlacementError, match=r"1 × target and 1 × GPU .*0 × GPU.*--num-gpus=1"):
        check_feasible(config(target={"device": "cuda"}), [SMALL])


ON_GPUS = {"target": {"groups": 2, "device": "cuda"}, "drafters": [{"kind": "model", "source": "m", "device": "cuda"}]}


def test_a_gpu_that_the_target_takes_is_none_for_drafters() -> None:
    busy = Machine("10.0.0.3", {"target": 2.0, "draft": 2.0, "GPU": 2.0})
    with pytest.raises(PlacementError) as raised:
        check_feasible(config(**ON_GPUS), [busy])
    for part in ("need 1 × draft and 1 × GPU in all", "beside the target", "10.0.0.3 with 2 × draft and 0 × GPU"):
        assert part in raised.value.message
    check_feasible(config(**ON_GPUS), [Machine("10.0.0.3", {"target": 2.0, "draft": 2.0, "GPU": 3.0})])
    check_feasible(config(**ON_GPUS | {"drafters": [{"kind": "ngram"}]}), [busy])


def test_the_target_is_taken_to_be_where_it_leaves_drafters_most_gpus() -> None:
    only_target = Machine("10.0.0.3", {"target": 1.0, "GPU": 1.0})
    both = Machine("10.0.0.4", {"target": 2.0, "draft": 1.0, "GPU": 2.0})
    for machines in ([only_target, both], [both, only_target]):
        check_feasible(config(**ON_GPUS), machines)
    check_feasible(config(**ON_GPUS), [Machine("10.0.0.5", {"target": 2.0, "GPU": 2.0}), both])
    with pytest.raises(PlacementError, match="drafters need"):
        check_feasible(config(**ON_GPUS), [both])


def test_without_any_machine_the_message_says_so() -> None:
    with pytest.raises(PlacementError, match="there is no machine"):
        check_feasible(config(), [])


def test_cores_are_those_of_the_smallest_machine_that_can_hold_the_target() -> None:
    assert cores_of(config(), [SMALL, LARGE]) == 4
    assert cores_of(config(target={"tensor_parallel": 2}), [SMALL, LARGE]) == 16


async def test_machines_that_join_in_time_are_waited_for() -> None:
    seen = iter([[], [SMALL], [SMALL, LARGE]])
    cell = config(target={"tensor_parallel": 2}, ray={"machines_timeout_s": 60.0})
    assert await machines_with_room(cell, lambda: next(seen), look_every_s=0.0) == [SMALL, LARGE]


async def test_room_that_never_comes_is_an_error_that_says_what_is_missing() -> None:
    looks: list[None] = []

    def look() -> list[Machine]:
        looks.append(None)
        return [SMALL]

    at_once = config(target={"tensor_parallel": 2})
    with pytest.raises(PlacementError, match="2 × target on one machine"):
        await machines_with_room(at_once, look)
    assert len(looks) == 1
    with pytest.raises(PlacementError, match="2 × target on one machine"):
        await machines_with_room(at_once.model_copy(update={"ray": RaySection(machines_timeout_s=0.05)}), look, 0.0)
    assert len(looks) > 2


def test_drafters_whose_machines_are_added_on_demand_need_none_yet_and_the_target_does() -> None:
    two = {"drafters": [{"kind": "ngram"}, {"kind": "ngram"}], "ray": {"autoscaled": True}}
    check_feasible(config(**two), [LARGE])
    with pytest.raises(PlacementError, match="the target needs"):
        check_feasible(config(target={"tensor_parallel": 3}, **two), [LARGE])


async def test_a_failure_of_ray_is_one_of_the_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the target's keeper tries again, and the cell goes on."""
    os.environ.update(_SETTINGS | _LOCAL_SETTINGS)  # as start_ray does it: Ray reads them when it is imported
    import ray

    is_ready = MagicMock()
    is_ready.future.return_value = failed = Future[None]()
    failed.set_exception(ray.exceptions.RaySystemError("its head is away"))
    monkeypatch.setattr(placement, "_make_group", lambda *_: (MagicMock(), is_ready))
    monkeypatch.setattr(placement, "free_target", lambda group: None)
    with pytest.raises(PlacementError, match="its head is away"):
        await placement.reserve_target(config(), 5.0)
