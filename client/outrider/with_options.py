"""Options that several commands have in common, declared once: the fields of a dataclass.

typer makes options of a function's parameters. `with_options` gives a command that takes such a dataclass one
parameter for each field.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, Concatenate, TypeVar, get_type_hints

Group = TypeVar("Group")


def with_options(command: Callable[Concatenate[Group, ...], None]) -> Callable[..., None]:
    """The command with its own parameters first, then one for each field of the dataclass that its first one is."""
    first, *own = inspect.signature(command, eval_str=True).parameters.values()
    group: Any = first.annotation
    hints = get_type_hints(group, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(group)
    ]

    @wraps(command)
    def expanded(**values: Any) -> None:
        command(group(**{field.name: values.pop(field.name) for field in fields(group)}), **values)

    expanded.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    return expanded
