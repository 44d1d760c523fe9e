"""The `outriderd` command: fetch a model, run a cell, show what it can do.

Exit codes: 0 after a clean end, 1 when something failed (one paragraph on stderr says what), 2 for a wrong flag.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from cluster.announcement import announcement
from cluster.config import CellConfig, load_config, parse_drafters
from cluster.default_model import fetch_default_model, with_model
from cluster.errors import ConfigError
from cluster.launch import Cell, Report
from cluster.signals import run_until_signal
from outrider.access_options import AccessOptions
from outrider.client import DEFAULT_SERVER
from outrider.errors import OutriderError
from outrider.terminal import explain
from outrider.with_options import with_options

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Run Outrider: speculative decoding across machines."
)
_stderr = Console(stderr=True, highlight=False)

CACHE_VARIABLE = "OUTRIDER_CACHE"

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file; flags win over it.")]
Target = Annotated[str | None, typer.Option(help="Folder, GGUF file or hub name. Default: SmolLM2-135M-Instruct.")]
TensorParallel = Annotated[int | None, typer.Option(help="Ranks that share the target. Default: 1.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16. Default: auto, the checkpoint's.")]
Compiled = Annotated[
    bool | None, typer.Option(help="Compile the target's forward: starts later, runs faster. Default: compiled.")
]
Exact = Annotated[bool | None, typer.Option(help="Same logits in every pass, also in bfloat16, or no start.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda, of the target. Default: cpu.")]
Drafter = Annotated[
    list[str] | None,
    typer.Option(
        help="ngram, suffix, model: or universal:PATH_OR_HUB_NAME, class:MODULE:NAME, or NAME= before one; or none. "
        "May be repeated. Default: draft (a small model) and suffix with the default target, else ngram."
    ),
]
Listen = Annotated[
    str | None, typer.Option(help="HOST:PORT for clients; port 0 picks a free one. Default: 127.0.0.1:50051.")
]


@app.command()
def up(
    config: ConfigFile = None,
    target: Target = None,
    tensor_parallel: TensorParallel = None,
    dtype: Dtype = None,
    device: Device = None,
    compiled: Compiled = None,
    exact: Exact = None,
    drafter: Drafter = None,
    listen: Listen = None,
) -> None:
    """Start a cell on this machine and serve until Ctrl-C or SIGTERM, which drain it; a second one ends it at once."""
    with _failures_end_the_command():
        of_target = {
            "model": target,
            "tensor_parallel": tensor_parallel,
            "dtype": dtype,
            "device": device,
            "compiled": compiled,
            "exact": exact,
        }
        flags = _flags(of_target, drafter, listen)
        with _progress() as report:
            settings = with_model(load_config(config, flags), report)
        cell = Cell(settings)
        asyncio.run(run_until_signal(cell, lambda: _announce_and_wait(cell), _print_line))


@app.command()
def fetch(cache: Annotated[Path | None, typer.Option(help="Folder to keep the model in.")] = None) -> None:
    """Download the default model and convert it, so that the first `up` need not."""
    with _failures_end_the_command():
        settings = load_config(None, _cache_flag(cache))
        with _progress() as report:
            gguf = fetch_default_model(settings.cache_dir, report)
            report("Converting it")
            from workers.engine.checkpoint import prepare_checkpoint

            checkpoint = prepare_checkpoint(str(gguf), cache_dir=settings.cache_dir)
        typer.echo(checkpoint.folder)


@app.command()
def token(
    tenant: Annotated[str, typer.Argument(help="Whose it is: letters, digits, dots, dashes.")],
) -> None:
    """Make a bearer token for a tenant. It is shown once, here; the cell's tokens file gets only its hash.

    Example: outriderd token search >> tokens.toml
    """
    from cluster.new_token import token_and_entry

    with _failures_end_the_command():
        secret, entry = token_and_entry(tenant)
        typer.echo(entry)
        _stderr.print(f"The token of {tenant}, which nobody can show again: {secret}", soft_wrap=True, markup=False)


@app.command()
def demo(
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens per answer.")] = 64,
    cache: Annotated[Path | None, typer.Option(help="Folder to keep the model in.")] = None,
) -> None:
    """Answer three prompts with and without drafts, on a cell of two target ranks, and compare. About three minutes."""
    from cluster.demo import demo_settings, run_demo

    with _failures_end_the_command():
        with _progress() as report:
            settings = with_model(load_config(None, demo_settings() | _cache_flag(cache)), report)
        is_identical = asyncio.run(run_demo(settings, max_tokens, _print_line))
        raise typer.Exit(0 if is_identical else 1)


@app.command()
@with_options
def status(
    options: AccessOptions,
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The cell's address for clients.")] = DEFAULT_SERVER,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Show a running cell's target groups and drafters: how many there are, and why that many are wanted.

    Example: outriderd status --server localhost:50051
    """
    from cluster.status import show_status

    with _failures_end_the_command(server):
        show_status(server, options.access(), as_json=as_json)


@app.command("verify-lossless")
@with_options
def verify_lossless(
    options: AccessOptions,
    server: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The deployment to verify. Unset: a cell in this process.")
    ] = None,
    target: Target = None,
    drafter: Drafter = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the cell in this process: auto, float32, bfloat16, float16. Unset: float32.")
    ] = None,
    device: Device = None,
    exact: Exact = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer prompts and seeds: about a minute.")] = False,
    prompts: Annotated[int | None, typer.Option(min=1, help="Prompts, 12 at most. Unset: 6; quick: 2.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Tokens of an answer. Unset: 40; quick: 12.")] = None,
    answers: Annotated[
        int | None, typer.Option(min=16, help="Answers of each test of the law. Unset: 512; quick: 128.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Chance that a lossless deployment fails the law's tests.")] = 1e-4,
    seed: Annotated[int, typer.Option(min=0, max=2**63, help="Where the seeds begin. Other seeds look elsewhere.")] = 1,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Calls at once. Unset: 16 at most.")] = None,
    timeout: Annotated[float, typer.Option(min=1.0, metavar="SECONDS", help="Of each call.")] = 300.0,
    strict: Annotated[bool, typer.Option("--strict", help="Rounding in 16 bits excuses no other token.")] = False,
    require_drafts: Annotated[
        bool, typer.Option("--require-drafts", help="Fail where a check shows nothing since no draft took part.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Try what a deployment promises: with drafts, the same tokens for a seed, and answers of the target's own law.

    Asks a running deployment (--server), or a cell that runs in this process for as long as it takes: --target,
    --drafter, --dtype, --device and --exact say which, as in `up`. Verdicts: passed; not shown (nothing wrong, but
    no draft took part, or rounding can't be told from an error); breach; error (the server refused what a check
    needs, and says why). Ends with 0, with 1 for a breach or an error, with 130 after Ctrl-C.
    """
    from cluster.conformance.command import Verification, verify
    from cluster.conformance.suite import plan_of

    with _failures_end_the_command(server):
        of_target = {"model": target, "dtype": dtype, "device": device, "exact": exact}
        plan = plan_of(
            is_quick=quick,
            num_prompts=prompts,
            max_tokens=max_tokens,
            num_law_answers=answers,
            alpha=alpha,
            seed=seed,
            concurrency=concurrency,
            timeout_s=timeout,
        )
        where = _where(server, of_target, drafter)
        raise typer.Exit(
            verify(
                Verification(
                    where=where,
                    access=options.access(),
                    plan=plan,
                    is_strict=strict or bool(exact),
                    requires_drafts=require_drafts,
                    as_json=as_json,
                )
            )
        )


@app.command()
def distill(
    output: Annotated[Path, typer.Argument(help="A new folder, for the draft model.")],
    target: Target = None,
    work: Annotated[Path | None, typer.Option(help="Folder for what is unfinished. Unset: OUTPUT.work.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Of the target's answers to learn from.")] = 2_000_000,
    layers: Annotated[
        str | None, typer.Option(help="Of the target's to start with: 0,1,2,3. Unset: the first 4.")
    ] = None,
    start_from: Annotated[Path | None, typer.Option(help="A draft model to go on with, instead of layers.")] = None,
    vocab_tokens: Annotated[int, typer.Option(min=2, help="How many tokens it can propose, the commonest.")] = 12288,
    loss: Annotated[str, typer.Option(help="kl, tv (total variation) or both.")] = "kl",
    epochs: Annotated[int, typer.Option(min=1, help="Times that it learns from each answer.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="At its highest.")] = 1e-3,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Of a step, on each rank.")] = 2048,
    seed: Annotated[int, typer.Option(help="Of prompts, answers and order.")] = 0,
    gguf: Annotated[Path | None, typer.Option(help="Write the model as a GGUF file too.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the target: auto, float32, bfloat16 or float16.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Unset: torch's own choice.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder to keep models in.")] = None,
) -> None:
    """Make a draft model for a target: it answers prompts, and some of its own layers learn to say the same.

    What is done is kept: after Ctrl-C, or a kill, the same command goes on. On several GPUs:
    torchrun --nproc-per-node N --no-python outriderd distill ... --device cuda

    Example: outriderd distill my-draft --tokens 500000
    """
    with _failures_end_the_command():
        settings = load_config(None, _flags({"model": target}, None, None) | _cache_flag(cache))
        with _progress() as report:
            settings = with_model(settings, report)
        from cluster.distillation import run
        from workers.training.distill import DistillConfig, parse_layers
        from workers.training.train import TrainConfig

        assert settings.target.model is not None
        config = DistillConfig(
            target=settings.target.model,
            output=output,
            work=work or output.with_name(output.name + ".work"),
            num_tokens=tokens,
            layers=parse_layers(layers),
            start_from=start_from,
            vocab_tokens=vocab_tokens,
            loss=loss,
            seed=seed,
            device=device,
            dtype=dtype,
            threads=threads,
            cache_dir=settings.cache_dir,
            training=TrainConfig(epochs=epochs, learning_rate=learning_rate, batch_tokens=batch_tokens, seed=seed),
        )
        raise typer.Exit(run(config, gguf))


@app.command()
def simulate(
    scenario: Annotated[str | None, typer.Argument(help="A TOML file, or a bundled scenario's name.")] = None,
    compare: Annotated[
        str | None,
        typer.Option(help="plain,sequential,groups,run-ahead,outrider,best-fixed on the same questions."),
    ] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(help="concurrency=1,8,32 or rtt-ms=0.5,10 or drafters=1,4; may be repeated.")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="Virtual, measured. Unset: the scenario's.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw goodput and bubble into this PNG.")] = None,
    faults: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Run N schedules of faults against the scheduler's core.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the scenario; or of the first schedule of faults, 0 where unset.")
    ] = None,
    trace: Annotated[
        int | None, typer.Option(min=1, metavar="EVENTS", help="Print the last events of the schedule of --seed alone.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Unset: one for each core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Run the scheduler's core under a virtual clock, with modelled workers, network and users.

    With a SCENARIO it measures: goodput, latencies, the bubble, cost. With --faults it tries the core in seeded
    schedules of crashes, delays, partitions and nonsense, compares every token with the true one, and ends with 1
    where a token was lost, repeated or wrong, or anything was leaked, never ended or broke.

    Example: outriderd simulate 70b-trained --compare plain,sequential,outrider --sweep concurrency=1,8,32
    """
    from cluster.simulate import replay, simulate_faults
    from cluster.simulate_load import bundled, load_scenario, parse_axes, parse_columns, simulate_load

    with _failures_end_the_command():
        if (scenario is None) == (faults is None):
            raise ConfigError(f"give either --faults N or a scenario: a TOML file, or one of {', '.join(bundled())}")
        if faults is not None and trace is not None:
            raise typer.Exit(replay(seed or 0, trace))
        if faults is not None:
            raise typer.Exit(simulate_faults(faults, seed or 0, processes, as_json=as_json))
        assert scenario is not None
        settings = load_scenario(scenario, seed=seed, duration_s=duration)
        simulate_load(settings, parse_columns(compare), parse_axes(sweep or []), processes, plot, as_json=as_json)


def _where(server: str | None, of_target: Mapping[str, Any], drafter: list[str] | None) -> str | CellConfig:
    """The deployment to verify, or the cell to run for it. Raises ConfigError where both are named."""
    from cluster.conformance.local import local_flags

    if server is None:
        with _progress() as report:
            return with_model(load_config(None, local_flags(_flags(of_target, drafter, None))), report)
    named = [f"--{'target' if key == 'model' else key}" for key, value in of_target.items() if value is not None]
    named += ["--drafter"] if drafter else []
    if named:
        raise ConfigError(f"--server is {server!r}, and {named[0]} is given too: it belongs to a cell in this process")
    return server


async def _announce_and_wait(cell: Cell) -> None:
    for line in announcement(cell.config, cell.endpoint, cell.metrics_address):
        typer.echo(line)
    await cell.wait()


@contextmanager
def _failures_end_the_command(server: str | None = None) -> Iterator[None]:
    """Our own errors become one paragraph on stderr and exit code 1; anything else is a defect and shows itself.

    `server`: a running one that is asked, and may be what the error is about.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    # Until a cell handles it with care, SIGTERM is to clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except OutriderError as error:
        message = error.message if server is None else explain(error, server)
        _stderr.print(f"[red]Error:[/red] {escape(message)}", soft_wrap=True)
        raise typer.Exit(1) from None


def _print_line(line: str) -> None:
    _stderr.print(escape(line), style="dim", soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Report]:
    """A spinner with the newest line; each new kind of line is also printed, so that logs show it too."""
    kind = ""
    with _stderr.status("") as spinner:

        def report(line: str) -> None:
            nonlocal kind
            spinner.update(escape(line))
            if line.partition(":")[0] != kind:
                _stderr.print(escape(line), soft_wrap=True)
            kind = line.partition(":")[0]

        yield report


def _flags(of_target: Mapping[str, Any], drafter: list[str] | None, listen: str | None) -> dict[str, Any]:
    """The flags that were given, in the shape of the file."""
    flags: dict[str, Any] = {"target": {key: value for key, value in of_target.items() if value is not None}}
    if drafter:
        flags["drafters"] = parse_drafters(drafter)
    if listen is not None:
        flags["scheduler"] = {"listen": listen}
    return flags | _cache_flag(None)


def _cache_flag(folder: Path | None) -> dict[str, Any]:
    chosen = folder or os.environ.get(CACHE_VARIABLE)
    return {"cache_dir": str(chosen)} if chosen else {}
