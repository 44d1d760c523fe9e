"""What a check found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# "not shown": nothing is wrong, and nothing was shown either, for example because no draft was accepted.
# "error": the server did not do what the check needs; the detail says in its own words why.
Verdict = Literal["passed", "not shown", "breach", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    subject: str
    verdict: Verdict
    evidence: str  # in figures: how many were compared, how many drafted tokens took part
    detail: str = ""  # where it is not "passed": why, and where
    figures: Mapping[str, float | int] = field(default_factory=dict)  # the evidence, for scripts
