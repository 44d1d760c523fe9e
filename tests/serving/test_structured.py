"""Structured output through the real service: every answer is valid, and drafts change no token of it.

The models are random, so nothing but the grammar makes an answer valid. The drafters know no grammar: much of what
they propose is a dead end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest

from outrider import Answer, Client, SamplingParams, Speculation
from outrider.types import AcceptanceRule
from scheduler.server import SchedulerConfig
from tests.schemas import is_valid, random_schema
from tests.serving.conftest import drafter_config
from tests.serving.local_cell import local_cell
from tests.tiny import NUM_LETTER_TOKENS, save_letter_tokenizer, save_tiny_llama
from workers.target.server import TargetConfig

pytestmark = pytest.mark.timeout(120)

SEEDS = range(2)
# Every structure here is complete within these tokens, once there are no blanks: a random model would write many.
FREE = SamplingParams(max_tokens=96, bad_words=["\t", "\n", "\r", " "])
OFF = Speculation(mode="off")
DRAFTED = [
    Speculation(drafters=["ngram"]),
    Speculation(drafters=["itself"], max_nodes=4),
    Speculation(drafters=["other", "ngram"], max_nodes=4),
]


@dataclass(frozen=True)
class Structure:
    sampling: SamplingParams
    is_valid: Callable[[str], bool]
    example: str  # in the prompt, for prompt lookup to find


def of_schema(seed: int, example: str) -> Structure:
    schema = random_schema(Random(seed))
    return Structure(
        replace(FREE, json_schema=json.dumps(schema)), lambda text: is_valid(json.loads(text), schema), example
    )


def of_regex(regex: str, example: str, **structure: Any) -> Structure:
    """The expression itself, or another structure with the same texts."""
    sampling = replace(FREE, **(structure or {"regex": regex}))
    return Structure(sampling, lambda text: re.fullmatch(regex, text) is not None, example)


PAIRS = """
start: pair ("," pair){0,2}
pair: NAME "=" NUMBER
NAME: /[a-z]{1,4}/
NUMBER: /[0-9]{1,3}/
"""
STRUCTURES = {
    "schema of an object": of_schema(16, '{"d":null,"b":42,"c":"fee"}'),
    "schema of a list": of_schema(17, '[{"b":"red","c":null},{"b":true,"c":null}]'),
    "regex": of_regex("(ab|cd){1,10}-end", "abcdabcd-end"),
    "long regex": of_regex("[ -~]{16,24}", "Hello, world"),
    "choice": of_regex('red|grün|a"b"', "grün", choice=["red", "grün", 'a"b"']),
    "grammar": of_regex("[a-z]{1,4}=[0-9]{1,3}(,[a-z]{1,4}=[0-9]{1,3}){0,2}", "ab=12,cd=7", grammar=PAIRS),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a tiny target; prompt lookup, the target itself and another model draft for it. Lossy rules are allowed."""
    models = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("model")
        save_tiny_llama(folder, vocab=NUM_LETTER_TOKENS, seed=seed, num_layers=1, max_context=512, with_tokenizer=False)
        save_letter_tokenizer(folder)
        models.append(folder)
    itself, other = models
    target = TargetConfig(model=str(itself), dtype="float32", threads=1, kv_cache_bytes=8 << 20, profile_s=0)
    drafters = [drafter_config("ngram"), drafter_config(f"itself=model:{itself}", f"other=model:{other}")]
    scheduler = SchedulerConfig(listen="127.0.0.1:0", draft_wait_s=60, allow_lossy=True)
    with local_cell(target, drafters, scheduler) as cell, Client(cell.endpoint) as client:
        yield client


Answers = dict[str, list[Answer]]  # by structure, one for each seed


def ask(client: Client, structure: Structure, seed: int, speculation: Speculation) -> Answer:
    prompt = f"answer: {structure.example}\nanswer: "
    sampling = replace(structure.sampling, seed=seed)
    return client.generate(prompt, sampling=sampling, speculation=speculation).result()


def ask_all(client: Client, speculation: Speculation) -> Answers:
    """All structures with all seeds at once: rows of every kind share a pass."""
    with ThreadPoolExecutor(len(STRUCTURES) * len(SEEDS)) as pool:
        calls = {
            name: [pool.submit(ask, client, structure, seed, speculation) for seed in SEEDS]
            for name, structure in STRUCTURES.items()
        }
        return {name: [call.result() for call in of_seeds] for name, of_seeds in calls.items()}


@pytest.fixture(scope="module")
def plain(client: Client) -> Answers:
    return ask_all(client, OFF)


def check(structure: Structure, answers: list[Answer]) -> None:
    """Every answer is complete and valid."""
    assert {answer.finish_reason for answer in answers} == {"end"}
    assert [answer.text for answer in answers if not structure.is_valid(answer.text)] == []


@pytest.mark.parametrize("name", STRUCTURES)
def test_answers_are_valid(name: str, plain: Answers) -> None:
    check(STRUCTURES[name], plain[name])


@pytest.mark.parametrize("speculation", DRAFTED, ids=lambda each: "+".join(each.drafters))
def test_with_the_same_seed_drafts_change_no_token(speculation: Speculation, client: Client, plain: Answers) -> None:
    num_drafted = num_accepted = 0
    for name, answers in ask_all(client, speculation).items():
        for drafted, alone in zip(answers, plain[name], strict=True):
            assert drafted.token_ids == alone.token_ids, name
            assert (drafted.text, drafted.finish_reason) == (alone.text, alone.finish_reason), name
            num_drafted += drafted.speculation.num_drafted_nodes
            num_accepted += drafted.speculation.num_accepted_tokens
    assert 0 < num_accepted < num_drafted, "drafts must be used, and some of them be wrong"


def test_without_its_structure_no_answer_is_valid(client: Client) -> None:
    """The wrong twin: were these valid too, the other tests would show nothing."""
    for structure in STRUCTURES.values():
        answer = ask(client, replace(structure, sampling=replace(FREE, max_tokens=16)), 0, OFF)
        with pytest.raises((AssertionError, ValueError)):
            check(structure, [replace(answer, finish_reason="end")])


@pytest.mark.parametrize("rule", ["rejection", "typical"])
def test_answers_are_valid_under_the_other_rules(rule: AcceptanceRule, client: Client) -> None:
    num_accepted = 0
    speculation = Speculation(acceptance_rule=rule, drafters=["ngram", "itself"], max_nodes=4)
    for name, answers in ask_all(client, speculation).items():
        check(STRUCTURES[name], answers)
        for answer in answers:
            num_accepted += answer.speculation.num_accepted_tokens
            assert (answer.speculation.acceptance_rule, answer.speculation.is_lossy) == (rule, rule == "typical")
    assert num_accepted > 0


def test_each_of_n_answers_is_valid_and_can_be_had_again_alone(client: Client) -> None:
    structure = STRUCTURES["schema of an object"]
    prompt = f"answer: {structure.example}\nanswer: "
    sampling = replace(structure.sampling, seed=11, n=3)
    answers = client.generate_all(prompt, sampling=sampling, speculation=DRAFTED[0])
    check(structure, answers)
    assert len({answer.seed for answer in answers}) == 3
    assert answers[0].seed == 11
    alone = [ask(client, structure, answer.seed, OFF) for answer in answers]
    assert [answer.token_ids for answer in alone] == [answer.token_ids for answer in answers]


def test_log_probabilities_are_of_the_law_before_the_structure_and_the_same_with_drafts(client: Client) -> None:
    structure = STRUCTURES["regex"]
    with_logprobs = replace(structure, sampling=replace(structure.sampling, logprobs=2))
    plain, drafted = (ask(client, with_logprobs, 1, each) for each in (OFF, DRAFTED[0]))
    assert plain.logprobs is not None
    assert drafted.logprobs is not None
    assert drafted.speculation.num_accepted_tokens > 0
    for ours, theirs in zip(drafted.logprobs, plain.logprobs, strict=True):
        assert ours.top_ids == theirs.top_ids
        assert (ours.logprob, *ours.top_logprobs) == pytest.approx((theirs.logprob, *theirs.top_logprobs), abs=1e-4)
    is_outside = [not set(entry.top_ids) & set(plain.token_ids) for entry in plain.logprobs]
    assert any(is_outside), "the likeliest tokens of a random model are mostly not the grammar's"
