"""Structured output: which tokens a request's grammar allows after each node's path. The parser is llguidance's.

The state follows the committed tokens. Along a tree it is advanced node by node and rolled back, so what is allowed
is a function of a node's path alone. A node that the grammar excludes is a dead end: the walk can't come to it, since
its token was excluded where it would have had to be chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from outrider.errors import InvalidRequest, NoTokenLeft, Unsupported
from outrider.tree import ROOT
from workers.prefix import common_len
from workers.vocabulary import TOKENIZER_FILE


class Grammars:
    """What the grammars of one model's requests share: its vocabulary, as llguidance reads it."""

    def __init__(self, folder: Path, vocab_size: int, end_token_ids: Sequence[int]) -> None:
        """`vocab_size`: of the logits; ids that the tokenizer does not have are never allowed."""
        self._file = folder / TOKENIZER_FILE
        self._vocab_size = vocab_size
        self._end_token_ids = list(end_token_ids)

    def open(self, grammar: str) -> GrammarState:
        """Raises InvalidRequest for what is no grammar, Unsupported where the model's tokenizer allows none."""
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise InvalidRequest(f"grammar: {matcher.get_error()}")
        return GrammarState(matcher, self._vocab_size, frozenset(self._end_token_ids))

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        """Made at the first grammar: it takes a moment, and most cells never see one."""
        if not self._file.is_file():
            raise Unsupported("grammar is set: this model has no tokenizer.json, so its tokens have no text")
        if not self._end_token_ids:
            raise Unsupported("grammar is set: this model has no end token, so no answer could be complete")
        try:
            return LLTokenizer(str(self._file), n_vocab=self._vocab_size, eos_token=self._end_token_ids)
        except (ValueError, RuntimeError) as err:
            raise Unsupported(f"grammar is set: llguidance can't read this model's tokenizer: {err}") from err


class GrammarState:
    """One request's place in its grammar."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, ends: Collection[int]) -> None:
        self._matcher = matcher
        self._unused = matcher.deep_copy()  # a matcher that gave up is of no more use
        self._vocab_size = vocab_size
        self._ends = ends
        self._consumed: list[int] = []

    def masks(
        self,
        completion: Sequence[int],  # the committed tokens of the answer
        node_tokens: Sequence[int],  # [num_nodes]
        node_parents: Sequence[int],  # [num_nodes]; -1 is the root, otherwise parents[i] < i
    ) -> npt.NDArray[np.bool_]:
        """Which tokens may come after the root, then after each node: [1 + num_nodes, vocab]. False throughout after
        a node that may not come itself, that ends the answer, or where the parser gives up.

        Raises InvalidRequest where the committed tokens don't follow the grammar, NoTokenLeft where the parser gives
        up on them: its limits bound the time and the memory that a grammar may take.
        """
        self._follow(completion)
        masks = np.zeros((1 + len(node_tokens), self._vocab_size), np.bool_)
        masks[0] = self._mask()
        children: list[list[int]] = [[] for _ in masks]
        for node, parent in enumerate(node_parents):
            children[0 if parent == ROOT else parent + 1].append(node)
        self._descend(0, masks, children, node_tokens)
        return masks

    def _descend(
        self, place: int, masks: npt.NDArray[np.bool_], children: Sequence[Sequence[int]], node_tokens: Sequence[int]
    ) -> None:
        for node in children[place]:
            token = node_tokens[node]
            if token in self._ends or not masks[place, token]:
                continue
            num_consumed = len(self._consumed)
            try:
                self._consume(token)
                masks[node + 1] = self._mask()
            except NoTokenLeft:
                # Alone, the target may never come here: it is for the walk to find that no token is left.
                self._start_again(self._consumed[:num_consumed])
                continue
            self._descend(node + 1, masks, children, node_tokens)
            self._roll_back(1)

    def _follow(self, completion: Sequence[int]) -> None:
        num_common = common_len(self._consumed, completion)
        self._roll_back(len(self._consumed) - num_common)
        for token in completion[num_common:]:
            if self._matcher.validate_tokens([token]) == 0:
                raise InvalidRequest.of("tokens", token, "the request's grammar does not allow it there")
            self._consume(token)

    def _consume(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise NoTokenLeft(f"the grammar can't be followed any further: {self._matcher.get_error()}")
        self._consumed.append(token)

    def _roll_back(self, num_tokens: int) -> None:
        if num_tokens:
            self._matcher.rollback(num_tokens)
            del self._consumed[-num_tokens:]

    def _start_again(self, path: Sequence[int]) -> None:
        """Where `path` leads, with a parser that has not given up."""
        self._matcher = self._unused.deep_copy()
        self._consumed = []
        for token in path:
            self._consume(token)

    def _mask(self) -> npt.NDArray[np.bool_]:
        packed = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise NoTokenLeft(f"the grammar can't be followed any further: {self._matcher.get_error()}")
        bits = np.frombuffer(packed, np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(np.bool_)
