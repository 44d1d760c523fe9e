"""What the command shows beyond the text: log-probabilities, and several answers to one prompt."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import asdict
from typing import Any

import pytest

from outrider import Client, SamplingParams
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
    started,
    tokens,
    whole_answer,
)

HEADINGS = [f"── {index + 1} of 3 · seed {DRAWN_SEED + index} ──" for index in range(3)]


def events(shown: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shown.splitlines()]


def as_read(value: object) -> Any:
    """As it is after a way through JSON: lists for tuples."""
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("command", [["generate", "Why?"], ["chat", "-m", "Hi"]])
def test_log_probabilities_are_a_table_on_stderr_and_the_text_stays_alone(server: str, command: list[str]) -> None:
    done = run_piped(*command, "--server", server, "--logprobs", "2")
    assert (done.stdout, done.returncode) == (TEXT + "\n", 0)
    header, *rows = done.stderr.splitlines()
    assert header.split()[:4] == ["token", "id", "logprob", "source"]
    assert rows[1].split() == ["'", "sky'", "12", "-0.250", "draft", "12", "-0.250", "13", "-0.750"]
    assert rows[3].split()[:2] == ["''", "14"], "a token without a text has its row as well"
    assert len(rows) == len(TOKEN_IDS)


def test_log_probabilities_without_alternatives_are_shown_too(server: str) -> None:
    done = run_piped("generate", "Why?", "--server", server, "--logprobs", "0")
    assert done.stderr.splitlines()[1].split() == ["'The'", "11", "-0.250", "target"]


def test_a_token_that_looks_like_markup_or_moves_the_cursor_is_shown_as_it_is(server: str, fake: FakeInference) -> None:
    def script(call: Call):  # type: ignore[no-untyped-def]
        yield started(call)
        yield tokens([(1, "[red]\x1b[2J", pb.TOKEN_SOURCE_TARGET)], num_top=0)
        yield list(whole_answer(call))[-1]

    fake.script = script
    assert r"'[red]\x1b[2J'" in run_piped("generate", "Why?", "--server", server, "--logprobs", "0").stderr


def test_json_has_each_tokens_log_probability_beside_it_and_again_at_the_end(server: str) -> None:
    done = run_piped("generate", "Why?", "--server", server, "--logprobs", "2", "--json")
    assert (done.stderr, done.returncode) == ("", 0)
    _, *streamed, last = events(done.stdout)
    assert streamed[1] == {
        "event": "tokens",
        "ids": [12, 13, 14],
        "texts": [" sky", " is", ""],
        "sources": ["draft", "draft", "target"],
        "logprobs": [
            {"logprob": -0.25, "top_ids": [token_id, token_id + 1], "top_logprobs": [-0.25, -0.75]}
            for token_id in (12, 13, 14)
        ],
    }
    assert last["logprobs"] == [entry for event in streamed for entry in event["logprobs"]]
    assert last["texts"] == [text for event in streamed for text in event["texts"]]


def test_several_answers_are_shown_in_order_each_below_its_seed(server: str, fake: FakeInference) -> None:
    done = run_piped("generate", "Why?", "--server", server, "--n", "3")
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines() == [line for heading in HEADINGS for line in (heading, TEXT)]
    assert [request.sampling.n for request in fake.requests] == [3]


def test_several_answers_have_a_table_and_in_a_terminal_colours_and_a_summary_each(server: str) -> None:
    with in_terminal("generate", "Why?", "--server", server, "--n", "3", "--logprobs", "1") as terminal:
        assert terminal.exit_code() == 0
    for index, heading in enumerate(HEADINGS):
        shown = terminal.shown.partition(heading)[2]
        assert shown.startswith("\r\nThe\x1b[32m sky\x1b[0m")
        assert 0 < shown.index("likeliest") < shown.index(f"50% drafted · seed {DRAWN_SEED + index}")


def test_several_answers_in_json_are_one_line_each(server: str) -> None:
    done = run_piped("generate", "Why?", "--server", server, "--n", "2", "--logprobs", "1", "--json")
    with Client(server) as client:
        answers = client.generate_all("Why?", sampling=SamplingParams(n=2, logprobs=1))
    assert (done.stderr, done.returncode) == ("", 0)
    assert events(done.stdout) == [
        {"event": "finished", "index": index, **as_read(asdict(answer))} for index, answer in enumerate(answers)
    ]


def test_one_answer_of_one_is_streamed_without_a_heading(server: str) -> None:
    assert run_piped("generate", "Why?", "--server", server, "--n", "1").stdout == TEXT + "\n"


def test_a_number_of_answers_that_no_server_gives_is_refused_by_it(server: str, fake: FakeInference) -> None:
    done = run_piped("generate", "Why?", "--server", server, "--n", "-1")
    assert (done.stdout, done.returncode, fake.calls) == ("", 1, [])
    assert "sampling.n is -1" in done.stderr


def test_ctrl_c_cancels_several_answers_and_exits_130(server: str, fake: FakeInference) -> None:
    fake.script = endless_answer
    process = subprocess.Popen(
        [*COMMAND, "generate", "Why?", "--server", server, "--n", "3"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert fake.has_call.wait(WAIT_S)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=WAIT_S) == ("", "")
    assert process.returncode == 130
    assert fake.client_left.wait(WAIT_S)


def test_the_summary_says_when_the_answer_is_lossy(server: str) -> None:
    for rule, is_lossy in (("typical", True), ("rejection", False)):
        with in_terminal("generate", "Why?", "--server", server, "--rule", rule) as terminal:
            assert terminal.exit_code() == 0
        assert (f"seed {DRAWN_SEED} · lossy" in terminal.shown) == is_lossy
