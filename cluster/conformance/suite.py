"""All checks, one after another, against whatever serves at a client's other end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cluster.conformance.asking import OFF, Asker
from cluster.conformance.deployment import Deployment
from cluster.conformance.equality import EqualityCheck
from cluster.conformance.findings import Finding
from cluster.conformance.goodness import ANSWERS_PER_CALL, CASES, Case, LawCheck
from cluster.conformance.labels import label_of_rule, labels_of
from cluster.conformance.law import find_context
from cluster.conformance.prompts import PROMPTS
from cluster.conformance.repeats import RepeatCheck
from cluster.conformance.settings import Setting, all_settings
from cluster.errors import ConfigError
from outrider import AsyncClient
from outrider.errors import OutriderError, ServerUnavailable
from outrider.types import AcceptanceRule, SamplingParams, WorkerInfo

# Called with a step's name and the number of answers that it asks for; what it returns is told of answers that came.
Begin = Callable[[str, int], Callable[[int], None]]

_NUM_WORDS = 24
_STARVED = (
    "of late its drafts have not been worth a pass's time, so it is hardly ever asked; "
    "where draft_wait_s of [scheduler] is set, it always is"
)
_LABELLED_RULES: tuple[AcceptanceRule, ...] = ("rejection", "typical")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is asked. `num_law_answers`: of each of the law's cases."""

    num_prompts: int = 6
    max_tokens: int = 40
    law_cases: tuple[Case, ...] = CASES
    num_law_answers: int = 512
    alpha: float = 1e-4
    seed: int = 1
    concurrency: int | None = None  # calls at once; None: half of what the server runs at once, 16 at most
    timeout_s: float = 300.0  # of each call


QUICK = Plan(num_prompts=2, max_tokens=12, law_cases=(CASES[0], CASES[2], CASES[3]), num_law_answers=128)


def plan_of(*, is_quick: bool, **given: Any) -> Plan:
    """The plan, with what was given of its fields in place of the default. Raises ConfigError."""
    plan = replace(QUICK if is_quick else Plan(), **{name: value for name, value in given.items() if value is not None})
    if plan.num_prompts > len(PROMPTS):
        raise ConfigError(f"--prompts is {plan.num_prompts}: there are {len(PROMPTS)}")
    if not 0 < plan.alpha < 1:
        raise ConfigError(f"--alpha is {plan.alpha}: a chance is above 0 and below 1, for example 1e-4")
    num_calls = -(-plan.num_law_answers // ANSWERS_PER_CALL)
    return replace(plan, num_law_answers=num_calls * ANSWERS_PER_CALL)


class Suite:
    """`run` asks all of it. Raises ServerUnavailable when the server goes away; other errors become findings."""

    def __init__(self, client: AsyncClient, deployment: Deployment, plan: Plan, begin: Begin) -> None:
        self._client, self._deployment, self._plan, self._begin = client, deployment, plan, begin
        self._prompts = PROMPTS[: plan.num_prompts]

    async def run(self) -> list[Finding]:
        settings = await self._settings()
        return [
            *await self._equality(settings),
            *self._idle_drafters(),
            *await self._labels(),
            *await _guarded("same seed, same answer", "", self._repeats),
            *await _guarded("law", "", self._laws),
        ]

    def _asker(self, step: str, num_answers: int, answers_per_call: int = 1) -> Asker:
        room = min(16, max(1, self._deployment.server.max_running_requests // 2))
        concurrency = self._plan.concurrency or max(1, room // answers_per_call)
        on_answers = self._begin(step, num_answers)
        return Asker(self._client, concurrency=concurrency, timeout_s=self._plan.timeout_s, on_answers=on_answers)

    async def _settings(self) -> tuple[Setting, ...]:
        sampling = SamplingParams(temperature=0, max_tokens=_NUM_WORDS)
        content = self._prompts[0].content(self._deployment.model.has_chat_template)
        [words] = await self._asker("the target's words", 1).ask(content, sampling, OFF)
        return all_settings(words, self._plan.max_tokens)

    async def _equality(self, settings: tuple[Setting, ...]) -> list[Finding]:
        check = EqualityCheck(self._deployment, self._plan.seed, self._plan.max_tokens)
        asker = self._asker("same tokens", check.num_answers(self._prompts, settings))
        compared = await check.run(asker, self._prompts, settings)
        return [*check.findings(compared, settings), labels_of(compared)]

    def _idle_drafters(self) -> list[Finding]:
        """Those that the server names and does not use: nothing that was asked can have shown anything of them."""
        return [
            Finding("same tokens", f"drafter {worker.name}", "not shown", "", _why_idle(worker))
            for worker in self._deployment.server.drafters
            if worker.name not in self._deployment.drafters
        ]

    async def _repeats(self) -> list[Finding]:
        check = RepeatCheck(self._deployment, self._plan.seed, self._plan.max_tokens)
        return await check.run(self._asker("same seed, same answer", check.num_answers(self._prompts)), self._prompts)

    async def _laws(self) -> list[Finding]:
        check = LawCheck(self._plan.law_cases, self._plan.num_law_answers, self._plan.alpha, self._plan.seed)
        single = self._asker("the target's law", check.num_questions)
        law = await check.law(single, await find_context(single, self._deployment))
        asker = self._asker("law", len(check.cases) * check.num_answers, ANSWERS_PER_CALL)
        found: list[Finding] = []
        for case in check.cases:
            found += await _guarded("law", case.name, partial(check.run, asker, law, case))
        return found

    async def _labels(self) -> list[Finding]:
        asker = self._asker("labels", len(_LABELLED_RULES))
        content = self._prompts[0].content(self._deployment.model.has_chat_template)
        found: list[Finding] = []
        for rule in _LABELLED_RULES:
            ask = partial(label_of_rule, asker, content, rule, self._plan.seed, self._plan.max_tokens)
            found += await _guarded("labels", rule, ask)
        return found


def _why_idle(worker: WorkerInfo) -> str:
    reason = worker.detail or (_STARVED if worker.state == "starved" else "")
    return f"it is {worker.state}" + (f": {reason}" if reason else "")


async def _guarded(check: str, subject: str, run: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    """What the server refuses, or fails at, is a finding; that it has gone away is the end."""
    try:
        return await run()
    except ServerUnavailable:
        raise
    except OutriderError as err:
        return [Finding(check, subject, "error", "", err.message)]
