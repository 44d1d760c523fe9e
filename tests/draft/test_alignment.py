"""Texts that pass between tokenizers: whatever they are, and wherever tokens end, nothing else is said."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.draft.toy_tokenizers import CONTROLS, SENTENCES, byte_level, with_byte_fallback, word_pieces
from workers.draft.alignment import DraftText, TargetText
from workers.draft.tokenizer_pair import TokenizerPair, decode

KINDS = {
    "merges of bytes": lambda: byte_level(330),
    "more merges of bytes": lambda: byte_level(420, controls=["<s>", "<turn>"]),
    "byte fallback": lambda: with_byte_fallback(300),
    "word pieces": lambda: word_pieces(200),
}
LOSSLESS = ["merges of bytes", "more merges of bytes", "byte fallback"]
WORDS = [*CONTROLS, *(word for sentence in SENTENCES for word in sentence.split(" ")), " ", "\n", "é", "🙂", "\ufffd"]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=12).map("".join)
SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
pairs = pytest.mark.parametrize(("target", "draft"), [*zip(KINDS, [*list(KINDS)[1:], next(iter(KINDS))], strict=True)])
lossless_pairs = pytest.mark.parametrize(
    ("target", "draft"), [(one, other) for one in LOSSLESS for other in LOSSLESS if one != other]
)


@cache
def made(kind: str) -> str:
    return KINDS[kind]().to_str()


@cache
def pair_of(target: str, draft: str) -> TokenizerPair:
    return TokenizerPair(Tokenizer.from_str(made(target)), Tokenizer.from_str(made(draft)), [])


def written(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@pairs
@given(data=st.data(), text=TEXTS)
@SETTINGS
def test_a_text_that_is_heard_in_parts_is_the_one_that_is_heard_at_once(
    target: str, draft: str, data: st.DataObject, text: str
) -> None:
    pair = pair_of(target, draft)
    tokens = written(pair.target, text + ".")  # "\ufffd" at the end might be a character that is not finished
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=6)))
    heard = TargetText(pair)
    for begin, end in pairwise([0, *cuts, len(tokens)]):
        heard.extend(tokens[begin:end])

    assert heard.text == decode(pair.target, [token for token in tokens if token not in pair.target_only])


@lossless_pairs
@given(data=st.data(), texts=st.lists(TEXTS, min_size=1, max_size=6))
@SETTINGS
def test_what_the_draft_model_has_said_is_the_text_and_what_stands_of_it_stands(
    target: str, draft: str, data: st.DataObject, texts: list[str]
) -> None:
    """The target agrees with a part of what was said, and goes on in its own way."""
    pair = pair_of(target, draft)
    said = DraftText(pair)
    for more in texts:
        text = said.text[: data.draw(st.integers(0, len(said.text)))] + more
        before, text_before = list(said.ids), said.text

        num_standing = said.tell(text)

        assert said.text == text + said.added
        assert said.ids[:num_standing] == before[:num_standing]
        assert said.ids[num_standing:][:1] != before[num_standing:][:1] or num_standing == len(before)
        assert read(pair, said.ids) == said.text or said.text == text_before
        for token in data.draw(st.lists(st.integers(3, pair.draft.get_vocab_size() - 1), max_size=4)):
            said.add(token, 1.0)


def read(pair: TokenizerPair, ids: list[int]) -> str:
    """As the draft model reads it. Byte fallback begins a text with a blank that is none of its own."""
    text = decode(pair.draft, ids)
    return text.removeprefix("<s>").removeprefix(" ") if pair.opening else text


@pairs
@given(data=st.data(), before=TEXTS, more=TEXTS)
@SETTINGS
def test_only_what_continues_the_targets_text_is_proposed(
    target: str, draft: str, data: st.DataObject, before: str, more: str
) -> None:
    pair = pair_of(target, draft)
    tokens = written(pair.target, before)
    tokens = tokens[: data.draw(st.integers(0, len(tokens)))]  # ends anywhere, also in the middle of a character
    heard = TargetText(pair)
    heard.extend(tokens)

    words = heard.continued(more)

    whole = decode(pair.target, [*tokens, *(word.token for word in words)])
    if words:
        assert whole.endswith(more)
        assert [word.end for word in words] == sorted(word.end for word in words)
    else:
        assert decode(pair.target, tokens) == whole


@lossless_pairs
@given(before=TEXTS.filter(lambda text: not text.endswith("\ufffd")), more=TEXTS.filter(bool))
@SETTINGS
def test_whatever_follows_a_text_can_be_said_in_the_targets_tokens(
    target: str, draft: str, before: str, more: str
) -> None:
    pair = pair_of(target, draft)
    heard = TargetText(pair)
    heard.extend(written(pair.target, "x" + before))

    assert heard.continued(more)
