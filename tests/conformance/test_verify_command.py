"""`outriderd verify-lossless` as a user runs it: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest

from tests.client.command import environment, run_piped
from tests.client.fake_inference import WAIT_S, FakeInference, serving, silence
from tests.conformance.toy import Toy
from tests.ports import free_address

COMMAND = (sys.executable, "-m", "cluster")
SMALL = ("--quick", "--prompts", "1", "--answers", "64", "--concurrency", "4")


def verify(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_piped("verify-lossless", *arguments, command=COMMAND, COLUMNS="100")


def test_json_is_all_of_standard_output_and_the_table_goes_to_the_other() -> None:
    with serving(Toy().serve()) as address:
        done = verify("--server", address, "--json", *SMALL, "--answers", "256")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["verdict"], result["breaches"], result["errors"]) == ("passed", 0, 0)
    assert (result["model"], result["dtype"], result["drafters"]) == ("toy", "float32", ["ngram"])
    assert {"check", "subject", "verdict", "evidence", "detail", "figures"} == set(result["findings"][0])
    assert "toy, float32; drafters: ngram" in done.stderr
    assert "Drafts changed nothing here but the speed." in done.stderr


def test_a_breach_ends_it_with_1_and_says_where() -> None:
    with serving(Toy(other_token_with_drafts=True).serve()) as address:
        done = verify("--server", address, *SMALL)
    assert done.returncode == 1
    assert re.search(r"breach: same tokens, greedy: 1 differs; first: prompt 'count', greedy, token 6", done.stdout)
    assert "This deployment is not lossless." in done.stdout


def test_where_drafts_are_required_a_check_without_any_ends_it_with_1() -> None:
    with serving(Toy(drafts=False).serve()) as address:
        done = verify("--server", address, "--require-drafts", *SMALL)
    assert done.returncode == 1
    assert "not shown: same tokens, greedy: no draft was accepted" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_cancels_the_calls_and_ends_it_with_130(number: signal.Signals) -> None:
    fake: FakeInference = Toy().serve()
    fake.script = silence
    with serving(fake) as address:
        command = [*COMMAND, "verify-lossless", "--server", address]
        with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert fake.has_call.wait(WAIT_S)
            process.send_signal(number)
            output, errors = process.communicate(timeout=WAIT_S)
        assert process.returncode == 130
        assert output == b""
        assert b"Traceback" not in errors
        assert fake.client_left.wait(WAIT_S)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--server", "here:1", "--target", "m"), "--server is 'here:1', and --target is given too"),
        (("--prompts", "13"), "--prompts is 13: there are 12"),
        (("--alpha", "0"), "--alpha is 0.0: a chance is above 0 and below 1"),
        (("--dtype", "int8"), "target.dtype is 'int8'"),
    ],
)
def test_a_wrong_flag_is_refused_by_its_name(arguments: tuple[str, ...], complaint: str) -> None:
    done = verify(*arguments)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_where_nobody_serves_it_ends_with_1() -> None:
    done = verify("--server", free_address())
    assert (done.returncode, done.stdout) == (1, "")
    assert "Error:" in done.stderr
    assert "Traceback" not in done.stderr
