"""The chart as helm sees it."""

from __future__ import annotations

import pytest

from tests.helm.conftest import CHART, SHAPES, Helm, Render

pytestmark = pytest.mark.helm


@pytest.mark.parametrize("shape", SHAPES)
def test_helm_lints_every_shape_without_a_warning(helm: Helm, shape: str) -> None:
    done = helm("lint", "--strict", ".", *SHAPES[shape])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout


@pytest.mark.parametrize("version", ["1.30", "1.33", "1.36", "1.37"])
def test_every_supported_kubernetes_gets_the_same_objects(render: Render, version: str) -> None:
    values = ("-f", "values-gpu.yaml")
    assert render(*values, "--kube-version", version).text == render(*values).text


def test_a_kubernetes_without_sleep_in_pre_stop_is_refused(helm: Helm) -> None:
    done = helm("template", "outrider", ".", "--kube-version", "1.29")
    assert done.returncode != 0
    assert "incompatible with Kubernetes v1.29" in done.stderr


@pytest.mark.parametrize("shape", SHAPES)
def test_rendering_twice_gives_the_same_bytes(helm: Helm, shape: str) -> None:
    once, again = (helm("template", "outrider", ".", *SHAPES[shape]) for _ in range(2))
    assert once.stdout == again.stdout


def test_every_object_has_a_name_of_its_own_that_begins_with_the_releases(render: Render) -> None:
    for name, prefix in {"outrider": "outrider", "prod-outrider": "prod-outrider", "prod": "prod-outrider"}.items():
        objects = render("-f", "values-gpu.yaml", name=name).objects
        names = [(item["kind"], item["metadata"]["name"]) for item in objects]
        assert len(set(names)) == len(names)
        assert all(own == prefix or own.startswith(f"{prefix}-") for _, own in names)


def test_the_notes_tell_how_to_send_the_first_prompt(helm: Helm) -> None:
    done = helm("install", "outrider", ".", "--dry-run=client", "--namespace", "inference")
    notes = done.stdout.partition("NOTES:")[2]
    assert "kubectl -n inference wait pod -l ray.io/cluster=outrider,ray.io/group=scheduler" in notes
    assert 'outrider generate "The capital of France is"' in notes
    assert "helm -n inference test outrider" in notes


def test_the_chart_runs_the_ray_that_the_image_has(render: Render) -> None:
    constraints = (CHART.parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={render().cluster['spec']['rayVersion']}" in constraints
