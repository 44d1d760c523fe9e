"""The report: a table to read, one JSON object for scripts, and the exit code.

verdict           the worst of all: passed, "not shown", breach or error
breaches, errors, not_shown, passed   how many checks ended so
model, dtype, drafters                what was verified
is_strict         whether rounding excused nothing
alpha, seed       the false-alarm rate of the law's tests together; where the seeds began
findings          of each check: check, subject, verdict, evidence, detail, figures
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import get_args

from rich.markup import escape
from rich.table import Table

from cluster.conformance.deployment import Deployment
from cluster.conformance.findings import Finding, Verdict
from cluster.conformance.suite import Plan

_COLOURS: dict[Verdict, str] = {"passed": "green", "not shown": "yellow", "breach": "red", "error": "red"}
_ORDER: tuple[Verdict, ...] = get_args(Verdict)  # the worst last


def table(findings: Sequence[Finding], deployment: Deployment) -> Table:
    drafters = ", ".join(deployment.drafters) or "none"
    title = f"{deployment.model.model}, {deployment.model.dtype}; drafters: {drafters}"
    shown = Table("check", "verdict", "evidence", title=escape(title))
    before = ""
    for finding in findings:
        if finding.check != before:
            shown.add_section()
            shown.add_row(f"[bold]{escape(finding.check)}[/bold]")
        before = finding.check
        colour = _COLOURS[finding.verdict]
        verdict = f"[{colour}]{finding.verdict}[/{colour}]"
        shown.add_row(escape(f"  {finding.subject}"), verdict, escape(finding.evidence))
    return shown


def lines(findings: Sequence[Finding]) -> list[str]:
    """What there is to say of checks beyond the table, and the conclusion."""
    told = [
        f"{each.verdict}: {each.check}, {each.subject or 'all'}: {each.detail}"
        if each.verdict != "passed"
        else f"{each.check}, {each.subject}: {each.detail}"
        for each in findings
        if each.detail
    ]
    counts = Counter(each.verdict for each in findings)
    counted = ", ".join(f"{counts[verdict]} {verdict}" for verdict in _ORDER if counts[verdict])
    return [*told, f"{len(findings)} checks: {counted}. {_MEANING[verdict_of(findings)]}"]


_MEANING: dict[Verdict, str] = {
    "passed": "Drafts changed nothing here but the speed.",
    "not shown": "No breach was found; but what is not shown may still be one.",
    "breach": "This deployment is not lossless.",
    "error": "Some checks could not be carried out.",
}


def verdict_of(findings: Sequence[Finding]) -> Verdict:
    """The worst; a breach is worse than an error."""
    found = {each.verdict for each in findings}
    return "breach" if "breach" in found else max(found, key=_ORDER.index)


def exit_code(findings: Sequence[Finding], *, requires_drafts: bool) -> int:
    """0, or 1 for a breach, an error and, where drafts are required, a check that shows nothing."""
    verdict = verdict_of(findings)
    return int(verdict in ("breach", "error") or (verdict == "not shown" and requires_drafts))


def as_json(findings: Sequence[Finding], deployment: Deployment, plan: Plan) -> str:
    counts = Counter(each.verdict for each in findings)
    return json.dumps(
        {
            "verdict": verdict_of(findings),
            "passed": counts["passed"],
            "not_shown": counts["not shown"],
            "breaches": counts["breach"],
            "errors": counts["error"],
            "model": deployment.model.model,
            "dtype": deployment.model.dtype,
            "drafters": list(deployment.drafters),
            "is_strict": deployment.is_strict,
            "alpha": plan.alpha,
            "seed": plan.seed,
            "findings": [asdict(each) for each in findings],
        }
    )
