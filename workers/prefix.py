"""How far two lists of tokens, or two texts, agree."""

from __future__ import annotations

from collections.abc import Sequence


def common_len(left: Sequence[object], right: Sequence[object]) -> int:
    """Length of the longest common prefix."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))
