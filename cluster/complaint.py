"""A wrong setting in one line: which key, what it holds, what it may hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails


def explain(root: type[BaseModel], error: ErrorDetails) -> str:
    """One of pydantic's complaints about `root`, in the form `key is value: what it must be (what it means)`."""
    section = _section_at(root, error["loc"])
    name = str(error["loc"][-1]) if error["loc"] else root.__name__
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = list(section.model_fields)
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{key} is unknown: {hint}the keys here are {', '.join(known)}"
    field = section.model_fields.get(name)
    meaning = f" ({field.description})" if field and field.description else ""
    if error["type"] == "missing":
        return f"{key} is missing: set it{meaning}"
    return f"{key} is {error['input']!r}: {_wish(key, error)}{meaning}"


def _wish(key: str, error: ErrorDetails) -> str:
    """What the value must be. pydantic says "Input should be …", "String should match …" and the like."""
    if error["type"] == "tuple_type" and isinstance(error["input"], Mapping):
        return f"it must be a list: write [[{key}]]"
    return re.sub(r"^\w+ should ", "it must ", error["msg"].removeprefix("Value error, "))


def _section_at(root: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel]:
    """The model that holds the key at `loc`; numbers are places in a list of models."""
    section = root
    for part in loc[:-1]:
        field = section.model_fields.get(str(part))
        for inner in (field.annotation, *get_args(field.annotation)) if field else ():
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                section = inner
    return section
