"""Random JSON schemas, and what fits them: an opinion of our own, since the parser's is what is tested."""

from __future__ import annotations

import random
from typing import Any


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """Small enough for every answer to end soon."""
    kinds = ["string", "integer", "boolean", "null", "enum"] + (["object", "array", "either"] if depth else [])
    match rng.choice(kinds):
        case "string":
            return {"type": "string", "pattern": f"^[a-{rng.choice('cfz')}]{{1,{rng.randint(1, 4)}}}$"}
        case "integer":
            low = rng.randint(-50, 50)
            return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 200)}
        case "enum":
            return {"enum": rng.sample(["red", "grün", 'a "b"', 1, 2.5, None, True], rng.randint(1, 4))}
        case "object":
            properties = {name: random_schema(rng, depth - 1) for name in rng.sample("abcd", rng.randint(0, 3))}
            schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
            return schema | {"required": sorted(properties)}
        case "array":
            low = rng.randint(0, 2)
            items = random_schema(rng, depth - 1)
            return {"type": "array", "items": items, "minItems": low, "maxItems": low + rng.randint(0, 2)}
        case "either":
            return {"anyOf": [random_schema(rng, 0), random_schema(rng, 0)]}
        case kind:
            return {"type": kind}


def is_valid(value: object, schema: dict[str, Any]) -> bool:
    """Of exactly what `random_schema` makes."""
    if "anyOf" in schema:
        return any(is_valid(value, each) for each in schema["anyOf"])
    if "enum" in schema:
        return any(value == each and type(value) is type(each) for each in schema["enum"])
    match schema["type"]:
        case "object":
            properties = schema["properties"]
            return (
                isinstance(value, dict)
                and set(value) == set(properties)
                and all(is_valid(value[name], each) for name, each in properties.items())
            )
        case "array":
            return (
                isinstance(value, list)
                and schema["minItems"] <= len(value) <= schema["maxItems"]
                and all(is_valid(each, schema["items"]) for each in value)
            )
        case "string":
            last, longest = schema["pattern"][4], int(schema["pattern"].rstrip("}$").rpartition(",")[2])
            return isinstance(value, str) and 1 <= len(value) <= longest and all("a" <= c <= last for c in value)
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "boolean":
            return isinstance(value, bool)
    return value is None
