"""What the `outrider` command shows: streamed text or JSON lines, a summary, tables, one line for an error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import typer
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from outrider.connection import is_name
from outrider.errors import InternalError, OutriderError, Overloaded, ServerUnavailable
from outrider.generation import Generation
from outrider.tables import print_pairs, print_table
from outrider.types import Answer, ModelInfo, Scaling, ServerInfo, Token, WorkerInfo

# Sent to a terminal, control characters in a model's text could move the cursor or retitle the window.
_CONTROL_CHARACTERS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}

_WORKER_COLUMNS = (
    "name",
    "kind",
    "model",
    "address",
    "state",
    "ranks",
    "running",
    "KV blocks free",
    "right guesses",
    "detail",
)

# How gRPC's own messages begin when no connection came about; other UNAVAILABLEs are a server's words.
_NOT_TRUSTED = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed")
_HUNG_UP = ("Socket closed", "Connection reset by peer", "WRONG_VERSION_NUMBER")
_NO_ADDRESS_LEFT = "failed to connect to all addresses"
_NOT_REACHED = (_NO_ADDRESS_LEFT, "DNS resolution failed")


def show_answer(generation: Generation, *, as_json: bool) -> Answer:
    """Shows the answer while it comes, and returns it."""
    if as_json:
        _show_events(generation)
    else:
        _show_text(generation)
        _show_notes(generation.answer)
    return generation.answer


def show_answers(answers: Sequence[Answer], *, as_json: bool) -> None:
    """Shows several answers to one prompt, one after another: as JSON the last event of each, otherwise its text."""
    for index, answer in enumerate(answers):
        if as_json:
            show_object({"event": "finished", "index": index, **asdict(answer)})
        else:
            typer.echo(f"── {index + 1} of {len(answers)} · seed {answer.seed} ──")
            _show_text(answer.tokens)
            _show_notes(answer)


def _show_events(generation: Generation) -> None:
    chunks = generation.chunks()
    next(chunks, None)  # the server's first message, after which the start is known
    if generation.started is not None:
        show_object({"event": "started", **asdict(generation.started)})
    for chunk in chunks:
        if chunk:
            show_object(_tokens_event(chunk))
    show_object({"event": "finished", **asdict(generation.answer)})


def _tokens_event(chunk: Sequence[Token]) -> dict[str, object]:
    event: dict[str, object] = {
        "event": "tokens",
        "ids": [token.id for token in chunk],
        "texts": [token.text for token in chunk],
        "sources": [token.source for token in chunk],
    }
    logprobs = [asdict(token.logprobs) for token in chunk if token.logprobs is not None]
    return {**event, "logprobs": logprobs} if logprobs else event


def _show_text(tokens: Iterable[Token]) -> None:
    """Drafted tokens are green, the target's own are not. Elsewhere than in a terminal: the text and nothing else.

    Where the tokens end in an error, their line is ended for what is said of it.
    """
    screen = Console()
    has_colour = screen.is_terminal and screen.color_system is not None and not screen.no_color
    drafted = Style(color="green") if has_colour else Style.null()
    last = ""
    try:
        for token in tokens:
            text = token.text.translate(_CONTROL_CHARACTERS) if screen.is_terminal else token.text
            if text:
                last = text
                style = drafted if token.source == "draft" else Style.null()
                typer.echo(style.render(text, color_system=ColorSystem.STANDARD), nl=False)
    except OutriderError:
        if last and not last.endswith("\n"):
            typer.echo()
        raise
    if not last.endswith("\n"):
        typer.echo()


def _show_notes(answer: Answer) -> None:
    """On stderr: log-probabilities where they were asked for, and in a terminal a summary."""
    errors = Console(stderr=True)
    if answer.logprobs is not None:
        errors.print(_logprobs(answer.tokens))
    if errors.is_terminal:
        errors.print(summary(answer), style="dim", highlight=False, soft_wrap=True)


def _logprobs(tokens: Iterable[Token]) -> Table:
    table = Table("token", "id", "logprob", "source", "likeliest: id logprob", box=None, pad_edge=False)
    for token in tokens:
        if token.logprobs is not None:
            top = zip(token.logprobs.top_ids, token.logprobs.top_logprobs, strict=True)
            table.add_row(
                Text(repr(token.text)),  # repr leaves no control character, Text no markup
                str(token.id),
                f"{token.logprobs.logprob:.3f}",
                token.source,
                "  ".join(f"{token_id} {logprob:.3f}" for token_id, logprob in top),
            )
    return table


def summary(answer: Answer) -> str:
    num_tokens = len(answer.token_ids)
    tokens_per_s = num_tokens / answer.usage.duration_s if answer.usage.duration_s else 0.0
    drafted = answer.sources.count("draft") / num_tokens if num_tokens else 0.0
    return (
        f"{num_tokens} tokens · {answer.tokens_per_pass:.2f} a pass · {tokens_per_s:.1f} a second"
        f" · {drafted:.0%} drafted · seed {answer.seed}" + (" · lossy" if answer.speculation.is_lossy else "")
    )


def show_object(value: object) -> None:
    """One JSON object on one line, flushed."""
    typer.echo(json.dumps(value))


def show_info(model: ModelInfo, server: ServerInfo, *, as_json: bool) -> None:
    if as_json:
        show_object({"model": asdict(model), "server": asdict(server)})
        return
    print_pairs(
        "Model",
        {
            "name": model.model,
            "dtype": model.dtype,
            "context": f"{model.max_context} tokens",
            "vocabulary": f"{model.vocab_size} tokens",
            "chat template": "yes" if model.has_chat_template else "no",
        },
    )
    print_pairs(
        "Server",
        {
            "state": server.state,
            "version": server.version,
            "running": f"{server.num_running_requests} of {server.max_running_requests} requests",
            "queued": f"{server.num_queued_requests} of {server.max_queued_requests} requests",
            "KV blocks free": f"{server.num_free_kv_blocks} of {server.num_kv_blocks}",
            "target": f"{server.num_passes} passes; {_bubble(server)}",
            **_groups(server.scaling),
            "draft nodes": f"at most {server.max_nodes_per_pass} of a request in a pass",
        },
    )
    print_table("Workers", _WORKER_COLUMNS, list(map(_worker, (*server.targets, *server.drafters))))


def _bubble(server: ServerInfo) -> str:
    wanted_s = server.busy_s + server.bubble_s
    return f"idle {server.bubble_s / wanted_s:.1%} of the time that requests ran" if wanted_s else "not asked yet"


def _groups(scaling: Scaling) -> dict[str, str]:
    """How many there are and were, where their number is scaled."""
    pool = scaling.target
    if pool is None or pool.min_groups == pool.max_groups:
        return {}
    wanted = f"{pool.num_wanted} wanted of {pool.min_groups} to {pool.max_groups}: {pool.reason}"
    rows = {"target groups": f"{pool.num_present} serve, {pool.num_draining} drain; {wanted}"}
    last = next((each for each in scaling.decisions if each.pool == "target groups"), None)
    if last is not None:
        what = "would have gone" if scaling.is_dry_run else "went"
        rows["last change"] = f"{what} from {last.num_before} to {last.num_after}: {last.reason}"
    return rows


def _worker(worker: WorkerInfo) -> tuple[str, ...]:
    """Its values of _WORKER_COLUMNS."""
    right = f"{worker.acceptance:.0%}" if worker.num_verdicts else ""
    is_target = worker.kind == "target"
    running = str(worker.num_running_requests) if is_target else ""
    blocks = f"{worker.num_free_kv_blocks} of {worker.num_kv_blocks}" if is_target else ""
    known = (worker.name, worker.kind, worker.model, worker.address, worker.state, str(worker.num_ranks))
    return (*known, running, blocks, right, worker.detail)


def show_error(error: OutriderError, server: str) -> None:
    typer.echo(f"outrider: {explain(error, server)}", err=True)


def explain(error: OutriderError, server: str) -> str:
    """One line: what is wrong, and the way out where there is one."""
    message = " ".join(error.message.split())
    match error:
        case ServerUnavailable() if any(words in message for words in _NOT_TRUSTED):
            return (
                f"{server} shows a certificate that is not trusted, for --tls-ca or --tls-name: {_last_words(message)}"
            )
        case ServerUnavailable() if message.startswith(_NOT_REACHED) and any(words in message for words in _HUNG_UP):
            return f"{server} hangs up: one side encrypts and the other does not, or it does not accept your --tls-cert"
        case ServerUnavailable() if message.startswith(_NO_ADDRESS_LEFT) and is_name(server):
            return (
                f"no connection to {server}: is `outriderd up` running, and do both sides encrypt, or neither, with "
                "--tls-ca and --tls-name that fit? gRPC tells only why the last of a name's addresses failed; "
                f"an address, as in --server 127.0.0.1:{server.rpartition(':')[2]}, tells which it is"
            )
        case ServerUnavailable() if message.startswith(_NOT_REACHED):
            return f"cannot reach {server}: is `outriderd up` running?"
        case ServerUnavailable():
            return f"{server} is not available: {message}"
        case Overloaded(retry_after_s=float(seconds)):
            return f"{server} is overloaded: {message}; try again in {seconds:g} s"
        case Overloaded():
            return f"{server} is overloaded: {message}"
        case InternalError():
            return f"{server} failed: {message}"
        case _:
            return message


def _last_words(message: str) -> str:
    """OpenSSL says the reason last."""
    return message.removesuffix(": OK").rpartition(": ")[2]
