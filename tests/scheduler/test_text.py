from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from outrider.types import TokenLogprobs
from scheduler.text import TextStream

TEXTS = st.text(alphabet="the rainSpEND. 🦊🐳éïüß\n", max_size=40)


def run(
    tokenizer: FastTokenizer,
    ids: Sequence[int],
    cuts: Sequence[int],
    stop: Sequence[str],
    *,
    include_stop: bool = False,
    min_tokens: int = 0,
) -> tuple[str, list[int], str]:
    """The text, token ids and matched stop of a stream that is fed in pieces ending at `cuts`."""
    stream = TextStream(
        tokenizer, stop=stop, include_stop=include_stop, skip_special_tokens=True, min_tokens=min_tokens
    )
    tokens = []
    edges = [0, *sorted(cuts), len(ids)]
    for start, end in itertools.pairwise(edges):
        piece = stream.push(ids[start:end], ["target"] * (end - start), [None] * (end - start))
        tokens.extend(piece.tokens)
        if piece.matched_stop:
            break
    else:
        piece = stream.flush()
        tokens.extend(piece.tokens)
    return "".join(token.text for token in tokens), [token.id for token in tokens], piece.matched_stop


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, data=st.data())
def test_streamed_text_is_the_decoded_text_however_it_is_cut(
    any_tokenizer: FastTokenizer, text: str, data: st.DataObject
) -> None:
    ids = any_tokenizer.encode(text).ids
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=4))
    assert run(any_tokenizer, ids, cuts, []) == (text, ids, "")


@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_any_tokens_become_text_however_they_are_cut(any_tokenizer: FastTokenizer, data: st.DataObject) -> None:
    token = st.integers(0, any_tokenizer.get_vocab_size() - 1).map(lambda token_id: [token_id])
    character = st.sampled_from("🦊é\n h").map(lambda text: any_tokenizer.encode(text).ids)
    ids = [token_id for drawn in data.draw(st.lists(token | character, max_size=12)) for token_id in drawn]
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=4))

    text, streamed_ids, _ = run(any_tokenizer, ids, cuts, [])

    assert (text, streamed_ids) == (run(any_tokenizer, ids, [], [])[0], ids)
    decoded = any_tokenizer.decode(ids)
    if "\ufffd" not in decoded:
        assert text == decoded


def test_bytes_that_become_no_character_are_shown_as_such(byte_fallback_tokenizer: FastTokenizer) -> None:
    ids = [byte_fallback_tokenizer.token_to_id(piece) for piece in ("▁t", "<0x0A>", "<0xF0>", "<0x9F>", "he", "▁t")]
    assert byte_fallback_tokenizer.decode(ids) == "t\ufffd\ufffd\ufffdhe t"
    assert run(byte_fallback_tokenizer, ids, [], []) == ("t\n\ufffd\ufffdhe t", ids, "")  # the line break was sent
    assert run(byte_fallback_tokenizer, ids[:4], [], []) == ("t\n\ufffd\ufffd", ids[:4], "")


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, stop=st.lists(st.text(alphabet="theEND. 🦊ü", min_size=1, max_size=4), max_size=3), data=st.data())
def test_text_ends_before_the_first_stop_string_however_it_is_cut(
    fast_tokenizer: FastTokenizer, text: str, stop: list[str], data: st.DataObject
) -> None:
    ids = fast_tokenizer.encode(text).ids
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=4))
    streamed, streamed_ids, matched = run(fast_tokenizer, ids, cuts, stop)
    assert (streamed, streamed_ids, matched) == run(fast_tokenizer, ids, [], stop)
    if matched:
        assert streamed + matched == text[: len(streamed) + len(matched)]
        assert not any(other in streamed for other in stop)
        assert streamed_ids == ids[: len(streamed_ids)]
    else:
        assert streamed == text
        assert not any(other in text for other in stop)


def test_a_stop_string_can_be_kept(fast_tokenizer: FastTokenizer) -> None:
    ids = fast_tokenizer.encode("the rain END. of it").ids
    assert run(fast_tokenizer, ids, [2], ["END"], include_stop=True)[0] == "the rain END"
    assert run(fast_tokenizer, ids, [2], ["END"])[0] == "the rain "


def test_a_stop_string_before_min_tokens_ends_nothing(fast_tokenizer: FastTokenizer) -> None:
    ids = fast_tokenizer.encode("the END of the END").ids
    num_tokens = next(n for n in range(len(ids)) if "END" in fast_tokenizer.decode(ids[:n]))

    assert run(fast_tokenizer, ids, [2], ["END"], min_tokens=num_tokens)[0] == "the "
    assert run(fast_tokenizer, ids, [2], ["END"], min_tokens=num_tokens + 1)[0] == "the END of the "


def test_each_token_keeps_its_log_probabilities(fast_tokenizer: FastTokenizer) -> None:
    ids = fast_tokenizer.encode("the ü END of").ids
    logprobs = [TokenLogprobs(-float(i), (i,), (0.0,)) for i in range(len(ids))]
    stream = TextStream(fast_tokenizer, stop=["END of X"], include_stop=False, skip_special_tokens=True)

    tokens = [*stream.push(ids, ["target"] * len(ids), logprobs).tokens, *stream.flush().tokens]

    assert [token.logprobs for token in tokens] == logprobs


def test_a_broken_character_at_the_end_is_shown_as_such(fast_tokenizer: FastTokenizer) -> None:
    ids = fast_tokenizer.encode("ü").ids[:1]
    assert fast_tokenizer.decode(ids) != "ü", "ü must be several tokens here"
    text, streamed_ids, _ = run(fast_tokenizer, ids, [], [])
    assert (text, streamed_ids) == ("\ufffd", ids)


def test_special_tokens_have_no_text_unless_asked_for(fast_tokenizer: FastTokenizer) -> None:
    ids = [*fast_tokenizer.encode("the").ids, fast_tokenizer.token_to_id("</s>")]
    assert run(fast_tokenizer, ids, [], []) == ("the", ids, "")
    stream = TextStream(fast_tokenizer, stop=[], include_stop=False, skip_special_tokens=False)
    tokens = [*stream.push(ids, ["target"] * len(ids), [None] * len(ids)).tokens, *stream.flush().tokens]
    assert "".join(token.text for token in tokens) == "the</s>"
