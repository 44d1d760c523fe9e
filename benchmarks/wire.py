"""What drafting costs on the wire: bytes for each row and round, orders to the drafter and nodes from it.

    python -m benchmarks.wire --drafter model:cluster/default_draft --drafter ngram

The target answers a few held-out prompts once for each temperature. Then the scheduler's own core plays them through,
all at once, with a real drafter; each message between the two is the bytes that gRPC would carry. A pass of the target
takes 1 + nodes / 64 units of the clock, a step of the drafter 0.15. A request's opening, which carries its prompt and
comes once, is left out, and so are the frames of gRPC and HTTP/2: 14 bytes a message.

The last line is one JSON object; `rows`: drafter, temperature, budget, tokens_per_pass, and by row and round the bytes
up, down and both, the nodes told and the messages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import torch
import typer

from benchmarks.measure import checkpoint_of, rounded
from outrider.v1.inference_pb2 import SamplingParams
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.events import PassCost, PlannedRow, TargetFacts
from tests.draft.riding import Riding, new_request
from workers.draft.drafter import Drafter, DrafterSpec, Resources, load_drafter
from workers.engine.runner import Engine
from workers.training.answering import answer_prompts, pick_as_served
from workers.training.distill import encoder
from workers.training.held_out import held_out_prompts
from workers.training.shards import Answer

TEMPERATURES = (0.0, 0.7, 1.0)
BUDGETS = (1, 4, 8, 16)
STEP_S = 0.15


def pass_s(num_tokens: int) -> float:
    return 1 + num_tokens / 64


FACTS = TargetFacts(
    vocab_size=1 << 30,
    block_size=16,
    num_kv_blocks=1 << 20,
    max_pass_tokens=512,
    pass_costs=[PassCost(num_tokens, 0, pass_s(num_tokens)) for num_tokens in (1, 16, 64, 256)],
)


def measure(drafter: Drafter, answers: Sequence[Answer], budget: int) -> dict[str, float]:
    """For each row of a pass: bytes "up" to the drafter, "down" from it, and "both"; "tokens", "nodes", "messages"."""
    riding = Riding(FACTS)
    riding.connect("worker", {"model": drafter})
    texts: dict[int, list[int]] = {}
    for number, answer in enumerate(answers, 1):
        texts[number] = [*answer.prompt, *answer.tokens]
        riding.submit(new_request(number, answer.prompt, len(answer.tokens), budget, _opening(answer)))

    def walk(row: PlannedRow) -> list[int]:
        """What the answer says: the nodes that are right, and one token more."""
        rest = texts[row.request][row.committed_len :]
        depths = {-1: 0}
        for node, (token, parent) in enumerate(zip(row.node_tokens, row.node_parents, strict=True)):
            if parent in depths and rest[depths[parent] : depths[parent] + 1] == [token]:
                depths[node] = depths[parent] + 1
        return rest[: max(depths.values()) + 1]

    riding.ride(STEP_S, pass_s, walk)
    up, down = riding.num_bytes["orders"], riding.num_bytes["growths"]
    num_messages = riding.num_messages["orders"] + riding.num_messages["growths"]
    num_tokens = sum(len(answer.tokens) for answer in answers)
    totals = {"up": up, "down": down, "both": up + down, "messages": num_messages}
    totals |= {"tokens": num_tokens, "nodes": riding.num_nodes}
    return {name: total / riding.num_rows for name, total in totals.items()}


def _opening(answer: Answer) -> OpenRequest:
    sampling = SamplingParams(temperature=answer.temperature, seed=answer.number)
    sampling.top_p = sampling.typical_p = sampling.repetition_penalty = 1
    return OpenRequest(sampling=sampling, num_prompt_tokens=len(answer.prompt))


def main(
    drafter: Annotated[list[str], typer.Option(help="As for outriderd up; may be repeated.")],
    model: Annotated[str, typer.Option(help="The target. Unset: the default model.")] = "",
    prompts: Annotated[int, typer.Option(min=1, help="Of the held-out ones, of every kind alike.")] = 16,
    max_tokens: Annotated[int, typer.Option(min=2)] = 64,
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    torch.set_num_threads(threads)
    checkpoint = checkpoint_of(model)
    engine = Engine(checkpoint, dtype="float32", kv_cache_bytes=1_000_000_000)
    specs = [DrafterSpec.parse(text) for text in drafter]
    loaded = {spec.name: load_drafter(spec, Resources(threads=threads, kv_cache_bytes=500_000_000)) for spec in specs}
    encode, held_out = encoder(checkpoint), held_out_prompts()
    chosen = [held_out[i * len(held_out) // prompts] for i in range(min(prompts, len(held_out)))]
    rows: list[dict[str, object]] = []
    for temperature in TEMPERATURES:
        answers = [Answer(number, encode(prompt), temperature) for number, prompt in enumerate(chosen)]
        answer_prompts(engine, answers, pick_as_served, lambda num_tokens: None, max_tokens=max_tokens)
        for name, one in loaded.items():
            for budget in BUDGETS:
                found = measure(one, answers, budget)
                rows.append({"drafter": name, "temperature": temperature, "budget": budget})
                rows[-1]["tokens_per_pass"] = found.pop("tokens")
                rows[-1] |= {f"{each}_per_row_and_round": found.pop(each) for each in ("nodes", "messages")}
                rows[-1]["bytes_per_row_and_round"] = found
                print("   ", rounded(rows[-1]), flush=True)
    print(json.dumps(rounded({"target": checkpoint.model, "num_prompts": len(chosen), "rows": rows})))


if __name__ == "__main__":
    typer.run(main)
