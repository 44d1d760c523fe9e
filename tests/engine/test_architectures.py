"""Families of models on tiny random weights: served exactly as transformers computes them, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

from outrider.errors import Unsupported
from workers.engine.batch import Row
from workers.engine.checkpoint import Checkpoint
from workers.engine.probe import probe
from workers.engine.runner import Engine

VOCAB = 61
WINDOW = 16
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2}
WINDOWED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
SERVED: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "llama-dynamic-rope": GROUPED | {"rope_parameters": DYNAMIC_ROPE},  # which only begins behind the context's end
    "llama-tied": GROUPED | {"tie_word_embeddings": True, "attention_bias": True},
    "qwen2": GROUPED,
    "qwen2-windowed": GROUPED | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": GROUPED | {"head_dim": 16},
    "qwen3_moe": GROUPED | EXPERTS,
    "gemma2": GROUPED | WINDOWED | {"head_dim": 8, "attn_logit_softcapping": 1.5, "query_pre_attn_scalar": 11},
    "gemma3_text": GROUPED | WINDOWED | {"head_dim": 8, "query_pre_attn_scalar": 13},
    "mistral": GROUPED | {"sliding_window": WINDOW},
    "mistral-long-window": GROUPED | {"sliding_window": 64},  # holds the whole context
    "phi3": GROUPED | {"sliding_window": WINDOW},
    "gpt_neox": {},
    "gpt_oss": GROUPED | WINDOWED | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": GROUPED,
    "olmo3": GROUPED | WINDOWED,
    "granite": GROUPED | {"attention_multiplier": 0.3},
    "smollm3": GROUPED,
    "cohere2": GROUPED | WINDOWED,
    "gpt2": {},  # positions learned as embeddings
}

LogitsOf = Callable[[Path, Sequence[int]], Tensor]


def config_of(name: str, options: dict[str, Any]) -> PreTrainedConfig:
    config: PreTrainedConfig = AutoConfig.for_model(name.partition("-")[0], **(SIZES | options))
    return config


def random_tokens(seed: int, count: int) -> list[int]:
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


class Compared:
    """An engine beside plain lists of committed tokens.

    `largest` is the largest difference of any logit from transformers' plain forward of its node's path, in units of
    the logits' own spread.
    """

    def __init__(self, folder: Path, plain_logits: LogitsOf) -> None:
        self.engine = Engine(Checkpoint(folder, "tiny"), block_size=4, kv_cache_bytes=1 << 20)
        self.committed: dict[int, list[int]] = {}
        self.largest = 0.0
        self._plain = lambda path: plain_logits(folder, path)[-1]

    def forward(self, *rows: Row) -> None:
        for row in rows:
            if row.key not in self.committed:
                self.engine.open(row.key)
                self.committed[row.key] = []
        for row, logits in zip(rows, self.engine.forward(rows), strict=True):
            paths = [[*self.committed[row.key], *row.tokens]]
            self.committed[row.key] = paths[0]
            for token, parent in zip(row.node_tokens, row.node_parents, strict=True):
                paths.append([*paths[1 + parent], token])
            if logits is not None:
                expected = torch.stack([self._plain(path) for path in paths])
                self.largest = max(self.largest, float((logits - expected).abs().max() / expected.std()))

    def accept(self, row: Row, path: list[int]) -> None:
        self.engine.accept(row.key, path)
        self.committed[row.key] += [row.node_tokens[node] for node in path]


@pytest.mark.parametrize("name", SERVED)
def test_chunks_single_tokens_chains_and_trees_give_the_models_own_logits(
    name: str,
    save_model: Callable[[PreTrainedConfig], Path],
    plain_logits: LogitsOf,
) -> None:
    compared = Compared(save_model(config_of(name, SERVED[name])), plain_logits)
    prompt = random_tokens(1, 30)  # nearly twice the window, where there is one
    compared.forward(Row(1, prompt[:20], wants_logits=False), Row(2, random_tokens(2, 22)))
    tree = Row(1, prompt[20:], random_tokens(3, 6), [-1, 0, -1, 2, 2, 4])
    compared.forward(tree, Row(2, [8], random_tokens(4, 5), [-1, 0, 1, 2, 3]), Row(3, random_tokens(5, 5)))
    compared.accept(tree, [2, 4])
    compared.forward(Row(3, random_tokens(6, 25)), Row(1, [9], [4, 4, 5], [-1, 0, -1]), Row(2, [7]))
    print(f"{name}: largest difference {compared.largest:.1e}")  # noqa: T201 - with pytest -rP
    assert compared.largest < 1e-5


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "qwen2_moe": (
        GROUPED | EXPERTS | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        "layer 0 has a sliding window of 16 in its mask, and tells its attention of no sliding window",
    ),
    "gemma3_text": (
        GROUPED | WINDOWED | {"head_dim": 8, "use_bidirectional_attention": True},
        "a mask that is neither causal nor a sliding window",
    ),
    "bert": ({}, "a mask that is neither causal nor a sliding window"),
    "llama4_text": (GROUPED, "layers of type chunked_attention are not served"),
    "qwen3_next": (GROUPED | EXPERTS, "layers of type linear_attention are not served"),
    "falcon_h1": (
        GROUPED | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
        "layers of type hybrid are not served",
    ),
    "phi3": (
        GROUPED
        | {
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
            },
        },
        "rotary embeddings of type longrope change with the longest row of a pass",
    ),
    "deepseek_v3": (
        {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
        r"keys \[1, 4, 2, 192\] and values \[1, 4, 2, 128\] of layer 0 differ in shape",
    ),
    "diffllama": (GROUPED, "attention that runs more than once in a pass"),
    "doge": (GROUPED, "a mask of the model's own"),
    "stablelm": (GROUPED, "it does not pass keywords on to its attention"),
    "bloom": ({"n_head": 4, "n_layer": 2}, "not every layer takes its attention from"),  # ALiBi
    "gptj": ({"n_layer": 2, "n_head": 4, "n_embd": 32, "rotary_dim": 4}, "it does not take its attention from"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_we_would_get_wrong_is_refused_by_name(
    name: str, save_model: Callable[[PreTrainedConfig], Path]
) -> None:
    options, reason = REFUSED[name]
    with pytest.raises(Unsupported, match=rf"a-name( \({name}\))?: .*{reason}"):
        Engine(Checkpoint(save_model(config_of(name, options)), "a-name"), kv_cache_bytes=1 << 18)


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"position_bias": torch.zeros(1)}, "its attention asks for position_bias, which is not served"),
        ({"head_mask": torch.zeros(1)}, "its attention asks for head_mask"),
        ({"indices": torch.zeros(1)}, "its attention asks for indices"),
        ({"is_causal": False}, "attention that is not causal"),
        ({"s_aux": torch.zeros(3)}, r"attention sinks of shape \[3\] for 9 heads"),
    ],
)
def test_what_a_layer_asks_beyond_what_we_know_is_refused(
    keywords: dict[str, Any],
    reason: str,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A llama that passes one keyword more to its attention."""
    plain = LlamaDecoderLayer.forward

    def forward(self: LlamaDecoderLayer, *args: Any, **kwargs: Any) -> Any:
        return plain(self, *args, **kwargs | keywords)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    with pytest.raises(Unsupported, match=reason):
        Engine(Checkpoint(tiny_llama, "a-name"), kv_cache_bytes=1 << 18)


def test_layers_of_different_shapes_are_refused_by_their_shapes(tiny_llama: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(tiny_llama)
    wider = module.model.layers[1].self_attn
    wider.k_proj, wider.v_proj = torch.nn.Linear(72, 72), torch.nn.Linear(72, 72)
    with pytest.raises(Unsupported, match=r"layers with different .*: \[\(3, 8\), \(9, 8\)\]"):
        probe(module, "eager", 64)


def test_a_model_that_carries_state_beside_its_attention_is_refused_by_its_logits(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token's MLP also sees the token before it in the pass, which may be another request's."""
    plain = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: plain(self, x + x.roll(1, dims=1)))
    with pytest.raises(Unsupported, match=r"a-name \(llama\): its logits are .* away from those that transformers"):
        Engine(Checkpoint(tiny_llama, "a-name"), kv_cache_bytes=1 << 18)
