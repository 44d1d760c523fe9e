"""The same seed gives the same answer: asked again alone, and in a crowd, whose passes have another shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.conformance.asking import AUTO, Asker, together
from cluster.conformance.deployment import Deployment
from cluster.conformance.difference import Difference, difference
from cluster.conformance.findings import Finding, Verdict
from cluster.conformance.prompts import Prompt
from cluster.conformance.settings import Setting
from outrider.types import Answer, SamplingParams

NUM_AT_ONCE = 4  # times each prompt is asked in the crowd
_SETTING = Setting("temperature 1", SamplingParams(temperature=1.0, logprobs=0), has_plain_choice=True)


@dataclass(frozen=True, slots=True)
class RepeatCheck:
    deployment: Deployment
    seed: int
    max_tokens: int

    def num_answers(self, prompts: Sequence[Prompt]) -> int:
        return len(prompts) * (2 + NUM_AT_ONCE)

    async def run(self, asker: Asker, prompts: Sequence[Prompt]) -> list[Finding]:
        """Raises OutriderError."""
        first = [await self._ask(asker, prompt) for prompt in prompts]
        again = [await self._ask(asker, prompt) for prompt in prompts]
        crowd = await together(self._ask(asker, prompt) for _ in range(NUM_AT_ONCE) for prompt in prompts)
        return [
            self._finding("asked again", prompts, first, again),
            self._finding("asked all at once", list(prompts) * NUM_AT_ONCE, first * NUM_AT_ONCE, crowd),
        ]

    async def _ask(self, asker: Asker, prompt: Prompt) -> Answer:
        content = prompt.content(self.deployment.model.has_chat_template)
        [answer] = await asker.ask(content, _SETTING.with_seed(self.seed, self.max_tokens), AUTO)
        return answer

    def _finding(
        self, subject: str, prompts: Sequence[Prompt], first: Sequence[Answer], again: Sequence[Answer]
    ) -> Finding:
        differing: list[tuple[Prompt, Difference]] = []
        for prompt, one, other in zip(prompts, first, again, strict=True):
            found = difference(one, other, _SETTING, self.deployment.model.vocab_size)
            if found is not None:
                differing.append((prompt, found))
        kinds = [found.kind(self.deployment.model.dtype, is_strict=self.deployment.is_strict) for _, found in differing]
        verdict: Verdict = "breach" if "breach" in kinds else "not shown" if "unclear" in kinds else "passed"
        detail = ""
        if differing:
            prompt, found = differing[kinds.index("breach") if "breach" in kinds else 0]
            detail = f"{len(differing)} differ; prompt {prompt.name!r}, {found.told('at first', 'then')}"
        return Finding(
            check="same seed, same answer",
            subject=subject,
            verdict=verdict,
            evidence=f"{len(again) - len(differing)} of {len(again)} equal",
            detail=detail,
            figures={
                "compared": len(again),
                "equal": len(again) - len(differing),
                "within_rounding": kinds.count("within rounding"),
            },
        )
