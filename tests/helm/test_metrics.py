"""Metrics in the cluster: one port from the pod to Prometheus, and a dashboard that asks for what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helm.conftest import CHART, Release, Render
from tests.helm.test_cell import cell_of
from tests.metrics_page import PAGE, unknown_names

pytestmark = pytest.mark.helm

WATCHED = ("--set", "metrics.serviceMonitor.enabled=true,metrics.dashboard.enabled=true")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
    return found


def service_of(release: Release) -> dict[str, Any]:
    [service] = [item for item in release.all("Service") if item["metadata"]["name"] == "outrider"]
    return service


def test_the_port_is_one_from_the_scheduler_to_the_monitor(render: Render, tmp_path: Path) -> None:
    release = render(*WATCHED)
    port = cell_of(release, tmp_path).scheduler.metrics_port
    container = release.pods["scheduler"]["spec"]["containers"][0]
    assert {"name": "metrics", "containerPort": port} in container["ports"]
    service = service_of(release)
    assert {"name": "metrics", "port": port, "targetPort": "metrics"} in service["spec"]["ports"]
    monitor = release.one("ServiceMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"]["endpoints"] == [{"port": "metrics", "path": "/metrics", "interval": "15s"}]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= service["metadata"]["labels"].items()
    others = [item for item in render(*WATCHED, "-f", "values-gpu.yaml").all("Service") if item != service]
    assert others
    assert not any(wanted <= item["metadata"]["labels"].items() for item in others)


def test_a_cell_with_certificates_is_scraped_over_tls_and_known_by_its_name(render: Render) -> None:
    [endpoint] = render(*WATCHED, "--set", "tls.secretName=t,tls.name=our-cell").one("ServiceMonitor")["spec"][
        "endpoints"
    ]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"] == {"serverName": "our-cell", "ca": {"secret": {"name": "t", "key": "ca.crt"}}}


def test_where_clients_show_certificates_prometheus_shows_one_of_its_own(render: Render) -> None:
    shut = "tls.secretName=t,tls.requireClientCertificate=true,metrics.serviceMonitor.certificateSecret=p"
    [endpoint] = render(*WATCHED, "--set", shut).one("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"] == {
        "serverName": "outrider-cell",
        "ca": {"secret": {"name": "t", "key": "ca.crt"}},
        "cert": {"secret": {"name": "p", "key": "tls.crt"}},
        "keySecret": {"name": "p", "key": "tls.key"},
    }


def test_only_scrapers_reach_the_port(render: Render) -> None:
    [policy] = [item for item in render().all("NetworkPolicy") if item["metadata"]["name"] == "outrider-metrics"]
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert policy["spec"]["ingress"] == [{"from": [monitoring], "ports": [{"protocol": "TCP", "port": 9464}]}]
    assert policy["spec"]["podSelector"]["matchLabels"]["ray.io/group"] == "scheduler"


def test_switched_off_nothing_of_it_is_there(render: Render, tmp_path: Path) -> None:
    release = render("--set", "metrics.enabled=false")
    assert cell_of(release, tmp_path).scheduler.metrics_port is None
    assert "9464" not in release.text
    assert release.all("ServiceMonitor") == []


def test_nothing_needs_the_prometheus_operator_unless_it_is_asked_for(render: Render) -> None:
    assert render().all("ServiceMonitor") == []
    assert len(render().all("ConfigMap")) == 1


def test_the_dashboard_arrives_as_it_is_under_the_sidecars_label(render: Render) -> None:
    [board] = [item for item in render(*WATCHED).all("ConfigMap") if item["metadata"]["name"] == "outrider-dashboard"]
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(board["data"]["outrider.json"]) == dashboard()


def test_every_query_of_the_dashboard_and_of_the_page_asks_for_series_that_are_there() -> None:
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    assert all("outrider:" in query for query in queries)
    assert {name for query in queries for name in unknown_names(query)} == set()
    assert unknown_names(PAGE.read_text(encoding="utf-8")) == set()
    assert unknown_names("rate(outrider:passes[1m])") == {"outrider:passes"}, "a counter ends in _total"


def test_no_two_panels_cover_each_other() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard()["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
