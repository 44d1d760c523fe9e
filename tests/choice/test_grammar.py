"""What a grammar allows after each node: a function of the node's path alone, and complete answers are valid."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from outrider.errors import InvalidRequest, NoTokenLeft, Unsupported
from outrider.v1 import inference_pb2 as pb
from scheduler.constraints import grammar_of
from tests.schemas import is_valid, random_schema
from workers.choice.grammar import Grammars, GrammarState

pytestmark = pytest.mark.model

END = 2
VOCAB = 49_152
MAX_TOKENS = 120


@pytest.fixture(scope="module")
def grammars(smollm2: Path) -> Grammars:
    return Grammars(smollm2, VOCAB, [END])


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2 / "tokenizer.json"))


def choice(allowed: Sequence[int], path: Sequence[int], seed: int) -> int:
    """A toy target: any function of the path will do."""
    return int(allowed[random.Random(f"{seed}:{list(path)}").randrange(len(allowed))])


def decode(state: GrammarState, seed: int) -> list[int]:
    tokens: list[int] = []
    while END not in tokens and len(tokens) < MAX_TOKENS:
        tokens.append(choice(state.masks(tokens, [], [])[0].nonzero()[0], tokens, seed))
    return tokens


def decode_with_trees(state: GrammarState, seed: int, future: Sequence[int]) -> list[int]:
    """The same target, with trees of right nodes, wrong ones that the grammar allows, and dead ends."""
    rng = random.Random(seed)
    tokens: list[int] = []
    while END not in tokens and len(tokens) < MAX_TOKENS:
        nodes: list[int] = []
        parents: list[int] = []
        for _ in range(rng.randrange(6)):
            parent = rng.choice([len(nodes) - 1, rng.randrange(-1, len(nodes)) if nodes else -1])
            depth = len(behind(parent, nodes, parents))
            is_right = rng.random() < 0.6 and len(tokens) + depth < len(future)
            nodes.append(future[len(tokens) + depth] if is_right else rng.choice([END, rng.randrange(VOCAB)]))
            parents.append(parent)
        masks = state.masks(tokens, nodes, parents)
        here = -1
        walked: list[int] = []
        while True:
            token = choice(masks[here + 1].nonzero()[0], [*tokens, *walked], seed)
            walked.append(token)
            child = next((i for i, p in enumerate(parents) if p == here and nodes[i] == token and token != END), None)
            if child is None:
                break
            here = child
        tokens += walked
    return tokens[:MAX_TOKENS]


def behind(node: int, nodes: Sequence[int], parents: Sequence[int]) -> list[int]:
    return [] if node == -1 else [*behind(parents[node], nodes, parents), nodes[node]]


def test_complete_answers_of_200_random_schemas_are_valid_and_drafts_change_none(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    num_complete = 0
    for seed in range(200):
        schema = random_schema(random.Random(seed))
        grammar = grammar_of(pb.SamplingParams(json_schema=json.dumps(schema)))
        plain = decode(grammars.open(grammar), seed)

        assert decode_with_trees(grammars.open(grammar), seed, plain) == plain
        if plain[-1] == END:
            num_complete += 1
            assert is_valid(json.loads(tokenizer.decode(plain[:-1])), schema), (schema, tokenizer.decode(plain))
    assert num_complete > 150, "answers that never end prove nothing"


def test_a_mask_of_the_root_used_for_every_node_is_seen(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """A wrong twin."""
    state = grammars.open(grammar_of(pb.SamplingParams(regex="(ab)+")))
    tokens = [tokenizer.token_to_id("a"), tokenizer.token_to_id("b")]

    masks = state.masks([], tokens, [-1, 0])

    assert not (masks[0] == masks[1]).all()
    assert (state.masks(tokens[:1], [], [])[0] == masks[1]).all()


def test_masks_are_a_function_of_the_path_however_tokens_came(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = grammar_of(pb.SamplingParams(json_schema='{"type": "object", "properties": {"a": {"type": "integer"}}}'))
    text = tokenizer.encode('{"a": 123}', add_special_tokens=False).ids
    along = grammars.open(grammar).masks([], text, list(range(-1, len(text) - 1)))

    state = grammars.open(grammar)
    for num in (3, 1, len(text), 0, 2):  # truncated, and told again
        assert (state.masks(text[:num], [], [])[0] == along[num]).all()
    assert along[-1].nonzero()[0].tolist() == [END], "a complete answer can only end"


def test_a_dead_end_and_what_is_behind_it_are_false_throughout(grammars: Grammars, tokenizer: Tokenizer) -> None:
    state = grammars.open(grammar_of(pb.SamplingParams(choice=pb.Choices(values=["yes", "no"]))))
    yes = tokenizer.encode("yes", add_special_tokens=False).ids

    masks = state.masks([], [0, yes[0], END, 5], [-1, 0, -1, 2])

    assert not masks[1:].any()
    assert masks[0].any()


def test_a_draft_on_which_the_parser_gives_up_is_a_dead_end_and_the_request_goes_on(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    too_many = " | ".join(f'"c{number}"' for number in range(2_500))
    grammar = grammar_of(pb.SamplingParams(grammar=f'start: "a" | "b" ({too_many})'))
    a, b, c = (tokenizer.token_to_id(letter) for letter in "abc")
    with pytest.raises(NoTokenLeft, match="can't be followed any further"):
        grammars.open(grammar).masks([b], [], [])
    state = grammars.open(grammar)

    masks = state.masks([], [b, c, a, b], [-1, 0, -1, 2])

    assert masks[0, [a, b]].all()
    assert not masks[[1, 2, 4]].any()
    assert masks[3].nonzero()[0].tolist() == [END], "the parser has come back to where it was"
    assert state.masks([a], [], [])[0].nonzero()[0].tolist() == [END]


def test_choices_are_written_letter_by_letter(grammars: Grammars, tokenizer: Tokenizer) -> None:
    values = ['a "b"', "back\\slash", "line\nbreak", "größe", "a/b"]
    grammar = grammar_of(pb.SamplingParams(choice=pb.Choices(values=values)))

    answers = {tokenizer.decode(decode(grammars.open(grammar), seed)[:-1]) for seed in range(60)}

    assert answers == set(values)


def test_committed_tokens_that_contradict_the_grammar_are_refused(grammars: Grammars) -> None:
    with pytest.raises(InvalidRequest, match="tokens is 5"):
        grammars.open(grammar_of(pb.SamplingParams(regex="[0-9]+"))).masks([5], [], [])


def test_a_model_without_texts_for_its_tokens_has_no_grammars(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"tokenizer\.json"):
        Grammars(tmp_path, 10, [0]).open('start: "a"')
