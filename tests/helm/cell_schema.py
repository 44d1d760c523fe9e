"""The part of values.schema.json that describes `cell`: what cluster/config.py takes, less what the chart sets itself.

python -m tests.helm.cell_schema     # prints it, to be copied when the config has changed
"""

from __future__ import annotations

import json
from typing import Any

from cluster.config import SOURCES, CellConfig

SET_BY_THE_CHART = {
    "": {"cache_dir", "tls", "auth"},
    "ray": {"address", "autoscaled"},
    "scheduler": {"listen", "metrics_port"},
}
_KEPT = ("type", "enum", "minimum", "exclusiveMinimum", "minLength", "pattern", "description")


def cell_schema() -> dict[str, Any]:
    schema = CellConfig.model_json_schema()
    sections = {
        name: _section(name, section, schema["$defs"])
        for name, section in schema["properties"].items()
        if name not in SET_BY_THE_CHART[""]
    }
    sections["target"]["required"] = ["device", "tensor_parallel"]
    sections["ray"]["required"] = ["drain_s"]
    needs_source = {"properties": {"kind": {"enum": sorted(SOURCES)}}}
    sections["drafters"]["items"] |= {"if": needs_source, "then": {"required": ["source"]}}
    return {"type": "object", "additionalProperties": False, "required": ["target", "ray"], "properties": sections}


def _section(name: str, section: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if section.get("type") == "array":
        return {"type": "array", "items": _section(name, section["items"], definitions)}
    described = definitions[section["$ref"].rpartition("/")[2]]
    properties = {
        key: _scalar(value)
        for key, value in described["properties"].items()
        if key not in SET_BY_THE_CHART.get(name, set())
    }
    required = {"required": described["required"]} if "required" in described else {}
    return {"type": "object", "additionalProperties": False, **required, "properties": properties}


def _scalar(value: dict[str, Any]) -> dict[str, Any]:
    """One key. Unset is how the chart says null, so null itself is no value."""
    [kind] = [choice for choice in value.get("anyOf", [value]) if choice.get("type") != "null"]
    merged = value | kind
    return {key: merged[key] for key in _KEPT if key in merged}


if __name__ == "__main__":
    print(json.dumps(cell_schema(), indent=2))  # noqa: T201
