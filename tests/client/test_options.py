"""The options of `outrider generate` and `outrider chat`: all that can be asked for can be asked for at a shell."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from outrider.cli import app
from outrider.v1 import inference_pb2 as pb
from tests.client.fake_inference import FakeInference

runner = CliRunner()

COMMANDS = (["generate", "Why?"], ["chat", "-m", "Hi"])

ALL_BUT_STRUCTURE = (
    "--max-tokens 5 --temperature 0 --seed 18446744073709551615 --top-k 3 --top-p 0.5 --min-p 0.25 --typical-p 0.75"
    " --repetition-penalty 1.5 --presence-penalty -0.5 --frequency-penalty 0.125"
    " --logit-bias 284=-5 --logit-bias 7=1e2 --bad-word no --bad-word never --allowed-token 284 --allowed-token 7"
    " --min-tokens 2 --stop END --stop STOP --stop-token 4 --stop-token 5 --include-stop --ignore-eos"
    " --logprobs 3 --keep-special-tokens --service-class batch"
    " --speculation off --drafter ngram --drafter small --max-nodes 6 --rule rejection"
)
SAMPLING = pb.SamplingParams(
    max_tokens=5,
    temperature=0.0,
    seed=2**64 - 1,
    top_k=3,
    top_p=0.5,
    min_p=0.25,
    typical_p=0.75,
    repetition_penalty=1.5,
    presence_penalty=-0.5,
    frequency_penalty=0.125,
    logit_bias=[pb.LogitBias(token_id=284, bias=-5), pb.LogitBias(token_id=7, bias=100)],
    bad_words=["no", "never"],
    allowed_token_ids=[284, 7],
    min_tokens=2,
    stop=["END", "STOP"],
    stop_token_ids=[4, 5],
    include_stop=True,
    ignore_eos=True,
    logprobs=3,
    skip_special_tokens=False,
)
SPECULATION = pb.SpeculationParams(
    mode=pb.SPECULATION_MODE_OFF,
    drafters=["ngram", "small"],
    max_nodes=6,
    acceptance_rule=pb.ACCEPTANCE_RULE_REJECTION,
)


def fields_set(message: pb.SamplingParams | pb.SpeculationParams) -> set[str]:
    return {descriptor.name for descriptor, _ in message.ListFields()}


def refusal(server: str, *arguments: str) -> str:
    """What a wrong use is told, in one line and without the frame around it."""
    done = runner.invoke(app, ["generate", "Why?", "--server", server, *arguments])
    assert done.exit_code == 2, done.output
    return " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_reaches_the_request(server: str, fake: FakeInference, command: list[str]) -> None:
    done = runner.invoke(app, [*command, "--server", server, *ALL_BUT_STRUCTURE.split()])
    assert done.exit_code == 0, done.output
    assert fake.requests[0].sampling == SAMPLING
    assert fake.requests[0].speculation == SPECULATION
    assert fake.requests[0].service_class == pb.SERVICE_CLASS_BATCH


def test_no_field_of_the_contract_is_without_an_option(server: str, fake: FakeInference) -> None:
    for arguments in (ALL_BUT_STRUCTURE.split(), ["--n", "2"], *(each for each, _ in STRUCTURES)):
        assert runner.invoke(app, ["generate", "Why?", "--server", server, *arguments]).exit_code == 0
    sampled = set().union(*(fields_set(request.sampling) for request in fake.requests))
    speculated = set().union(*(fields_set(request.speculation) for request in fake.requests))
    assert sampled == set(pb.SamplingParams.DESCRIPTOR.fields_by_name)
    assert speculated == set(pb.SpeculationParams.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_that_is_not_given_stays_unset(server: str, fake: FakeInference, command: list[str]) -> None:
    assert runner.invoke(app, [*command, "--server", server]).exit_code == 0
    assert fake.requests[0].sampling == pb.SamplingParams()
    assert fake.requests[0].speculation == pb.SpeculationParams()
    assert not fake.requests[0].HasField("service_class")


STRUCTURES = [
    (["--json-schema", '{"type": "integer"}'], pb.SamplingParams(json_schema='{"type": "integer"}')),
    (["--regex", "@[a-z]+"], pb.SamplingParams(regex="@[a-z]+")),
    (["--grammar", 'start: "a"'], pb.SamplingParams(grammar='start: "a"')),
    (["--choice", "yes", "--choice", "@no"], pb.SamplingParams(choice=pb.Choices(values=["yes", "@no"]))),
]


@pytest.mark.parametrize(("arguments", "expected"), STRUCTURES)
def test_structure_may_stand_on_the_command_line(
    server: str, fake: FakeInference, arguments: list[str], expected: pb.SamplingParams
) -> None:
    assert runner.invoke(app, ["chat", "-m", "Hi", "--server", server, *arguments]).exit_code == 0
    assert fake.requests[0].sampling == expected


@pytest.mark.parametrize(
    ("option", "text"), [("--json-schema", '\n{"enum": ["é"]}\n'), ("--grammar", "start: /a+/\n"), ("--grammar", "@")]
)
def test_after_an_at_comes_a_file(server: str, fake: FakeInference, tmp_path: Path, option: str, text: str) -> None:
    file = tmp_path / "structure"
    file.write_text(text, encoding="utf-8")
    assert runner.invoke(app, ["generate", "Why?", "--server", server, option, f"@{file}"]).exit_code == 0
    sampling = fake.requests[0].sampling
    assert text in (sampling.json_schema, sampling.grammar)


def test_a_file_that_can_not_be_read_is_named(server: str, fake: FakeInference, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, words in (("missing.json", "No such file"), ("binary", "invalid start byte")):
        message = refusal(server, "--json-schema", f"@{tmp_path / name}")
        assert "--json-schema" in message
        assert words in message.replace("-\n", "")
    assert fake.calls == []


def test_a_schema_that_is_neither_text_nor_file_shows_how_to_name_a_file(server: str, fake: FakeInference) -> None:
    assert "such as @person.json" in refusal(server, "--json-schema", "person.json")
    assert fake.calls == []


@pytest.mark.parametrize("value", ["284", "=1", "a=1", "284=", "284=x", "284:1"])
def test_a_bias_of_another_form_shows_the_form(server: str, fake: FakeInference, value: str) -> None:
    assert "is not TOKEN_ID=BIAS, such as 284=-5" in refusal(server, "--logit-bias", value)
    assert fake.calls == []


def test_two_structures_are_refused_before_the_call(server: str, fake: FakeInference) -> None:
    done = runner.invoke(app, ["generate", "Why?", "--server", server, "--regex", "a", "--choice", "b"])
    assert (done.exit_code, fake.calls) == (1, [])
    assert "sampling has regex and choice" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["chat", "-m", "Hi", "--n", "2"], ["info", "--seed", "1"], ["generate", "a", "--rule", "lossy"]]
)
def test_an_option_that_a_command_does_not_have_exits_2(arguments: list[str]) -> None:
    assert runner.invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_help_shows_the_options_in_groups(command: str) -> None:
    shown = runner.invoke(app, [command, "--help"], env={"COLUMNS": "120", "TERM": "dumb"}).stdout
    groups = [("Sampling", "--min-p"), ("Structure", "--regex"), ("Speculation", "--rule"), ("Output", "--logprobs")]
    places = [shown.index(word) for group in groups for word in (f"─ {group[0]} ", f" {group[1]} ")]
    assert places == sorted(places)
    assert ("--n " in shown) == (command == "generate")
