"""The same tokens with drafts and without, under every sampling setting, with all drafters and with each alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cluster.conformance.asking import OFF, Asker, together
from cluster.conformance.deployment import ALL_DRAFTERS, Deployment
from cluster.conformance.difference import Difference, Kind, difference
from cluster.conformance.findings import Finding, Verdict
from cluster.conformance.prompts import Prompt
from cluster.conformance.settings import Setting
from outrider.errors import NoTokenLeft, OutriderError, ServerUnavailable
from outrider.types import Answer, SamplingParams

_CHECK = "same tokens"


@dataclass(frozen=True, slots=True)
class Pair:
    """One answer without drafts and the one with them."""

    prompt: Prompt
    setting: Setting
    way: str  # which drafters
    plain: Answer
    drafted: Answer


@dataclass(slots=True)
class Compared:
    """What came of a prompt under a setting."""

    pairs: list[Pair] = field(default_factory=list)
    failures: list[tuple[str, OutriderError]] = field(default_factory=list)  # how it was asked, what came
    no_answer: str = ""  # why the target alone has none: then there is nothing to compare


@dataclass(frozen=True, slots=True)
class EqualityCheck:
    deployment: Deployment
    seed: int
    max_tokens: int

    def num_answers(self, prompts: Sequence[Prompt], settings: Sequence[Setting]) -> int:
        return len(prompts) * sum(setting.sampling.n or 1 for setting in settings) * (1 + len(self.deployment.ways))

    async def run(self, asker: Asker, prompts: Sequence[Prompt], settings: Sequence[Setting]) -> list[Compared]:
        """In the order of the settings, and of the prompts within each. Raises ServerUnavailable."""
        return await together(self._compare(asker, prompt, setting) for setting in settings for prompt in prompts)

    async def _compare(self, asker: Asker, prompt: Prompt, setting: Setting) -> Compared:
        content = prompt.content(self.deployment.model.has_chat_template)
        sampling = self.sampling(setting)
        compared = Compared()
        asked = "without drafts"
        try:
            plain = await asker.ask(content, sampling, OFF)
            for way, speculation in self.deployment.ways.items():
                asked = f"with drafters: {way}"
                drafted = await asker.ask(content, sampling, speculation)
                compared.pairs += [Pair(prompt, setting, way, *pair) for pair in zip(plain, drafted, strict=True)]
        except ServerUnavailable:
            raise
        except OutriderError as err:
            if isinstance(err, NoTokenLeft) and not compared.pairs and asked == "without drafts":
                compared.no_answer = err.message
            else:
                compared.failures.append((asked, err))
        return compared

    def sampling(self, setting: Setting) -> SamplingParams:
        """With log-probabilities where it may have to be told whether a difference is rounding."""
        sampling = setting.with_seed(self.seed, self.max_tokens)
        return sampling if self.deployment.is_strict or sampling.logprobs else replace(sampling, logprobs=0)

    def findings(self, compared: Sequence[Compared], settings: Sequence[Setting]) -> list[Finding]:
        """One for each setting, over all ways to draft, and one for each way, over all settings."""
        per_setting = len(compared) // len(settings)
        found = [
            self._of_setting(setting, compared[i * per_setting : (i + 1) * per_setting])
            for i, setting in enumerate(settings)
        ]
        pairs = [pair for each in compared for pair in each.pairs]
        return found + [
            self._of_pairs(
                _drafters(way), [pair for pair in pairs if pair.way == way], f"no draft of {way} was accepted"
            )
            for way in self.deployment.ways
        ]

    def _of_setting(self, setting: Setting, compared: Sequence[Compared]) -> Finding:
        failures = [failure for each in compared for failure in each.failures]
        pairs = [pair for each in compared for pair in each.pairs]
        reasons = [each.no_answer for each in compared if each.no_answer]
        nothing = f"the target alone has no answer: {reasons[0]}" if reasons and not pairs else "no draft was accepted"
        finding = self._of_pairs(setting.name, pairs, nothing)
        if failures and finding.verdict != "breach":
            asked, err = failures[0]
            return replace(finding, verdict="error", detail=f"{asked}: {err.message}")
        return finding

    def _of_pairs(self, subject: str, pairs: Sequence[Pair], nothing: str) -> Finding:
        differing = [(pair, found) for pair in pairs if (found := self._difference(pair)) is not None]
        by_kind: dict[Kind, list[tuple[Pair, Difference]]] = {"breach": [], "unclear": [], "within rounding": []}
        for pair, found in differing:
            kind = found.kind(self.deployment.model.dtype, is_strict=self.deployment.is_strict)
            by_kind[kind].append((pair, found))
        num_accepted = sum(pair.drafted.speculation.num_accepted_tokens for pair in pairs)
        told = "; ".join(_told(kind, places) for kind, places in by_kind.items() if places)
        verdict: Verdict = "passed"
        if by_kind["breach"]:
            verdict = "breach"
        elif by_kind["unclear"] or not num_accepted:
            verdict, told = "not shown", told or nothing
        return Finding(
            check=_CHECK,
            subject=subject,
            verdict=verdict,
            evidence=f"{len(pairs) - len(differing)} of {len(pairs)} equal, {num_accepted} drafted",
            detail=told,
            figures={
                "compared": len(pairs),
                "equal": len(pairs) - len(differing),
                "within_rounding": len(by_kind["within rounding"]),
                "unclear": len(by_kind["unclear"]),
                "accepted_tokens": num_accepted,
            },
        )

    def _difference(self, pair: Pair) -> Difference | None:
        return difference(pair.plain, pair.drafted, pair.setting, self.deployment.model.vocab_size)


def _drafters(way: str) -> str:
    return "all drafters" if way == ALL_DRAFTERS else f"drafter {way} alone"


def _told(kind: Kind, places: Sequence[tuple[Pair, Difference]]) -> str:
    """How many there are, and the first of them."""
    pair, found = places[0]
    verb = "differs" if len(places) == 1 else "differ"
    what = {
        "breach": "",
        "unclear": ", and it can't be told whether by rounding",
        "within rounding": " within rounding",
    }
    where = f"prompt {pair.prompt.name!r}, {pair.setting.name}, "
    where += found.told("without drafts", f"with drafters: {pair.way}")
    return f"{len(places)} {verb}{what[kind]}; first: {where}"
