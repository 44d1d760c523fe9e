"""What Prometheus would read from a cell, and how it changes."""

from __future__ import annotations

from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[str, float]  # by 'name{label="value",…}', without `model_name`

TIMEOUT_S = 30.0


def exposition(address: str, accept: str = "text/plain") -> str:
    request = Request(f"http://{address}/metrics", headers={"Accept": accept})
    with urlopen(request, timeout=TIMEOUT_S) as response:
        text: str = response.read().decode()
        return text


def scrape(address: str) -> Samples:
    samples: Samples = {}
    for family in text_string_to_metric_families(exposition(address)):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sample.labels.items() if key != "model_name")
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert name not in samples, f"{name} comes twice"
            samples[name] = sample.value
    return samples


def increase(before: Samples, after: Samples) -> Samples:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
