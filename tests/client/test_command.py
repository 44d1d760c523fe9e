"""The `outrider` command: what it says, to whom, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from dataclasses import asdict

import grpc
import pytest
from typer.testing import CliRunner

from outrider import Client, __version__
from outrider.cli import app
from outrider.v1 import inference_pb2 as pb
from tests.client.command import COMMAND, environment, in_terminal, run_piped
from tests.client.fake_inference import (
    DRAWN_SEED,
    TEXT,
    TOKEN_IDS,
    WAIT_S,
    Call,
    FakeInference,
    endless_answer,
    refusal,
    silence,
    started,
    tokens,
    truncated_answer,
    whole_answer,
)
from tests.ports import free_address

runner = CliRunner()


def test_in_a_pipe_the_text_is_all_that_comes(server: str) -> None:
    done = run_piped("generate", "Why?", "--server", server)
    assert (done.stdout, done.stderr, done.returncode) == (TEXT + "\n", "", 0)


def test_json_is_one_object_a_line_started_tokens_finished(server: str) -> None:
    done = run_piped("generate", "Why?", "--server", server, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.stderr, done.returncode) == ("", 0)
    assert events[0] == {
        "event": "started",
        "request_id": "drawn",
        "model": "tiny",
        "seed": DRAWN_SEED,
        "num_prompt_tokens": 7,
        "max_tokens": 0,
        "prompt_hash": 0,
    }
    assert events[2] == {
        "event": "tokens",
        "ids": [12, 13, 14],
        "texts": [" sky", " is", ""],
        "sources": ["draft", "draft", "target"],
    }
    assert [event["event"] for event in events] == ["started", "tokens", "tokens", "tokens", "finished"]
    with Client(server) as client:
        answer = client.generate("Why?").result()
    assert events[-1] == {"event": "finished", **json.loads(json.dumps(asdict(answer)))}
    assert events[-1].keys() >= {
        "request_id", "seed", "token_ids", "text", "finish_reason", "usage", "speculation",
    }  # fmt: skip


def test_started_is_said_before_any_token_is_there(server: str, fake: FakeInference) -> None:
    fake.script = silent_after_started
    process = subprocess.Popen(
        [*COMMAND, "generate", "Why?", "--server", server, "--json"],
        env=environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "started"
        process.kill()
    assert fake.client_left.wait(WAIT_S)


def silent_after_started(call: Call):  # type: ignore[no-untyped-def]
    yield started(call)
    call.gone.wait(WAIT_S)


def test_a_dash_reads_the_prompt_without_its_last_newline(server: str, fake: FakeInference) -> None:
    assert run_piped("generate", "-", "--server", server, stdin="One\ntwo\n").returncode == 0
    assert fake.requests[0].text == "One\ntwo"


def test_a_terminal_shows_drafted_tokens_green_and_ends_with_a_summary(server: str) -> None:
    with in_terminal("generate", "Why?", "--server", server) as terminal:
        assert terminal.exit_code() == 0
    assert "The\x1b[32m sky\x1b[0m\x1b[32m is\x1b[0m\x1b[32m été\x1b[0m.\r\n" in terminal.shown
    assert f"6 tokens · 2.00 a pass · 3.0 a second · 50% drafted · seed {DRAWN_SEED}" in terminal.shown


@pytest.mark.parametrize("changes", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colour_a_terminal_shows_plain_text(server: str, changes: dict[str, str]) -> None:
    with in_terminal("generate", "Why?", "--server", server, **changes) as terminal:
        assert terminal.exit_code() == 0
    assert TEXT + "\r\n" in terminal.shown
    assert "\x1b[32m" not in terminal.shown


def test_a_models_control_characters_reach_a_file_but_no_terminal(server: str, fake: FakeInference) -> None:
    nasty = "a\x1b]0;title\x07\x9b2Jb\tc"

    def script(call: Call):  # type: ignore[no-untyped-def]
        yield started(call)
        yield tokens([(1, nasty, pb.TOKEN_SOURCE_TARGET)])
        yield list(whole_answer(call))[-1]

    fake.script = script
    with in_terminal("generate", "Why?", "--server", server) as terminal:
        terminal.exit_code()
    assert "a]0;title2Jb" in terminal.shown
    assert "\x1b]" not in terminal.shown
    done = run_piped("generate", "Why?", "--server", server, "--json")
    assert json.loads(done.stdout.splitlines()[-1])["text"] == nasty


def test_the_server_may_come_from_the_environment(server: str) -> None:
    assert runner.invoke(app, ["generate", "Why?"], env={"OUTRIDER_SERVER": server}).stdout == TEXT + "\n"


@pytest.mark.parametrize(
    ("arguments", "stdin"), [(["-m", "Hi"], "not read"), (["--message", "Hi"], None), ([], "Hi\n")]
)
def test_a_chat_of_one_turn(server: str, fake: FakeInference, arguments: list[str], stdin: str | None) -> None:
    done = runner.invoke(app, ["chat", "--server", server, *arguments], input=stdin)
    assert (done.stdout, done.exit_code) == (TEXT + "\n", 0)
    assert fake.requests[0].chat == pb.ChatPrompt(messages=[pb.ChatMessage(role="user", content="Hi")])


def test_info_shows_model_server_and_workers(server: str) -> None:
    done = run_piped("info", "--server", server, COLUMNS="160")
    assert done.returncode == 0
    for shown in (
        "tiny",
        "float32",
        "2048 tokens",
        "degraded",
        "3 of 64",
        "90 of 100",
        "ngram-0",
        "another vocabulary",
    ):
        assert shown in done.stdout


def crowded_server() -> pb.GetServerInfoResponse:
    """A worker with long names and large numbers, and with brackets that are no markup."""
    worker = pb.WorkerInfo(
        name="target-0",
        kind="target",
        model="org/a-model-with-a-long-name",
        state=pb.WORKER_STATE_READY,
        detail="[/x] " + "every-word-of-this-is-there " * 6,
        address="worker-17.namespace.svc.cluster.local:50071",
        num_free_kv_blocks=641_972,
        num_kv_blocks=1_048_576,
    )
    return pb.GetServerInfoResponse(state=pb.SERVER_STATE_READY, targets=[worker])


def test_into_a_pipe_tables_have_no_width(server: str, fake: FakeInference) -> None:
    fake.server_info = crowded_server()
    done = run_piped("info", "--server", server, COLUMNS="80")
    [line] = [line for line in done.stdout.splitlines() if "target-0" in line]
    [worker] = fake.server_info.targets
    for shown in (worker.model, worker.address, "641972 of 1048576", worker.detail.strip()):
        assert shown in line


@pytest.mark.parametrize("num_columns", [40, 80])
def test_a_narrow_terminal_shows_every_worker_as_a_block_and_cuts_nothing_off(
    server: str, fake: FakeInference, num_columns: int
) -> None:
    fake.server_info = crowded_server()
    with in_terminal("info", "--server", server, COLUMNS=str(num_columns)) as terminal:
        assert terminal.exit_code() == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.shown).splitlines()
    assert max(map(len, lines)) <= num_columns
    values = "".join(line.split("│")[2].strip() for line in lines if line.count("│") == 3)
    [worker] = fake.server_info.targets
    for shown in (worker.model, worker.address, "641972 of 1048576", worker.detail):
        assert shown.replace(" ", "") in values.replace(" ", "")
    assert "…" not in terminal.shown


def test_info_shows_the_target_groups_where_their_number_is_scaled(server: str, fake: FakeInference) -> None:
    assert "target groups" not in run_piped("info", "--server", server, COLUMNS="200").stdout
    pool = pb.TargetPool(num_wanted=2, num_present=1, num_draining=1, min_groups=1, max_groups=5, reason="so it is")
    changes = [pb.ScalingDecision(pool="small", reason="not this"), pb.ScalingDecision(pool="target groups")]
    changes[1].num_before, changes[1].num_after, changes[1].reason = 1, 2, "they waited"
    fake.server_info = pb.GetServerInfoResponse(scaling=pb.Scaling(target=pool, decisions=changes))
    shown = run_piped("info", "--server", server, COLUMNS="200").stdout
    assert "1 serve, 1 drain; 2 wanted of 1 to 5: so it is" in shown
    assert "went from 1 to 2: they waited" in shown


def test_info_as_json_is_one_object(server: str) -> None:
    done = runner.invoke(app, ["info", "--server", server, "--json"])
    (line,) = done.stdout.splitlines()
    value = json.loads(line)
    assert value["model"]["end_token_ids"] == [0, 2]
    assert value["server"]["drafters"][1]["state"] == "refused"


@pytest.mark.parametrize("command", [["generate", "Why?"], ["chat", "-m", "Hi"], ["info"]])
def test_where_nobody_listens_one_line_names_server_and_way_out(command: list[str]) -> None:
    address = free_address()
    done = run_piped(*command, "--server", address)
    assert done.stderr == f"outrider: cannot reach {address}: is `outriderd up` running?\n"
    assert (done.stdout, done.returncode) == ("", 1)


@pytest.mark.parametrize("command", [["generate", "Why?"], ["chat", "-m", "Hi"], ["info"]])
def test_an_address_without_a_port_is_refused_with_the_form(command: list[str]) -> None:
    done = runner.invoke(app, [*command, "--server", "localhost"])
    assert done.stderr == "outrider: server is 'localhost': it must be HOST:PORT, such as localhost:50051\n"
    assert (done.stdout, done.exit_code) == ("", 1)


@pytest.mark.parametrize(
    ("code", "pushback", "words"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, None, ["sampling.top_p is 7"]),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "1500", ["overloaded", "sampling.top_p is 7", "try again in 1.5 s"]),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, None, ["overloaded"]),
        (grpc.StatusCode.UNAVAILABLE, "-1", ["not available"]),
        (grpc.StatusCode.INTERNAL, None, ["failed"]),
    ],
)
def test_a_refusal_is_one_line_with_the_servers_words(
    server: str, fake: FakeInference, code: grpc.StatusCode, pushback: str | None, words: list[str]
) -> None:
    fake.script = refusal(code, "sampling.top_p is 7:\nit must be in (0, 1]", retry_pushback_ms=pushback)
    done = runner.invoke(app, ["generate", "Why?", "--server", server])
    assert (done.stdout, done.exit_code, done.stderr.count("\n")) == ("", 1, 1)
    for word in [*words, "it must be in (0, 1]"]:
        assert word in done.stderr


def test_a_value_that_fits_no_field_is_refused_before_the_call(server: str, fake: FakeInference) -> None:
    done = runner.invoke(app, ["generate", "Why?", "--server", server, "--max-tokens", "-1"])
    assert (done.exit_code, fake.calls) == (1, [])
    assert "sampling.max_tokens is -1" in done.stderr


def test_an_answer_that_takes_too_long_names_the_flag(server: str, fake: FakeInference) -> None:
    fake.script = silence
    done = runner.invoke(app, ["generate", "Why?", "--server", server, "--timeout", "0.2"])
    assert (done.stdout, done.exit_code) == ("", 1)
    assert done.stderr == (
        "outrider: timeout_s is 0.2: it passed after 0 tokens; "
        "a larger timeout_s (--timeout) or a smaller max_tokens (--max-tokens) would do\n"
    )
    assert runner.invoke(app, ["generate", "Why?", "--server", server, "--timeout", "0"]).exit_code == 1


def test_a_deadline_that_passes_amid_the_text_is_said_on_a_line_of_its_own(server: str, fake: FakeInference) -> None:
    fake.script = endless_answer
    with in_terminal("generate", "Why?", "--server", server, "--timeout", "1", NO_COLOR="1") as terminal:
        assert terminal.exit_code() == 1
    assert terminal.shown.startswith("The sky is\r\noutrider: timeout_s is 1.0: it passed after 4 tokens; ")
    assert terminal.shown.count("\n") == 2


def test_a_stream_that_stops_short_fails_after_its_text(server: str, fake: FakeInference) -> None:
    fake.script = truncated_answer
    done = run_piped("generate", "Why?", "--server", server)
    assert done.stdout.startswith("The sky is")
    assert done.returncode == 1
    assert "ended after 4 tokens" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_ctrl_c_cancels_the_call_and_exits_130(server: str, fake: FakeInference, arguments: list[str]) -> None:
    fake.script = endless_answer
    process = subprocess.Popen(
        [*COMMAND, "generate", "Why?", "--server", server, *arguments],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        shown = ""
        while " is" not in shown:
            letter = process.stdout.read(1)
            assert letter, shown
            shown += letter
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, errors) == (130, "")
    assert fake.client_left.wait(WAIT_S)


@pytest.mark.parametrize(
    "arguments",
    [[], ["generate"], ["unknown"], ["generate", "a", "--speculation", "fast"], ["generate", "a", "--seed", "x"]],
)
def test_bad_usage_exits_2(arguments: list[str]) -> None:
    assert runner.invoke(app, arguments).exit_code == 2


def test_version() -> None:
    assert runner.invoke(app, ["--version"]).stdout == f"outrider {__version__}\n"


@pytest.mark.parametrize("command", ["generate", "chat", "info"])
def test_help_shows_an_example(command: str) -> None:
    done = runner.invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert f"Example: outrider {command}" in done.stdout


def test_token_ids_in_json_are_those_of_the_answer(server: str) -> None:
    done = run_piped("chat", "-m", "Hi", "--server", server, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    streamed = [token_id for event in events if event["event"] == "tokens" for token_id in event["ids"]]
    assert streamed == events[-1]["token_ids"] == list(TOKEN_IDS)
