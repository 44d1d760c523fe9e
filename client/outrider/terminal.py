"""What the `outrider` command shows: streamed text or JSON lines, a summary, tables, one line for an error."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from rich.table import Table

from outrider.client import Generation
from outrider.errors import DeadlineExceeded, InternalError, OutriderError, Overloaded, ServerUnavailable
from outrider.types import Answer, ModelInfo, ServerInfo, WorkerInfo

# Sent to a terminal, control characters in a model's text could move the cursor or retitle the window.
_CONTROL_CHARACTERS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}

# How gRPC's own messages begin when no connection came about; other UNAVAILABLEs are a server's words.
_NOT_REACHED = ("failed to connect to all addresses", "DNS resolution failed")


def show_answer(generation: Generation, *, as_json: bool) -> Answer:
    """Shows the answer while it comes, and returns it."""
    return _show_json(generation) if as_json else _show_text(generation)


def _show_json(generation: Generation) -> Answer:
    chunks = generation.chunks()
    next(chunks, None)  # the server's first message, after which the start is known
    if generation.started is not None:
        show_object({"event": "started", **asdict(generation.started)})
    for chunk in chunks:
        if chunk:
            show_object(
                {
                    "event": "tokens",
                    "ids": [token.id for token in chunk],
                    "texts": [token.text for token in chunk],
                    "sources": [token.source for token in chunk],
                }
            )
    show_object({"event": "finished", **asdict(generation.answer)})
    return generation.answer


def _show_text(generation: Generation) -> Answer:
    """Drafted tokens are green, the target's own are not. Elsewhere than in a terminal: the text and nothing else."""
    screen = Console()
    has_colour = screen.is_terminal and screen.color_system is not None and not screen.no_color
    drafted = Style(color="green") if has_colour else Style.null()
    last = ""
    for token in generation:
        text = token.text.translate(_CONTROL_CHARACTERS) if screen.is_terminal else token.text
        if text:
            last = text
            style = drafted if token.source == "draft" else Style.null()
            typer.echo(style.render(text, color_system=ColorSystem.STANDARD), nl=False)
    if not last.endswith("\n"):
        typer.echo()
    errors = Console(stderr=True)
    if errors.is_terminal:
        errors.print(summary(generation.answer), style="dim", highlight=False, soft_wrap=True)
    return generation.answer


def summary(answer: Answer) -> str:
    num_tokens = len(answer.token_ids)
    tokens_per_s = num_tokens / answer.usage.duration_s if answer.usage.duration_s else 0.0
    drafted = answer.sources.count("draft") / num_tokens if num_tokens else 0.0
    return (
        f"{num_tokens} tokens · {answer.tokens_per_pass:.2f} a pass · {tokens_per_s:.1f} a second"
        f" · {drafted:.0%} drafted · seed {answer.seed}"
    )


def show_object(value: object) -> None:
    """One JSON object on one line, flushed."""
    typer.echo(json.dumps(value))


def show_info(model: ModelInfo, server: ServerInfo, *, as_json: bool) -> None:
    if as_json:
        show_object({"model": asdict(model), "server": asdict(server)})
        return
    screen = Console()
    screen.print(
        _pairs(
            "Model",
            {
                "name": model.model,
                "dtype": model.dtype,
                "context": f"{model.max_context} tokens",
                "vocabulary": f"{model.vocab_size} tokens",
                "chat template": "yes" if model.has_chat_template else "no",
            },
        )
    )
    screen.print(
        _pairs(
            "Server",
            {
                "state": server.state,
                "version": server.version,
                "running": f"{server.num_running_requests} of {server.max_running_requests} requests",
                "queued": f"{server.num_queued_requests} of {server.max_queued_requests} requests",
                "KV blocks free": f"{server.num_free_kv_blocks} of {server.num_kv_blocks}",
                "draft nodes": f"at most {server.max_nodes_per_pass} of a request in a pass",
            },
        )
    )
    screen.print(_workers((*server.targets, *server.drafters)))


def _pairs(title: str, pairs: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in pairs.items():
        table.add_row(name, value)
    return table


def _workers(workers: tuple[WorkerInfo, ...]) -> Table:
    table = Table("name", "kind", "model", "state", "ranks", "detail", title="Workers", title_justify="left")
    for worker in workers:
        table.add_row(worker.name, worker.kind, worker.model, worker.state, str(worker.num_ranks), worker.detail)
    return table


def show_error(error: OutriderError, server: str) -> None:
    typer.echo(f"outrider: {explain(error, server)}", err=True)


def explain(error: OutriderError, server: str) -> str:
    """One line: what is wrong, and the way out where there is one."""
    message = " ".join(error.message.split())
    match error:
        case ServerUnavailable() if message.startswith(_NOT_REACHED):
            return f"cannot reach {server}: is `outriderd up` running?"
        case ServerUnavailable():
            return f"{server} is not available: {message}"
        case Overloaded(retry_after_s=float(seconds)):
            return f"{server} is overloaded: {message}; try again in {seconds:g} s"
        case Overloaded():
            return f"{server} is overloaded: {message}"
        case DeadlineExceeded() if message == "Deadline Exceeded":  # gRPC's own words, which name nothing
            return f"{server} did not finish in time: --timeout allows more"
        case InternalError():
            return f"{server} failed: {message}"
        case _:
            return message
