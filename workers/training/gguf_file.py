"""A draft model as one GGUF file, for a repository or a release: about a sixth of its float32 folder.

Of the llama family with a byte-level BPE tokenizer. The embedding, which is the head as well and most of a draft
model, is Q8_0: one that was Q8_0 before, because a target brought it along, comes through without a change. The layers
are Q5_1, six bits a weight.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quantize
from safetensors import safe_open

from outrider.errors import Unsupported

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_EMBEDDING = "token_embd.weight"
_PRE_TOKENIZER = "smollm"  # the only one whose name in GGUF we know for sure


def write_gguf(folder: Path, file: Path) -> None:
    """`folder`: with config.json, safetensors and the tokenizer's files. Raises Unsupported, naming the reason."""
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "llama" or not config.get("tie_word_embeddings"):
        raise Unsupported(f"{folder.name}: only a llama whose head is its embedding can be written as GGUF")
    writer = GGUFWriter(file, "llama")
    _add_sizes(writer, config)
    _add_tokenizer(writer, folder, config)
    for weights in sorted(folder.glob("*.safetensors")):
        with safe_open(weights, "np") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a dict
                _add_tensor(writer, name, stored.get_tensor(name).astype(np.float32), config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    writer.add_file_type(LlamaFileType.MOSTLY_Q5_1)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _add_tokenizer(writer: GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    if tokenizer["model"]["type"] != "BPE" or config["vocab_size"] != 49152:
        raise Unsupported(f"{folder.name}: only SmolLM2's tokenizer can be written as GGUF")
    added = {entry["id"]: entry["content"] for entry in tokenizer["added_tokens"]}
    tokens = {number: token for token, number in tokenizer["model"]["vocab"].items()} | added
    numbers = range(config["vocab_size"])
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_PRE_TOKENIZER)
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in numbers])
    writer.add_token_types(
        [
            TokenType.UNUSED if number not in tokens else TokenType.CONTROL if number in added else TokenType.NORMAL
            for number in numbers
        ]
    )
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_add_bos_token(False)
    for name, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id)):
        if isinstance(token := config.get(f"{name}_token_id"), int):
            add(token)


def _add_tensor(writer: GGUFWriter, name: str, values: Any, config: dict[str, Any]) -> None:
    renamed = _renamed(name)
    if values.ndim == 1:
        writer.add_tensor(renamed, values)
        return
    if renamed.endswith(("attn_q.weight", "attn_k.weight")):
        heads = config["num_attention_heads" if "attn_q" in renamed else "num_key_value_heads"]
        values = _interleaved(values, heads)
    kind = GGMLQuantizationType.Q8_0 if renamed == _EMBEDDING else GGMLQuantizationType.Q5_1
    writer.add_tensor(renamed, quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)


def _renamed(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return _EMBEDDING
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, number, rest = name.split(".", 3)
    return f"blk.{number}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def _interleaved(values: Any, num_heads: int) -> Any:
    """GGUF's llama rotates neighbouring rows of a head, transformers' the two halves of it: [num_heads * size, in]."""
    halves = values.reshape(num_heads, 2, -1, values.shape[1])
    return halves.swapaxes(1, 2).reshape(values.shape)
