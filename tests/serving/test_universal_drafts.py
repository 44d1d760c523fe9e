"""A draft model with another tokenizer in a whole cell: the same tokens, and fewer passes where it says the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from outrider import Client, SamplingParams, Speculation
from scheduler.server import SchedulerConfig
from tests.draft.toy_models import TEXT, save_speaking_llama
from tests.draft.toy_tokenizers import byte_level
from tests.serving.conftest import drafter_config
from tests.serving.local_cell import LocalCell, local_cell
from tests.tiny import save_tiny_llama
from workers.target.server import TargetConfig
from workers.vocabulary import TOKENIZER_FILE

pytestmark = pytest.mark.timeout(120)

OFF = Speculation(mode="off")
SAMPLINGS = {
    "greedy": {"temperature": 0},
    "hot": {"temperature": 1.5, "seed": 3},
    "penalties": {"temperature": 5.0, "seed": 4, "repetition_penalty": 1.5, "bad_words": ["abc"]},
    "a choice": {"temperature": 1.0, "seed": 5, "choice": ["abcdefgh", "é🙂é"]},
}


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCell]:
    """A target that says one text, a draft model that says it in more tokens, and one that says random bytes."""
    models = tmp_path_factory.mktemp("models")
    few = save_speaking_llama(models / "few", byte_level(280, corpus=[TEXT] * 3))
    many = save_speaking_llama(models / "many", byte_level(267, corpus=[TEXT] * 3))
    wild = save_tiny_llama(models / "wild", vocab=300, with_tokenizer=False)
    byte_level(300, controls=["<s>", "<turn>"]).save(str(wild / TOKENIZER_FILE))
    target = TargetConfig(model=str(few), dtype="float32", threads=1, kv_cache_bytes=8 << 20, profile_s=0)
    drafters = [drafter_config(f"same=universal:{many}", f"wild=universal:{wild}", "ngram")]
    scheduler = SchedulerConfig(listen="127.0.0.1:0", draft_wait_s=60)
    with local_cell(target, drafters, scheduler) as running:
        yield running


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("prompt", ["the text: 🙂🙃 déjà", TEXT * 3 + "<turn>"])
def test_the_tokens_are_those_without_drafts(cell: LocalCell, prompt: str, sampling: dict[str, object]) -> None:
    params = SamplingParams(max_tokens=30, **sampling)  # type: ignore[arg-type]
    with Client(cell.endpoint) as client:
        plain = client.generate(prompt, sampling=params, speculation=OFF).result()
        for drafters in (["same"], ["wild"], ["ngram", "same", "wild"]):
            drafted = client.generate(prompt, sampling=params, speculation=Speculation(drafters=drafters)).result()
            assert drafted.token_ids == plain.token_ids, drafters


def test_the_same_text_in_other_tokens_is_accepted(cell: LocalCell) -> None:
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    with Client(cell.endpoint) as client:
        answers = {
            name: client.generate(TEXT[:9], sampling=params, speculation=Speculation(drafters=[name])).result()
            for name in ("same", "wild")
        }
    assert answers["same"].text.startswith(TEXT[9:] + TEXT)
    assert answers["same"].tokens_per_pass > 4
    assert answers["wild"].tokens_per_pass < 1.5
