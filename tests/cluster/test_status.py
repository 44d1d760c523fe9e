"""`outriderd status` against a scheduler that was told what to show."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.status import show_status
from outrider.access_options import Access
from outrider.v1 import inference_pb2 as pb
from scheduler.server import SchedulerConfig, SchedulerServer
from tests.ports import free_address

POOL = {"name": "small", "num_wanted": 3, "num_present": 1, "num_starting": 2, "num_draining": 1, "max_workers": 8}
GROUPS = {"num_wanted": 2, "num_present": 1, "num_starting": 1, "num_draining": 1, "min_groups": 1, "max_groups": 5}
GROUPS |= {"num_waiting": 7, "demand": 1.4375, "reason": "7 requests wait for room"}  # type: ignore[dict-item]
WORTH = ("goodput", "worth_of_one_more", "worth_of_the_last")
NOBODY: Access = {"tls": None, "token": None}
REASON = "2 more add 31.0 %; they pay from 12.0 % on"


@pytest.fixture
async def scheduler() -> AsyncIterator[tuple[SchedulerServer, str]]:
    server = SchedulerServer(SchedulerConfig(listen="127.0.0.1:0"))
    yield server, await server.start()
    await server.stop(0.0)


def scaling(*, is_known: bool = True) -> pb.Scaling:
    worth = {"goodput": 200.0, "worth_of_one_more": 12.5, "worth_of_the_last": 30.25} if is_known else {}
    decision = pb.ScalingDecision(pool="small", time_s=1.8e9, num_before=1, num_after=3, reason=REASON)
    pool = pb.DrafterPool(**POOL, reason=REASON, **worth)
    return pb.Scaling(is_dry_run=True, pools=[pool], decisions=[decision], target=pb.TargetPool(**GROUPS))


async def shown(address: str, *, as_json: bool, capsys: pytest.CaptureFixture[str]) -> str:
    await asyncio.to_thread(show_status, address, NOBODY, as_json=as_json)
    return capsys.readouterr().out


async def test_a_cell_that_scales_shows_pools_worth_and_decisions(
    scheduler: tuple[SchedulerServer, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    server, address = scheduler
    server.show_scaling(scaling())
    text = await shown(address, as_json=False, capsys=capsys)
    for part in ("dry run", "small", "3 of 0 to 8", "+12.5", "-30.2", REASON, "2027-01-"):
        assert part in text
    for part in ("Target groups (dry run", "2 of 1 to 5", "1.44", "7 requests wait for room"):
        assert part in text


async def test_as_json_it_is_one_object_and_what_is_not_known_is_null(
    scheduler: tuple[SchedulerServer, str], capsys: pytest.CaptureFixture[str]
) -> None:
    server, address = scheduler
    server.show_scaling(scaling(is_known=False))
    told = json.loads(await shown(address, as_json=True, capsys=capsys))
    assert (told["state"], told["is_dry_run"], told["num_running_requests"]) == ("starting", True, 0)
    assert told["pools"] == [POOL | {"min_workers": 0, "reason": REASON} | dict.fromkeys(WORTH)]
    assert told["decisions"][0]["num_after"] == 3
    assert told["target"] == GROUPS


async def test_a_cell_that_does_not_scale_says_so(
    scheduler: tuple[SchedulerServer, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Nothing scales the drafters" in await shown(scheduler[1], as_json=False, capsys=capsys)


@pytest.mark.parametrize("command", ["status", "verify-lossless"])
def test_a_server_that_is_not_there_is_named_with_the_way_out_and_not_in_grpcs_words(command: str) -> None:
    address = free_address()
    for server, words in (
        (address, f"cannot reach {address}: is `outriderd up` running?"),
        ("localhost", "server is 'localhost': it must be HOST:PORT, such as localhost:50051"),
    ):
        done = CliRunner().invoke(app, [command, "--server", server])
        assert (done.stdout, done.exit_code) == ("", 1)
        assert done.stderr.strip().splitlines()[-1] == f"Error: {words}"
