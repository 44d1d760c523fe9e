"""Answers with drafts follow the target's own law: a chi-square test over many seeds, by both lossless rules.

The first token of an answer comes with the prompt's own pass and is never drafted. So what is tested is the first
two tokens, and the first three, each as one outcome.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.conformance.asking import Asker, together
from cluster.conformance.chi_square import chi_square_p_value
from cluster.conformance.findings import Finding, Verdict
from cluster.conformance.law import Context, TargetLaw, Tokens, ask_law, num_questions
from outrider.types import AcceptanceRule, Answer, SamplingParams, Speculation

LENGTHS = (2, 3)


@dataclass(frozen=True, slots=True)
class Case:
    """`max_nodes`: of a draft in one pass; None: what the server takes."""

    rule: AcceptanceRule
    temperature: float
    max_nodes: int | None

    @property
    def name(self) -> str:
        nodes = "" if self.max_nodes is None else f", {self.max_nodes} node{'s' * (self.max_nodes > 1)}"
        return f"{self.rule} at T {self.temperature:g}{nodes}"


# One node is a chain, two leave a token undrafted, and more make a tree in which often every token is drafted.
CASES = (
    Case("coupled", 1.0, 2),
    Case("coupled", 1.5, None),
    Case("rejection", 1.0, 1),
    Case("rejection", 1.0, 2),
    Case("rejection", 1.5, None),
)
ANSWERS_PER_CALL = 16
# Far out, chi-square's tail is thinner than that of real counts. By simulation (20 million samples a case; 2 to 17
# outcomes, each expected ten times or more) the true rate was up to 2.1 times the stated one at 1e-4, 3.7 at 1e-5.
_TAIL_ERROR = 10
_MIN_EXPECTED = 10.0


@dataclass(frozen=True, slots=True)
class LawCheck:
    """`alpha`: the chance that a server which keeps the law fails any of these tests."""

    cases: Sequence[Case]
    num_answers: int  # of each case; a multiple of ANSWERS_PER_CALL
    alpha: float
    seed: int

    @property
    def alpha_of_each(self) -> float:
        return self.alpha / (len(self.cases) * len(LENGTHS) * _TAIL_ERROR)

    @property
    def num_questions(self) -> int:
        return 1 + num_questions(max(LENGTHS))  # the context, and the law behind it

    async def law(self, asker: Asker, context: Context) -> TargetLaw:
        return await ask_law(asker, context, max(LENGTHS))

    async def run(self, asker: Asker, law: TargetLaw, case: Case) -> list[Finding]:
        """One case. Raises OutriderError."""
        calls = range(self.num_answers // ANSWERS_PER_CALL)
        batches = await together(self._ask(asker, law.context, case, call) for call in calls)
        answers = [answer for batch in batches for answer in batch]
        return [self._finding(law, answers, case, length) for length in LENGTHS]

    async def _ask(self, asker: Asker, context: Context, case: Case, call: int) -> list[Answer]:
        sampling = SamplingParams(
            temperature=case.temperature,
            seed=self.seed + call,
            n=ANSWERS_PER_CALL,
            allowed_token_ids=context.allowed,
            max_tokens=max(LENGTHS) + 1,  # an answer's last token is never drafted
        )
        speculation = Speculation(mode="auto", max_nodes=case.max_nodes, acceptance_rule=case.rule)
        return await asker.ask(context.prompt, sampling, speculation)

    def _finding(self, law: TargetLaw, answers: Sequence[Answer], case: Case, length: int) -> Finding:
        expected = law.of_sequences(length, case.temperature)
        counts = Counter(answer.token_ids[:length] for answer in answers)
        num_drafted = sum(answer.sources[:length].count("draft") for answer in answers)
        p_value = chi_square_p_value(counts, expected, _MIN_EXPECTED)
        verdict: Verdict = "passed"
        detail = ""
        if p_value is None:
            verdict, detail = "not shown", "too few answers: ask for more (--answers)"
        elif p_value < self.alpha_of_each:
            verdict = "breach"
            detail = f"p is below {self.alpha_of_each:.2g}; {_furthest_off(counts, expected)}"
        elif not num_drafted:
            verdict, detail = "not shown", "no draft took part"
        return Finding(
            check="law",
            subject=f"{case.name}: {length} tokens",
            verdict=verdict,
            evidence=f"p = {_shown(p_value)} of {len(answers)}, {num_drafted} drafted",
            detail=detail,
            figures={"answers": len(answers), "accepted_tokens": num_drafted}
            | ({} if p_value is None else {"p_value": p_value}),
        )


def _furthest_off(counts: Counter[Tokens], law: Mapping[Tokens, float]) -> str:
    total = counts.total()
    off = {outcome: counts[outcome] - total * law.get(outcome, 0) for outcome in law.keys() | counts.keys()}
    worst = max(off, key=lambda outcome: (abs(off[outcome]), outcome))
    expected = total * law.get(worst, 0)
    return f"furthest off: the tokens {list(worst)} came {counts[worst]} times of {total}, expected {expected:.1f}"


def _shown(p_value: float | None) -> str:
    return "unknown" if p_value is None else f"{p_value:.2g}"
