"""How far two lists of tokens agree."""

from __future__ import annotations

from collections.abc import Sequence


def common_len(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))
