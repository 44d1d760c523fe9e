"""A small model of the target's family that runs ahead: a chain of its own choices, with the target's noise.

The drafter makes each choice as the target would: same processing, same noise at the same absolute position. So
it guesses the target's sample, and not only its mode (coupling without communication, arXiv 2408.07978). Under the
rejection rule it draws from its own law instead (drawing.py).

    committed tokens                  chain
    0 ................ root           drafted, below the root
    |---------- num_cached ----------|x      all but the last token, at least, once a step has run

A verdict that agrees with the chain moves the border between the two to the right, and nothing is computed again.
What was drawn is never kept across a verdict: that verdict depended on it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from outrider.draft_law import DraftLaw
from outrider.errors import InvalidRequest
from outrider.v1 import worker_pb2
from workers.choice.choose import Noise, noisy_scores
from workers.choice.noise import kept_noise
from workers.choice.params import ChoiceParams
from workers.choice.paths import Paths
from workers.choice.penalties import edit
from workers.draft.drafter import NewNodes, Resources
from workers.draft.drawing import draw, is_drawn, law_to_draw_from
from workers.engine.batch import Row
from workers.engine.checkpoint import prepare_checkpoint
from workers.engine.device import resolve_device, set_num_threads
from workers.engine.runner import Engine
from workers.prefix import common_len
from workers.vocabulary import vocabulary_of

MAX_STEP_TOKENS = 512  # of all requests; longer prompts take several steps, and others draft meanwhile
MAX_GAP = 100.0  # the score of a choice without a runner-up

_log = logging.getLogger(__name__)


def load(source: str, resources: Resources) -> ModelDrafter:
    """The drafter of the model that `source` names: a folder, a .gguf file or a hub name."""
    if not source:
        raise InvalidRequest.of("drafters", "model", 'it names its model: "model:PATH_OR_NAME"')
    set_num_threads(resources.threads)
    checkpoint = prepare_checkpoint(source, cache_dir=resources.cache_dir)
    engine = Engine(
        checkpoint,
        device=resources.device,
        dtype=resources.dtype,
        kv_cache_bytes=resources.kv_cache_bytes,
        compiled=resources.compiled,
        cache_dir=resources.cache_dir,
    )
    noise = kept_noise(engine.spec.vocab_size, resolve_device(resources.device))
    return ModelDrafter(engine, vocabulary_of(checkpoint.folder, engine.spec.vocab_size), noise)


@dataclass(slots=True)
class _Request:
    params: ChoiceParams
    committed: list[int] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)  # [len(chain)]
    laws: list[DraftLaw] = field(default_factory=list)  # [len(chain)] where the chain is drawn, otherwise empty
    max_nodes: int = 0
    num_told: int = 0  # nodes of the chain that the caller has been given since `begin`
    is_live: bool = False
    largest_token: int = -1  # of the committed ones

    def uncached(self, num_cached: int) -> list[int]:
        if num_cached < len(self.committed):
            return self.committed[num_cached:] + self.chain
        return self.chain[num_cached - len(self.committed) :]


class ModelDrafter:
    """Drafts one node a step for every live request, in one forward."""

    kind = "model"
    draws = True

    def __init__(self, engine: Engine, vocabulary: worker_pb2.Vocabulary, noise: Noise | None) -> None:
        self.model = engine.spec.name
        self.vocabulary = vocabulary
        self.max_context = engine.spec.max_context
        self._engine = engine
        self._noise = noise
        self._requests: dict[int, _Request] = {}  # the longest unused first

    def open(self, key: int, params: ChoiceParams) -> None:
        self._requests[key] = _Request(params)
        self._engine.open(key)

    def extend(self, key: int, tokens: Sequence[int]) -> None:
        request = self._requests[key]
        num_agreeing = common_len(tokens, request.chain)
        survives = num_agreeing == len(tokens) and not is_drawn(request.params)
        self._truncate(key, len(request.committed) + (len(request.chain) if survives else num_agreeing))
        request.chain = request.chain[num_agreeing:] if survives else []
        request.scores = request.scores[num_agreeing:] if survives else []
        request.laws = []
        request.committed += tokens
        request.largest_token = max(request.largest_token, *tokens, -1)
        request.is_live = False  # what it was drafting for is no root any more

    def begin(self, key: int, max_nodes: int) -> None:
        request = self._requests[key] = self._requests.pop(key)
        request.max_nodes = max_nodes
        request.num_told = 0
        request.is_live = True

    def close(self, key: int) -> None:
        self._requests.pop(key, None)
        self._engine.close(key)

    def step(self) -> list[NewNodes]:
        live = {key: request for key, request in self._requests.items() if request.is_live}
        rows = self._rows(live)
        logits = self._engine.forward(rows) if rows else []
        for row, row_logits in zip(rows, logits, strict=True):
            if row_logits is not None:
                self._draft(live[row.key], row_logits)
        return [told for key, request in live.items() if (told := _tell(key, request)) is not None]

    def _rows(self, live: dict[int, _Request]) -> list[Row]:
        """What this step computes. A request that can't go on is no longer live."""
        rows: list[Row] = []
        room = MAX_STEP_TOKENS
        for key, request in live.items():
            if self._is_finished(request):
                request.is_live = False
            if not request.is_live or not room:
                continue
            cached_before = self._engine.num_cached(key)
            self._engine.reuse(key, request.uncached(cached_before))
            # Its last token is computed, whatever is cached: the draft goes on from its logits.
            self._truncate(key, len(request.committed) + len(request.chain) - 1)
            uncached = request.uncached(self._engine.num_cached(key))
            row = Row(key, uncached[:room], wants_logits=len(uncached) <= room)
            if self._make_room([*rows, row], live):
                rows.append(row)
                room -= row.num_tokens
                continue
            # Nothing that was found is kept: the rows before this one count on its blocks being free.
            self._truncate(key, cached_before - cached_before % self._engine.block_size)
            if not rows:
                request.is_live = False  # alone, and still too long for the cache
        return rows

    def _is_finished(self, request: _Request) -> bool:
        length = len(request.committed) + len(request.chain)
        return (
            len(request.chain) >= request.max_nodes
            or not 0 < length < self.max_context
            or (bool(request.chain) and request.chain[-1] in self._engine.spec.end_token_ids)
            or request.largest_token >= self._engine.spec.vocab_size  # the target's vocabulary may be larger
        )

    def _make_room(self, rows: Sequence[Row], live: dict[int, _Request]) -> bool:
        """Forget the KV of requests that nobody waits for, the longest unused first, until the rows fit."""
        idle = [key for key in self._requests if key not in live and self._engine.num_cached(key)]
        while self._engine.blocks_needed(rows) > self._engine.num_free_blocks:
            if not idle:
                return False
            self._engine.truncate(idle.pop(0), 0)
        return True

    def _draft(
        self,
        request: _Request,
        logits: Tensor,  # [1, vocab] f32; after the last token of the chain
    ) -> None:
        text = [*request.committed, *request.chain]
        edit(logits, request.params, Paths(text))
        if not math.isfinite(float(logits.amax())):
            _log.warning("%s drafts nothing for a request: NaN, or no token left to choose", self.model)
            request.is_live = False
            return
        if is_drawn(request.params):
            _draw(request, logits[0])
        else:
            self._guess(request, logits)
        if self._is_finished(request):
            request.is_live = False

    def _guess(
        self,
        request: _Request,
        logits: Tensor,  # [1, vocab] f32, edited
    ) -> None:
        position = len(request.committed) + len(request.chain)
        scores = noisy_scores(logits, [position], [request.params], noise=self._noise)
        best, second = scores[0].topk(2).values.tolist()
        request.chain.append(int(scores.argmax()))
        request.scores.append(min(best - second, MAX_GAP))

    def _truncate(self, key: int, num_tokens: int) -> None:
        self._engine.truncate(key, min(num_tokens, self._engine.num_cached(key)))


def _draw(
    request: _Request,
    logits: Tensor,  # [vocab] f32, edited
) -> None:
    root_len = len(request.committed)
    law = law_to_draw_from(logits, request.params)
    token = draw(law, request.params.seed, root_len + len(request.chain), root_len)
    request.chain.append(token)
    request.scores.append(math.log(law.probability(token)))
    request.laws.append(law)


def _tell(key: int, request: _Request) -> NewNodes | None:
    """The nodes that the caller has not been given: new ones and, in the first step, those that still stand."""
    first, end = request.num_told, min(len(request.chain), request.max_nodes)
    if first >= end and request.is_live:
        return None
    request.num_told = max(first, end)
    return NewNodes(
        key=key,
        tokens=request.chain[first:end],
        parents=list(range(first - 1, end - 1)),
        scores=request.scores[first:end],
        is_done=not request.is_live,
        laws=request.laws[first:end],
    )
