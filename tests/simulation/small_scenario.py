"""A scenario whose figures can be worked out by hand: no spread, no jitter, passes that take what they should."""

from __future__ import annotations

from typing import Any

from scheduler.simulation.scenario import Scenario

PASS_MS, STEP_MS, RTT_MS = 20.0, 5.0, 2.0


def small_scenario(**changes: dict[str, Any]) -> Scenario:
    """`changes` to sections; those of "drafter" to the one drafter."""
    drafter = {
        "name": "d",
        "workers": 1,
        "cost": {"table": [[1, 0, STEP_MS], [64, 0, STEP_MS]]},
        "acceptance": [0.7],
        "spread": 0.0,
        **changes.pop("drafter", {}),
    }
    values: dict[str, dict[str, Any]] = {
        "target": {
            "cost": {"table": [[1, 0, PASS_MS], [256, 0, PASS_MS]]},
            "max_pass_tokens": 256,
            "num_kv_blocks": 1000,
            "vocab_size": 1000,
            "spread": 0.0,
        },
        "network": {"target_rtt_ms": RTT_MS, "drafter_rtt_ms": RTT_MS, "jitter_ms": 0.0},
        "load": {
            "concurrency": 1,
            "warm_up_s": 2.0,
            "duration_s": 6.0,
            "prompt": {"median": 8.0, "spread": 0.0, "max": 8},
            "answer": {"median": 200.0, "spread": 0.0, "max": 200},
        },
    }
    for section, keys in changes.items():
        values.setdefault(section, {}).update(keys)
    return Scenario.model_validate({"name": "small", "drafters": [drafter], **values})
