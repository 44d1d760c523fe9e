"""Drafters that come and go with the load, on Ray's own autoscaler: a trace of load, drafters and goodput.

    python -m benchmarks.autoscale_trace --plot trace.png

A cell of a tiny model and its draft model runs on raylets of this machine, as in tests/cluster/nodes: Ray adds a node
for each drafter that the cell wants, and takes it away when it has been empty for some seconds. Streams ask for the
same answers over and over, few, many, few and none; each answer is compared with the target's own.

    to_wanted_s      from the first stream until a drafter is wanted
    to_node_s        from then until Ray has added its node
    to_serving_s     from then until it drafts
    to_released_s    from the last stream until no drafter is there any more
    to_no_node_s     from then until Ray has taken the last node away

All cores are shared by the raylets, the workers and whatever else runs, so the figures are this machine's. The last
line is one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.measure import rounded
from cluster.launch import Cell
from outrider import AsyncClient
from outrider.types import ScalingDecision
from tests.cluster.nodes.autoscaled_ray import AUTOSCALED, AutoscaledRay, autoscaled_cell
from tests.cluster.streams import Streams

PERIOD_S = 0.5
NUM_TOKENS = 200
SMOOTH_S = 3.0  # of the goodput that is drawn


@dataclass(frozen=True)
class Phase:
    num_streams: int
    seconds: float


@dataclass(frozen=True)
class Sample:
    time_s: float  # since the beginning
    num_streams: int
    num_running: int
    num_tokens: int  # so far, of all streams
    num_wanted: int
    num_present: int
    num_draining: int
    num_nodes: int  # that Ray has for drafters


@dataclass(frozen=True)
class Trace:
    samples: list[Sample]
    decisions: Sequence[ScalingDecision]  # the newest first
    num_answers: int
    num_wrong: int


def main(
    plot: Annotated[Path, typer.Option(help="The PNG to draw.")],
    few: Annotated[int, typer.Option(min=1, help="Streams.")] = 1,
    many: Annotated[int, typer.Option(min=1, help="Streams.")] = 16,
    phase_s: Annotated[float, typer.Option(min=1.0, help="Of many streams; of few, two thirds.")] = 75.0,
    drafters: Annotated[int, typer.Option(min=1, help="At most.")] = 3,
) -> None:
    os.environ.update(AUTOSCALED)
    less_s = phase_s * 2 / 3
    phases = [Phase(0, 5.0), Phase(few, less_s), Phase(many, phase_s), Phase(few, less_s), Phase(0, less_s)]
    with TemporaryDirectory() as folder:
        trace = asyncio.run(run(phases, drafters, Path(folder)))
    draw(trace.samples, plot)
    print(json.dumps(rounded(summary(trace, phases))))


async def run(phases: Sequence[Phase], max_drafters: int, folder: Path) -> Trace:
    ray = AutoscaledRay(max_drafters, folder)
    try:
        await ray.start()
        cell = Cell(autoscaled_cell(ray.address, max_drafters, folder))
        await cell.start(print)
        try:
            return await _trace(cell, ray, phases)
        finally:
            await cell.stop(at_once=True)
    finally:
        await ray.end()


async def _trace(cell: Cell, ray: AutoscaledRay, phases: Sequence[Phase]) -> Trace:
    counts = {phase.num_streams for phase in phases if phase.num_streams}
    streams = {number: Streams(cell.endpoint, number, NUM_TOKENS) for number in counts}
    for each in streams.values():
        await each.learn()
    async with AsyncClient(cell.endpoint) as client:
        await _quiet(client, ray)
        recorder = Recorder(client, ray, list(streams.values()))
        for phase in phases:
            if phase.num_streams:
                async with streams[phase.num_streams].running():
                    await recorder.record(phase)
            else:
                await recorder.record(phase)
        decisions = (await client.server_info()).scaling.decisions
    num_answers = sum(each.num_answers for each in streams.values())
    return Trace(recorder.samples, decisions, num_answers, sum(len(each.wrong) for each in streams.values()))


async def _quiet(client: AsyncClient, ray: AutoscaledRay) -> None:
    """Returns when nothing is left of what was learned from."""
    while True:
        pools = (await client.server_info()).scaling.pools
        if pools and pools[0].reason == "nothing runs" and not (await ray.num_nodes())["draft"]:
            return
        await asyncio.sleep(PERIOD_S)


class Recorder:
    def __init__(self, client: AsyncClient, ray: AutoscaledRay, streams: Sequence[Streams]) -> None:
        self.samples: list[Sample] = []
        self._client, self._ray, self._streams = client, ray, streams
        self._started_s = time.monotonic()

    async def record(self, phase: Phase) -> None:
        ends_s = time.monotonic() + phase.seconds
        while time.monotonic() < ends_s:
            await self._sample(phase)
            await asyncio.sleep(PERIOD_S)

    async def _sample(self, phase: Phase) -> None:
        info, nodes = await self._client.server_info(), await self._ray.num_nodes()
        [pool] = info.scaling.pools
        now = Sample(
            time_s=time.monotonic() - self._started_s,
            num_streams=phase.num_streams,
            num_running=info.num_running_requests,
            num_tokens=sum(each.num_tokens for each in self._streams),
            num_wanted=pool.num_wanted,
            num_present=pool.num_present,
            num_draining=pool.num_draining,
            num_nodes=nodes["draft"],
        )
        self.samples.append(now)
        print(f"{now.time_s:6.1f} s  {now.num_running:2} requests  {_rate(self.samples):6.0f} tokens/s  {pool.reason}")


def _rate(samples: Sequence[Sample]) -> float:
    """Tokens a second, in the mean of late."""
    last = samples[-1]
    first = next(each for each in samples if each.time_s >= last.time_s - SMOOTH_S)
    return (last.num_tokens - first.num_tokens) / (last.time_s - first.time_s) if last is not first else 0.0


def summary(trace: Trace, phases: Sequence[Phase]) -> dict[str, object]:
    samples = trace.samples
    load_s = _when(samples, 0.0, lambda each: each.num_streams > 0)
    wanted_s = _when(samples, load_s, lambda each: each.num_wanted > 0)
    node_s = _when(samples, wanted_s, lambda each: each.num_nodes > 0)
    serving_s = _when(samples, node_s, lambda each: each.num_present > 0)
    no_load_s = max(each.time_s for each in samples if each.num_running)
    released_s = _when(samples, no_load_s, lambda each: each.num_present + each.num_draining == 0)
    no_node_s = _when(samples, released_s, lambda each: each.num_nodes == 0)
    before = [each for each in samples if each.num_streams and each.time_s < serving_s]
    return {
        "to_wanted_s": wanted_s - load_s,
        "to_node_s": node_s - wanted_s,
        "to_serving_s": serving_s - node_s,
        "to_released_s": released_s - no_load_s,
        "to_no_node_s": no_node_s - released_s,
        "most_drafters": max(each.num_present for each in samples),
        "tokens_per_s_before": _mean_rate(before),
        "tokens_per_s": [
            _mean_rate([each for each in samples if each.num_streams == phase.num_streams and each.num_present])
            for phase in phases[1:3]
        ],
        "decisions": [
            f"{decision.num_before} to {decision.num_after}: {decision.reason}"
            for decision in reversed(trace.decisions)
        ],
        "num_answers": trace.num_answers,
        "num_wrong": trace.num_wrong,
        "load_average": os.getloadavg()[0],
    }


def _when(samples: Sequence[Sample], since_s: float, is_so: Callable[[Sample], bool]) -> float:
    for each in samples:
        if each.time_s >= since_s and is_so(each):
            return each.time_s
    raise SystemExit("the trace ended before drafters had come and gone: set --phase-s higher")


def _mean_rate(samples: Sequence[Sample]) -> float:
    """Of stretches without a gap."""
    steps = [
        (after.num_tokens - before.num_tokens) / (after.time_s - before.time_s)
        for before, after in pairwise(samples)
        if after.time_s - before.time_s < 4 * PERIOD_S
    ]
    return mean(steps)


def draw(samples: Sequence[Sample], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    times = [each.time_s for each in samples]
    figure, (load, drafters, goodput) = pyplot.subplots(3, 1, figsize=(9, 7), sharex=True)
    load.step(times, [each.num_running for each in samples], where="post", color="tab:gray")
    load.set(ylabel="requests that run", ylim=(0, None))
    drafters.step(times, [each.num_wanted for each in samples], where="post", label="wanted", linewidth=4, alpha=0.4)
    drafters.step(times, [each.num_present for each in samples], where="post", label="serve")
    drafters.step(times, [each.num_nodes for each in samples], where="post", label="nodes of Ray", linestyle=":")
    drafters.set(ylabel="drafters", ylim=(0, None))
    drafters.yaxis.get_major_locator().set_params(integer=True)
    drafters.legend(loc="upper left")
    goodput.plot(times, [_rate(samples[: number + 1]) for number in range(len(samples))], color="tab:green")
    goodput.set(ylabel="tokens a second", xlabel="seconds", ylim=(0, None))
    for axes in (load, drafters, goodput):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
