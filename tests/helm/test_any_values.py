"""Whatever values the schema takes: the chart refuses them in its own words, or what it installs can work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import PlacementError
from cluster.placement import check_feasible
from tests.helm.conftest import Helm, Release
from tests.helm.test_cell import cell_of, machines_of
from tests.helm.traps import traps

pytestmark = pytest.mark.helm

DEVICES = st.sampled_from(["cpu", "cuda"])
DRAFTERS = st.one_of(
    st.fixed_dictionaries({"kind": st.sampled_from(["ngram", "suffix"])}),
    st.fixed_dictionaries({"kind": st.just("model"), "source": st.just("org/small"), "device": DEVICES}),
)


NUMBERS = st.integers(1, 4)
GROUPS = st.fixed_dictionaries({}, optional={"groups": NUMBERS, "min_groups": NUMBERS, "max_groups": NUMBERS})


@st.composite
def all_values(draw: st.DrawFn) -> dict[str, Any]:
    """About half of them are refused."""
    drafters = draw(st.lists(DRAFTERS, max_size=4))
    num_gpu_drafters = sum(drafter.get("device") == "cuda" for drafter in drafters)
    min_replicas, slots = draw(st.integers(0, 2)), draw(st.integers(1, 4))
    return {
        "cell": {
            "target": {"device": draw(DEVICES), "tensor_parallel": draw(st.integers(1, 8)), **draw(GROUPS)},
            "drafters": drafters,
            "autoscale": {"enabled": draw(st.sampled_from([True, True, False]))},
        },
        "target": {"cpu": draw(st.integers(1, 64))},
        "draft": {
            "slots": slots,
            "gpus": draw(st.integers(0, 2)) if num_gpu_drafters else draw(st.sampled_from([0, 0, 0, 1])),
            "minReplicas": min_replicas,
            "maxReplicas": min_replicas + draw(st.sampled_from([-1, 0, 1, 2])) if min_replicas else 4,
        },
        "autoscaling": {"enabled": draw(st.booleans())},
        "redis": draw(st.sampled_from([{"enabled": False}, {"enabled": True, "passwordSecret": "r"}])),
        "networkPolicy": {"enabled": draw(st.booleans()), "httpsOut": draw(st.booleans())},
    }


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(values=all_values())
def test_values_are_refused_in_our_own_words_or_the_cell_fits_on_its_pods(
    helm: Helm, tmp_path: Path, values: dict[str, Any]
) -> None:
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    done = helm("template", "outrider", ".", "-f", str(file))
    if done.returncode:
        assert "templates/validate.yaml" in done.stderr
        return
    release = Release(done.stdout)
    assert traps(release.cluster) == []
    cell = cell_of(release, tmp_path)
    try:
        check_feasible(cell, machines_of(release, "minReplicas"))
        check_feasible(
            cell.model_copy(
                update={
                    "ray": cell.ray.model_copy(update={"autoscaled": False}),
                    "target": cell.target.model_copy(update={"groups": cell.target.max_groups}),
                }
            ),
            machines_of(release, "maxReplicas"),
        )
    except PlacementError as error:
        pytest.fail(error.message)
