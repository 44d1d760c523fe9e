"""Answers say how they came about: which rule, drafts or none, and lossy if the rule may change their law."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.conformance.asking import Asker
from cluster.conformance.equality import Compared
from cluster.conformance.findings import Finding
from outrider.convert import Prompt
from outrider.errors import PermissionDenied
from outrider.types import AcceptanceRule, Answer, SamplingParams, Speculation, SpeculationStats

_CHECK = "labels"
_IS_LOSSY: dict[AcceptanceRule, bool] = {"coupled": False, "rejection": False, "typical": True}


def labels_of(compared: Sequence[Compared]) -> Finding:
    """Of the answers that were compared: those without drafts have none, and none is called lossy."""
    pairs = [pair for each in compared for pair in each.pairs]
    wrong = [
        f"{told} {stats}"
        for pair in pairs
        for told, stats, is_right in (
            ("without drafts:", pair.plain.speculation, _is_plain(pair.plain)),
            ("with drafts:", pair.drafted.speculation, _is_coupled(pair.drafted.speculation)),
        )
        if not is_right
    ]
    return Finding(
        check=_CHECK,
        subject="drafts off, coupled",
        verdict="breach" if wrong else "passed" if pairs else "not shown",
        evidence=f"{2 * len(pairs) - len(wrong)} of {2 * len(pairs)} right",
        detail=wrong[0] if wrong else "" if pairs else "there was no answer to look at",
    )


async def label_of_rule(
    asker: Asker, prompt: Prompt, rule: AcceptanceRule, seed: int, max_tokens: int
) -> list[Finding]:
    """Of an answer by one acceptance rule. A lossy rule may be refused: that is the server's right.

    Raises OutriderError.
    """
    sampling = SamplingParams(temperature=1.0, seed=seed, max_tokens=max_tokens)
    try:
        [answer] = await asker.ask(prompt, sampling, Speculation(acceptance_rule=rule))
    except PermissionDenied:
        if not _IS_LOSSY[rule]:
            raise
        return [Finding(_CHECK, rule, "passed", "refused, as it may be")]
    stats = answer.speculation
    is_right = (stats.acceptance_rule, stats.is_lossy) == (rule, _IS_LOSSY[rule])
    evidence = f"called {'lossy' if stats.is_lossy else 'lossless'}"
    if is_right:
        return [Finding(_CHECK, rule, "passed", evidence)]
    return [Finding(_CHECK, rule, "breach", evidence, f"asked for the rule {rule}, got {stats}")]


def _is_plain(answer: Answer) -> bool:
    stats = answer.speculation
    return stats.mode == "off" and not stats.num_drafted_nodes and not stats.is_lossy and "draft" not in answer.sources


def _is_coupled(stats: SpeculationStats) -> bool:
    return stats.mode == "auto" and stats.acceptance_rule == "coupled" and not stats.is_lossy
