"""A custom resource, checked as the API server would, without one.

The server's dialect is turned into plain JSON schema, and made strict: an unknown field is an error, as it is to
Helm 4. Rules written in CEL are not tried.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import yaml


def crd_validator(file: Path, version: str) -> jsonschema.protocols.Validator:
    definition = yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)  # a megabyte: Python alone takes 15 s
    [found] = [item for item in definition["spec"]["versions"] if item["name"] == version]
    schema = _strict(found["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # the server's own business
    return jsonschema.Draft202012Validator(schema)


def complaints(validator: jsonschema.protocols.Validator, item: dict[str, Any]) -> list[str]:
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(item)]


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items() if key != "format"}
    if strict.pop("x-kubernetes-int-or-string", False):
        strict.pop("anyOf", None)
        strict["type"] = ["integer", "string"]
    if strict.pop("nullable", False) and isinstance(strict.get("type"), str):
        strict["type"] = [strict["type"], "null"]
    is_open = strict.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in strict
    if isinstance(schema.get("properties"), dict) and strict.get("type") == "object" and not is_open:
        strict["additionalProperties"] = False
    return strict
