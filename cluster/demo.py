"""`outriderd demo`: three prompts, each answered by the target alone and then with drafts, side by side.

In float32 both answers must be the same tokens. The last line is one JSON object for scripts:

    requests            prompts, each of which was answered twice
    tokens              of the answers with drafts
    tokens_per_pass     of the target, with drafts; without them it is 1
    tokens_per_s        after the first token, with drafts; tokens_per_s_plain without
    identical_to_plain  whether every pair of answers is the same tokens
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.config import CellConfig
from cluster.default_model import DEFAULT_DRAFT
from cluster.errors import ClusterError
from cluster.launch import Cell, Report
from cluster.signals import run_until_signal
from outrider import AsyncClient
from outrider.types import Answer, Message, SamplingParams, Speculation

_SEED = 2024
_TIMEOUT_S = 300.0
_DRAFTED = "green"

_PASSAGE = (
    "The lighthouse keeper climbed the ninety-two steps every evening at dusk. He lit the lamp, wound the clockwork "
    "and wrote the weather into the log. Then he sat by the window and counted the ships until morning."
)


@dataclass(frozen=True)
class Prompt:
    name: str
    text: str | Sequence[Message]
    temperature: float


PROMPTS = (
    Prompt("chat", [{"role": "user", "content": "Why is the sky blue? Explain it to a child."}], 0.7),
    Prompt("code", [{"role": "user", "content": "Write a Python class Stack with push, pop, peek and size."}], 0.0),
    Prompt(
        "copy",
        [
            {
                "role": "user",
                "content": f"Repeat this text, but with two hundred steps:\n\n{_PASSAGE}",
            }
        ],
        0.0,
    ),
)


@dataclass(frozen=True)
class Comparison:
    """One prompt's two answers."""

    prompt: Prompt
    plain: Answer
    drafted: Answer

    @property
    def is_identical(self) -> bool:
        return self.plain.token_ids == self.drafted.token_ids


def demo_settings() -> dict[str, Any]:
    """The demo's cell: two ranks in float32, where equal tokens are a law, and the default model's own drafters."""
    return {
        "target": {"tensor_parallel": 2, "dtype": "float32"},
        "drafters": [
            {"kind": "model", "name": "draft", "source": str(DEFAULT_DRAFT), "compiled": False},  # it starts sooner
            {"kind": "suffix"},
        ],
        "scheduler": {"listen": "127.0.0.1:0"},
    }


async def run_demo(config: CellConfig, max_tokens: int, report: Report) -> bool:
    """Run the demo on a cell of its own. True when all answers were the same with and without drafts.

    Raises ClusterError when a process of the cell is left at the end.
    """
    cell, comparisons = Cell(config), list[Comparison]()

    async def work() -> None:
        screen = Console(highlight=False)
        async with AsyncClient(cell.endpoint) as client:
            await _warm_up(client)
            for prompt in PROMPTS:
                comparisons.append(await _compare(client, prompt, max_tokens, screen))
        screen.print(_table(comparisons))

    is_done = await run_until_signal(cell, work, report)
    if left := psutil.Process().children(recursive=True):
        raise ClusterError(f"{len(left)} processes of the cell are left: {', '.join(str(p.pid) for p in left)}")
    if not is_done:
        return False
    result = summary(comparisons)
    typer.echo(json.dumps(result))
    return bool(result["identical_to_plain"])


async def _warm_up(client: AsyncClient) -> None:
    """The first passes of a process are slow; they are to count for neither side."""
    sampling = SamplingParams(max_tokens=4, temperature=0.0)
    await client.generate("one two three one two", sampling=sampling, timeout_s=_TIMEOUT_S).result()


async def _compare(client: AsyncClient, prompt: Prompt, max_tokens: int, screen: Console) -> Comparison:
    screen.rule(f"[bold]{prompt.name}[/bold]  temperature {prompt.temperature:g}, seed {_SEED}")
    sampling = SamplingParams(max_tokens=max_tokens, temperature=prompt.temperature, seed=_SEED)
    answers = []
    for title, speculation in (
        ("the target alone", Speculation(mode="off")),
        ("with drafts", Speculation(mode="auto")),
    ):
        screen.print(f"[dim]{title}[/dim]")
        generation = client.generate(prompt.text, sampling=sampling, speculation=speculation, timeout_s=_TIMEOUT_S)
        async for token in generation:
            style = _DRAFTED if token.source == "draft" else ""
            screen.print(Text(token.text, style), end="", soft_wrap=True)
        screen.print("\n")
        answers.append(generation.answer)
    return Comparison(prompt, *answers)


def _table(comparisons: Sequence[Comparison]) -> Table:
    table = Table("prompt", "tokens", "same tokens", "tokens a pass", "tokens/s alone", "tokens/s with drafts", "gain")
    for comparison in comparisons:
        plain, drafted = _speed([comparison.plain]), _speed([comparison.drafted])
        table.add_row(
            comparison.prompt.name,
            str(len(comparison.drafted.token_ids)),
            "[green]yes[/green]" if comparison.is_identical else "[red]NO[/red]",
            f"{comparison.drafted.tokens_per_pass:.2f}",
            f"{plain:.1f}",
            f"{drafted:.1f}",
            f"{drafted / plain:.2f}×",
        )
    return table


def summary(comparisons: Sequence[Comparison]) -> dict[str, int | float | bool]:
    """The JSON line."""
    plain, drafted = [c.plain for c in comparisons], [c.drafted for c in comparisons]
    num_tokens = sum(len(answer.token_ids) for answer in drafted)
    num_passes = sum(answer.speculation.num_passes for answer in drafted)
    return {
        "requests": len(comparisons),
        "tokens": num_tokens,
        "tokens_per_pass": round(num_tokens / num_passes, 3),
        "identical_to_plain": all(comparison.is_identical for comparison in comparisons),
        "tokens_per_s_plain": round(_speed(plain), 2),
        "tokens_per_s": round(_speed(drafted), 2),
        "drafted_nodes": sum(answer.speculation.num_drafted_nodes for answer in drafted),
        "accepted_tokens": sum(answer.speculation.num_accepted_tokens for answer in drafted),
    }


def _speed(answers: Sequence[Answer]) -> float:
    """Tokens a second after the first token, which only tells how long the prompt was."""
    num_tokens = sum(len(answer.token_ids) - 1 for answer in answers)
    seconds = sum(answer.usage.duration_s - answer.usage.time_to_first_token_s for answer in answers)
    return num_tokens / seconds if seconds > 0 else 0.0
