"""`outriderd status`: target groups and drafters of a running cell, and what was decided about their numbers."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from datetime import datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from outrider import Client
from outrider.access_options import Access
from outrider.types import DrafterPool, Scaling, ServerInfo, TargetPool

_UNKNOWN = "not known"


def show_status(server: str, access: Access, *, as_json: bool) -> None:
    """Raises OutriderError where no cell answers."""
    with Client(server, **access) as client:
        info = client.server_info()
    console = Console()
    if as_json:
        numbers = {"num_running_requests": info.num_running_requests, "num_queued_requests": info.num_queued_requests}
        console.out(json.dumps({"state": info.state, **numbers, **asdict(info.scaling)}), highlight=False)
        return
    console.print(f"{info.state}: {info.num_running_requests} requests run, {info.num_queued_requests} wait")
    if not info.scaling.pools and info.scaling.target is None:
        console.print(_workers(info))
        console.print("Nothing scales the drafters, nor the target groups: autoscale.enabled is not set.")
        return
    if info.scaling.target is not None:
        console.print(_groups(info.scaling.target, _dry_run(info.scaling)))
    if info.scaling.pools:
        console.print(_pools(info.scaling))
    console.print(_decisions(info.scaling))


def _workers(info: ServerInfo) -> Table:
    table = Table("drafter", "state", "workers", title="Drafters", title_justify="left")
    for (name, state), number in Counter((worker.name, worker.state) for worker in info.drafters).items():
        table.add_row(escape(name), state, str(number))
    return table


def _dry_run(scaling: Scaling) -> str:
    return " (dry run: nothing is changed)" if scaling.is_dry_run else ""


def _groups(pool: TargetPool, dry_run: str) -> Table:
    columns = ("present", "starting", "draining", "demand", "requests without room", "why")
    table = Table("wanted", *columns, title=f"Target groups{dry_run}", title_justify="left")
    counts = (pool.num_present, pool.num_starting, pool.num_draining)
    wanted = f"{pool.num_wanted} of {pool.min_groups} to {pool.max_groups}"
    table.add_row(wanted, *map(str, counts), f"{pool.demand:.2f}", str(pool.num_waiting), escape(pool.reason))
    return table


def _pools(scaling: Scaling) -> Table:
    title = f"Drafters{_dry_run(scaling)}"
    columns = ("wanted", "present", "starting", "draining", "tokens/s", "one more", "the last", "why")
    table = Table("drafter", *columns, title=title, title_justify="left")
    for pool in scaling.pools:
        counts = (pool.num_present, pool.num_starting, pool.num_draining)
        wanted = f"{pool.num_wanted} of {pool.min_workers} to {pool.max_workers}"
        table.add_row(escape(pool.name), wanted, *map(str, counts), *_worth(pool), escape(pool.reason))
    return table


def _worth(pool: DrafterPool) -> tuple[str, str, str]:
    if pool.goodput is None or pool.worth_of_one_more is None or pool.worth_of_the_last is None:
        return _UNKNOWN, _UNKNOWN, _UNKNOWN
    return f"{pool.goodput:.0f}", f"{pool.worth_of_one_more:+.1f}", f"{-pool.worth_of_the_last:+.1f}"


def _decisions(scaling: Scaling) -> Table:
    table = Table("at", "what", "from", "to", "why", title="Last decisions", title_justify="left")
    for decision in scaling.decisions:
        at = datetime.fromtimestamp(decision.time_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        numbers = (str(decision.num_before), str(decision.num_after))
        table.add_row(at, escape(decision.pool), *numbers, escape(decision.reason))
    return table
