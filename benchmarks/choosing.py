"""What choosing costs beside the pass that it belongs to: bans, penalties, limits, noise and walk, for 512 nodes.

    python -m benchmarks.choosing --threads 2

64 rows of a root and a chain of seven nodes: 512 tokens of a pass, 512 rows of logits, 512 choices, 64 walks. At a
vocabulary of 49,152 the pass and the logits are SmolLM2's, over this repository's own pages. At 151,936 the pass is
that of a random model of Qwen2-0.5B's shape, and the logits are SmolLM2's once more, with two fainter copies of
themselves behind: a random model's own have no likely tokens, which no limit is made for. Passes and choices are timed
in turn, on copies of the logits that are made between the timings. The last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from llguidance import LLMatcher
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

from benchmarks.engine import read_bandwidth
from benchmarks.measure import checkpoint_of, rounded, show, timed_ms
from workers.choice.grammar import Grammars
from workers.choice.params import ChoiceParams
from workers.choice.paths import Paths
from workers.engine.batch import Row
from workers.engine.checkpoint import Checkpoint
from workers.engine.runner import Engine
from workers.target.verdicts import Draft, Verdict, verdicts

NUM_ROWS = 64
NUM_NODES = 7
CONTEXT = 32
HISTORY = 1000
CHAIN = list(range(-1, NUM_NODES - 1))
PAGES = ("README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/engine.md", "docs/glossary.md")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "likes": {"type": "array"}},
    "required": ["name", "age", "likes"],
}

CASES = {
    "greedy": ChoiceParams(temperature=0),
    "temperature 1": ChoiceParams(),
    "top-k 50": ChoiceParams(top_k=50),
    "top-p 0.95": ChoiceParams(top_p=0.95),
    "min-p 0.05": ChoiceParams(min_p=0.05),
    "typical-p 0.95": ChoiceParams(typical_p=0.95),
    "k 50, p 0.95": ChoiceParams(temperature=0.7, top_k=50, top_p=0.95),
    "penalties": ChoiceParams(repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.1),
}


def text_of(checkpoint: Checkpoint) -> list[int]:
    """The tokens of the repository's pages, often enough for every row to have a history."""
    root = Path(__file__).parent.parent
    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    tokens: list[int] = tokenizer.encode("\n".join((root / page).read_text() for page in PAGES)).ids
    return tokens * (1 + 2 * HISTORY // len(tokens))


def history_of(text: Sequence[int], row: int) -> tuple[list[int], list[int]]:
    """A row's committed tokens and the nodes behind them, each row at another place of the text."""
    end = HISTORY + row * (len(text) - HISTORY - NUM_NODES) // NUM_ROWS
    return list(text[end - HISTORY : end]), list(text[end : end + NUM_NODES])


def drafts_of(text: Sequence[int], params: ChoiceParams) -> list[Draft]:
    drafts = []
    for row in range(NUM_ROWS):
        committed, nodes = history_of(text, row)
        its = replace(params, seed=row, num_prompt_tokens=HISTORY // 2)
        drafts.append(Draft(its, Paths(committed, nodes, CHAIN)))
    return drafts


def drafts_with_grammar(checkpoint: Checkpoint, engine: Engine, text: Sequence[int]) -> list[Draft]:
    """Rows in the middle of a string of a JSON object, with nodes that go on with it."""
    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    grammars = Grammars(checkpoint.folder, engine.spec.vocab_size, engine.spec.end_token_ids)
    grammar = LLMatcher.grammar_from_json_schema(SCHEMA)
    begun = tokenizer.encode('{"name": "Ada').ids
    nodes = tokenizer.encode(" Lovelace of the long and winding road").ids[:NUM_NODES]
    drafts = []
    for row in range(NUM_ROWS):
        prompt = history_of(text, row)[0]
        params = ChoiceParams(seed=row, num_prompt_tokens=HISTORY, grammar=grammar)
        drafts.append(Draft(params, Paths([*prompt, *begun], nodes, CHAIN), grammars.open(grammar)))
    return drafts


def pass_of_text(engine: Engine, text: Sequence[int]) -> Callable[[], Tensor]:
    """A pass over roots and nodes whose contexts have been computed."""
    contexts, rows = [], []
    for row in range(NUM_ROWS):
        committed, nodes = history_of(text, row)
        engine.open(row)
        contexts.append(Row(row, committed[-1 - CONTEXT : -1], wants_logits=False))
        rows.append(Row(row, committed[-1:], nodes, CHAIN))
    engine.forward(contexts)
    return repeated(engine, rows)


def pass_of_random_model(engine: Engine) -> Callable[[], Tensor]:
    rows = []
    for row in range(NUM_ROWS):
        engine.pretend(row, CONTEXT)
        rows.append(Row(row, [row + 1], list(range(row, row + NUM_NODES)), CHAIN))
    return repeated(engine, rows)


def repeated(engine: Engine, rows: Sequence[Row]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        for row in rows:
            engine.truncate(row.key, CONTEXT)
        return engine.forward_packed(rows)

    return run


def random_model(folder: Path) -> Checkpoint:
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    model: Any = Qwen2ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return Checkpoint(folder, "random, Qwen2-0.5B's shape")


def widened(logits: Tensor, vocab: int) -> Tensor:
    """[num_nodes, vocab] f32 of fewer columns: copies of them behind, each five less likely than the last."""
    num_copies = -(-vocab // logits.shape[1])
    return torch.cat([logits - 5 * copy for copy in range(num_copies)], dim=1)[:, :vocab].contiguous()


class Setting:
    """A pass, the logits that are chosen from, and what is asked of them."""

    def __init__(self, run: Callable[[], Tensor], logits: Tensor, cases: dict[str, list[Draft]]) -> None:
        self.run = run
        self.logits = logits
        self.cases = cases
        self.times: dict[str, list[float]] = defaultdict(list)

    def measure(self) -> None:
        self.times["pass"].append(timed_ms(self.run))
        for name, drafts in self.cases.items():
            copy = self.logits.clone()
            results: list[Any] = []
            self.times[name].append(timed_ms(lambda: results.extend(verdicts(copy, drafts))))  # noqa: B023 - at once
            assert all(isinstance(each, Verdict) for each in results)

    def report(self, bandwidth: float) -> dict[str, Any]:
        """Shows and returns medians, least times and shares; the first round does not count."""
        least_ms = 1000 * self.logits.nbytes / bandwidth
        pass_ms = statistics.median(self.times["pass"][1:])
        table: list[tuple[object, ...]] = [("median ms", "least ms", "% of pass", "x limit", "")]
        medians = {}
        for name, times in self.times.items():
            medians[name] = statistics.median(times[1:])
            share, of_limit = 100 * medians[name] / pass_ms, medians[name] / least_ms
            table.append((medians[name], min(times[1:]), share, of_limit, name))
        vocab = self.logits.shape[1]
        show(f"vocabulary {vocab}; the limit, to read the logits once: {least_ms:.2f} ms", table)
        return {"vocab": vocab, "limit_ms": least_ms, "median_ms": medians}


def main(
    model: Annotated[str, typer.Option(help="Folder, GGUF file or hub name; default: SmolLM2-135M-Instruct.")] = "",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Over which medians are taken.")] = 7,
    compiled: Annotated[bool, typer.Option(help="The forward that a server runs by default.")] = True,
) -> None:
    """What choosing costs beside its pass."""
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    options: dict[str, Any] = {"dtype": dtype, "compiled": compiled, "kv_cache_bytes": 1 << 30}
    checkpoint = checkpoint_of(model)
    engine = Engine(checkpoint, **options)
    text = text_of(checkpoint)
    cases = {name: drafts_of(text, params) for name, params in CASES.items()}
    run = pass_of_text(engine, text)
    logits = run()
    with tempfile.TemporaryDirectory() as folder:
        large = Engine(random_model(Path(folder)), **options)
    with_grammar = {"JSON schema": drafts_with_grammar(checkpoint, engine, text)}
    settings = [
        Setting(run, logits, cases | with_grammar),
        Setting(pass_of_random_model(large), widened(logits, large.spec.vocab_size), cases),
    ]
    for _ in range(rounds + 1):
        for setting in settings:
            setting.measure()
    bandwidth = read_bandwidth(rounds)
    print(f"{NUM_ROWS} rows of a root and {NUM_NODES} nodes, {dtype}, {threads} threads, {bandwidth / 1e9:.1f} GB/s")
    reports = [setting.report(bandwidth) for setting in settings]
    print(json.dumps(rounded({"threads": threads, "bandwidth_gb_s": bandwidth / 1e9, "settings": reports})))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
