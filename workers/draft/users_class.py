"""A drafter of the user's own: a class that is named in the configuration, "class:MODULE:NAME"."""

from __future__ import annotations

from importlib import import_module

from outrider.errors import InvalidRequest
from workers.draft.drafter import Drafter, Resources

_MEMBERS = ("kind", "model", "vocabulary", "max_context", "draws", "open", "commit", "step", "close")


def load(source: str, resources: Resources) -> Drafter:
    """Calls the class with `resources`. Raises InvalidRequest, saying what is missing."""
    module, colon, name = source.partition(":")
    if not (module and colon and name):
        raise InvalidRequest.of(
            "drafters", f"class:{source}", "it is class:MODULE:NAME, with a module that Python finds"
        )
    try:
        drafter: Drafter = getattr(import_module(module), name)(resources)
    except (ImportError, AttributeError) as err:
        raise InvalidRequest.of("drafters", f"class:{source}", f"it can't be imported: {err}") from err
    missing = [member for member in _MEMBERS if not hasattr(drafter, member)]
    if missing:
        limit = f"it lacks {', '.join(missing)} of workers.draft.drafter.Drafter"
        raise InvalidRequest.of("drafters", f"class:{source}", limit)
    return drafter
