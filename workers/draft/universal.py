"""A draft model with a tokenizer of its own, which drafts for any target: it is told the committed tokens as text, and
what it says is told in the target's tokens (alignment.py).

The same as a model drafter otherwise, with two differences. It guesses a chain with runners-up beside it, not a tree:
what a token of its own is to the target is known only behind it. And what depends on the target's tokens one by one,
such as penalties, bans or a grammar, does not reach it; the noise does, by spelling (carried_noise.py).

(As "universal assisted generation" in Hugging Face transformers; Timor et al., arXiv 2502.05202.)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

from tokenizers import Tokenizer
from torch import Tensor

from outrider.calibration import by_score
from outrider.errors import InvalidRequest
from outrider.v1 import worker_pb2
from workers.choice.choose import noisy_scores
from workers.choice.params import ChoiceParams
from workers.draft.carried_noise import CarriedNoise
from workers.draft.drafter import Request, Resources
from workers.draft.guessing import MAX_CHILDREN, MAX_GAP
from workers.draft.model import MAX_STEP_TOKENS, load_engine
from workers.draft.retold_chain import KIND, Guess, RetoldChain
from workers.draft.tokenizer_pair import TokenizerPair
from workers.engine.batch import Row
from workers.engine.runner import Engine
from workers.vocabulary import TOKENIZER_FILE

_log = logging.getLogger(__name__)


def load(source: str, resources: Resources) -> UniversalDrafter:
    """The drafter of the model that `source` names: a folder, a .gguf file or a hub name."""
    if not source:
        raise InvalidRequest.of("drafters", KIND, 'it names its model: "universal:PATH_OR_NAME"')
    checkpoint, engine = load_engine(source, resources)
    file = checkpoint.folder / TOKENIZER_FILE
    if not file.is_file():
        raise InvalidRequest.of("drafters", f"{KIND}:{source}", f"the model has no {TOKENIZER_FILE} to read texts with")
    return UniversalDrafter(engine, Tokenizer.from_file(str(file)))


@dataclass(slots=True)
class _State:
    """What the drafter keeps of a request."""

    key: int  # the engine's, for the KV of the chain's ids
    chain: RetoldChain
    is_readable: bool = True  # all ids are the model's


class UniversalDrafter:
    """Goes on with the chains of all live requests by one forward a step."""

    kind = KIND
    vocabulary = worker_pb2.Vocabulary()
    draws = False

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.model = engine.spec.name
        # In the model's own tokens.
        self.max_context = min(engine.spec.max_context, engine.num_blocks * engine.block_size)
        self._engine = engine
        self._tokenizer = tokenizer
        self._output_ids = engine.output_ids if engine.output_ids is not None else range(engine.spec.vocab_size)
        self._calibrations = {True: by_score(), False: by_score()}  # by whether the request is greedy
        self._pair: TokenizerPair | None = None
        self._noise: CarriedNoise | None = None
        self._states: dict[int, _State] = {}  # the longest unused first
        self._keys = count()

    def take_tokenizer(self, tokenizer: Tokenizer) -> None:
        self._pair = TokenizerPair(tokenizer, self._tokenizer, self._engine.spec.end_token_ids)
        self._noise = CarriedNoise(self._pair, self._output_ids, self._engine.device)

    def open(self, request: Request) -> None:
        assert self._pair is not None, "the target's tokenizer comes before any request"
        calibration = self._calibrations[request.params.temperature == 0]
        chain = RetoldChain(self._pair, calibration, request.params.end_token_ids)
        state = self._states[request.key] = _State(next(self._keys), chain)
        self._engine.open(state.key)

    def commit(self, request: Request, tokens: Sequence[int]) -> None:
        state = self._states[request.key]
        for node, is_accepted in request.tree.judged(tokens):
            vote = node.votes[self.kind]
            self._calibrations[request.params.temperature == 0].learn(vote.rank, vote.score, is_accepted=is_accepted)
        num_standing = state.chain.commit(tokens)
        self._truncate(state, num_standing)
        state.is_readable &= max(state.chain.ids[num_standing:], default=0) < self._engine.spec.vocab_size

    def close(self, request: Request) -> None:
        self._engine.close(self._states.pop(request.key).key)

    def step(self, requests: Sequence[Request]) -> None:
        for request in requests:
            state = self._states[request.key] = self._states.pop(request.key)
            state.chain.grow(request)
            request.is_live = self._may_go_on(request)
        live = [request for request in requests if request.is_live]
        rows = self._rows(live)
        if not rows:
            return
        logits = self._engine.forward_packed(list(rows.values()))
        asked = [request for request in live if request.key in rows and rows[request.key].wants_logits]
        for request, guesses in zip(asked, self._guesses(logits, asked), strict=True):
            chain = self._states[request.key].chain
            if guesses:
                chain.guess(guesses, request)
            chain.is_over |= not guesses or len(chain.ids) >= self.max_context
            chain.grow(request)
            request.is_live = self._may_go_on(request)

    def _may_go_on(self, request: Request) -> bool:
        state = self._states[request.key]
        fits = 0 < len(state.chain.ids) < self.max_context
        return state.is_readable and fits and state.chain.may_go_on(request)

    def _rows(self, live: Sequence[Request]) -> dict[int, Row]:
        """What this step computes, by request: the ids that the cache lacks. In turn where it is full: the first ones
        in line take the room of the last ones, and the first that finds none waits, and all behind it."""
        rows: dict[int, Row] = {}
        room = MAX_STEP_TOKENS
        for turn, request in enumerate(live):
            if room == 0:
                break
            row = self._row(self._states[request.key], room)
            if not self._make_room([*rows.values(), row], live, turn):
                self._truncate(self._states[request.key], 0)  # the rows before count on its blocks being free
                request.is_live = turn > 0  # the first one has had the whole cache
                break
            rows[request.key] = row
            room -= row.num_tokens
        return rows

    def _row(self, state: _State, max_tokens: int) -> Row:
        """Of a long text a chunk, which wants no logits. What the prefix cache has is not computed again."""
        ids = state.chain.ids
        if len(ids) - self._engine.num_cached(state.key) > 1:
            self._engine.reuse(state.key, ids[self._engine.num_cached(state.key) :])
        # The last one is computed, whatever is cached: the chain goes on with its logits.
        self._truncate(state, len(ids) - 1)
        rest = ids[self._engine.num_cached(state.key) :]
        return Row(state.key, rest[:max_tokens], wants_logits=len(rest) <= max_tokens)

    def _guesses(
        self,
        logits: Tensor,  # [num_asked, num_outputs] f32
        asked: Sequence[Request],
    ) -> list[list[Guess]]:
        """Of each, the likeliest tokens of the draft model, the best first; empty where it says nothing of use."""
        if not asked:
            return []
        assert self._noise is not None
        chains = [self._states[request.key].chain for request in asked]
        positions = [len(request.tokens) + chain.num_steps for request, chain in zip(asked, chains, strict=True)]
        params = [_as_guessed(request.params) for request in asked]
        usable = logits.amax(dim=-1).isfinite().tolist()
        scores = noisy_scores(logits, positions, params, noise=self._noise)
        best = scores.topk(min(MAX_CHILDREN, scores.shape[-1]), dim=-1)
        if not all(usable):
            _log.warning("%s has nothing to say after a text: its logits are NaN", self.model)
        return [
            self._ranked(values, places) if is_usable else []
            for is_usable, values, places in zip(usable, best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _ranked(self, values: Sequence[float], places: Sequence[int]) -> list[Guess]:
        """`places`: among the model's outputs."""
        guesses = []
        for rank, (value, place) in enumerate(zip(values, places, strict=True)):
            if value == -math.inf:
                break
            other = values[0] if rank else values[1] if len(values) > 1 else -math.inf
            guesses.append(Guess(self._output_ids[place], max(-MAX_GAP, min(MAX_GAP, value - other))))
        return guesses

    def _make_room(self, rows: Sequence[Row], live: Sequence[Request], turn: int) -> bool:
        """Forget the KV of requests until the rows fit: of idle ones, the longest unused first, then of those behind
        `turn` in line, the last first."""
        waited = {request.key for request in live}
        idle = [state for key, state in self._states.items() if key not in waited]
        others = [*(self._states[request.key] for request in live[turn + 1 :]), *reversed(idle)]
        while self._engine.blocks_needed(rows) > self._engine.num_free_blocks:
            if not others:
                return False
            self._truncate(others.pop(), 0)
        return True

    def _truncate(self, state: _State, num_ids: int) -> None:
        self._engine.truncate(state.key, min(num_ids, self._engine.num_cached(state.key)))


def _as_guessed(params: ChoiceParams) -> ChoiceParams:
    """Under the rejection rule nothing may depend on the noise: the target's decisions are to be independent of it."""
    return replace(params, temperature=0) if params.is_drawn_for else params
