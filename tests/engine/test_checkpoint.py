from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    GgufConfig,
    GptOssConfig,
    LlamaConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
)

from outrider.errors import InvalidRequest, ModelNotFound, Unsupported
from workers.engine import checkpoint as checkpoint_module
from workers.engine.batch import Row
from workers.engine.checkpoint import prepare_checkpoint
from workers.engine.runner import Engine

VOCAB = 32
HIDDEN = 32


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of one layer in GGUF: some tensors quantized, with a tokenizer of single bytes."""
    file = tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([chr(ord("A") + i) for i in range(VOCAB - 1)] + ["AB"])
    writer.add_token_merges(["A B"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    generator = np.random.default_rng(0)
    shapes = {
        "token_embd": (VOCAB, HIDDEN),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (HIDDEN // 2, HIDDEN),
        "blk.0.attn_v": (HIDDEN // 2, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate": (64, HIDDEN),
        "blk.0.ffn_up": (64, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, 64),
        "output": (VOCAB, HIDDEN),
    }
    for name, shape in shapes.items():
        values = generator.standard_normal(shape, dtype=np.float32)
        quantized = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_file_becomes_a_folder_with_the_weights_and_tokenizer_that_transformers_reads_from_it(
    gguf_file: Path, tmp_path: Path
) -> None:
    checkpoint = prepare_checkpoint(str(gguf_file), cache_dir=tmp_path)
    converted = AutoModelForCausalLM.from_pretrained(checkpoint.folder).state_dict()
    direct = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, quantization_config=GgufConfig(dequantize=True)
    ).state_dict()
    assert converted.keys() == direct.keys()
    assert all(torch.equal(converted[name], direct[name]) for name in direct)
    assert AutoTokenizer.from_pretrained(checkpoint.folder).encode("ACE") == [0, 2, 4]
    assert checkpoint.model == "tiny.Q8_0"


def test_a_gguf_file_is_converted_once_also_when_several_ask_at_the_same_time(
    gguf_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "workers")
    sources = [str(gguf_file), str(gguf_file.parent)] * 2
    with ThreadPoolExecutor(4) as threads:
        folders = set(threads.map(lambda source: prepare_checkpoint(source, cache_dir=tmp_path).folder, sources))
    assert len(folders) == 1
    assert sum("converting tiny.Q8_0.gguf" in message for message in caplog.messages) == 1


def test_an_interrupted_conversion_leaves_nothing_that_looks_finished(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(file: Path, folder: Path) -> None:
        (folder / "model.safetensors").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, "convert_gguf", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare_checkpoint(str(gguf_file), cache_dir=tmp_path)
    assert Engine(prepare_checkpoint(str(gguf_file), cache_dir=tmp_path), kv_cache_bytes=1 << 18).spec.num_layers == 1


def test_a_broken_gguf_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(InvalidRequest, match=r"broken\.gguf can't be converted"):
        prepare_checkpoint(str(file), cache_dir=tmp_path / "cache")


def test_a_folder_with_safetensors_is_taken_as_it_is(tiny_llama: Path, tmp_path: Path) -> None:
    checkpoint = prepare_checkpoint(str(tiny_llama), tensor_parallel=3, cache_dir=tmp_path)
    assert (checkpoint.folder, checkpoint.model, checkpoint.padding) == (tiny_llama, tiny_llama.name, None)


@pytest.mark.parametrize(("tensor_parallel", "heads"), [(2, (12, 4)), (4, (12, 4)), (6, (18, 6))])
def test_padded_heads_compute_the_same_function(
    tensor_parallel: int,
    heads: tuple[int, int],
    tiny_llama: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    plain_logits: Callable[[Path, list[int]], torch.Tensor],
) -> None:
    caplog.set_level(logging.INFO, "workers")
    checkpoint = prepare_checkpoint(str(tiny_llama), tensor_parallel=tensor_parallel, cache_dir=tmp_path)
    assert f"padding heads 9/3 -> {heads[0]}/{heads[1]}" in caplog.text
    config = json.loads((checkpoint.folder / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (*heads, 8)
    engine = Engine(checkpoint, kv_cache_bytes=1 << 18)
    engine.open(1)
    (logits,) = engine.forward([Row(1, [1, 2, 3])])
    assert logits is not None
    torch.testing.assert_close(logits[0], plain_logits(tiny_llama, [1, 2, 3])[-1], atol=1e-5, rtol=0)


def test_a_size_that_no_padding_fits_is_refused_with_all_that_work(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"no padded .*; tensor_parallel may be one of (\[.*\])$") as refused:
        prepare_checkpoint(str(tiny_llama), tensor_parallel=7, cache_dir=tmp_path)
    named = json.loads(refused.value.message.rpartition("one of ")[2])
    assert named == [size for size in range(1, 7) if _starts(tiny_llama, size, tmp_path)]
    assert {2, 3, 4} <= set(named)


def _starts(model: Path, tensor_parallel: int, cache_dir: Path) -> bool:
    try:
        prepare_checkpoint(str(model), tensor_parallel=tensor_parallel, cache_dir=cache_dir)
    except Unsupported:
        return False
    return True


def test_another_model_in_the_same_folder_is_padded_anew(
    save_model: Callable[[PreTrainedConfig], Path], tmp_path: Path
) -> None:
    folder = save_model(LlamaConfig(vocab_size=8, hidden_size=24, num_attention_heads=3, num_hidden_layers=1))
    first = prepare_checkpoint(str(folder), tensor_parallel=2, cache_dir=tmp_path).folder
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data.zero_()
    model.save_pretrained(folder)
    assert prepare_checkpoint(str(folder), tensor_parallel=2, cache_dir=tmp_path).folder != first


@pytest.mark.parametrize(
    ("config_class", "reason"),
    [
        (Phi3Config, "it has .*qkv_proj.weight beside four plain projections a layer"),
        (Olmo2Config, "normed across heads"),
        (GptOssConfig, "it has .*sinks beside four plain projections a layer"),
    ],
)
def test_layouts_that_zero_heads_would_change_are_refused_with_the_sizes_that_work(
    config_class: type[PreTrainedConfig], reason: str, save_model: Callable[[PreTrainedConfig], Path], tmp_path: Path
) -> None:
    config = config_class(
        vocab_size=8,
        hidden_size=48,
        intermediate_size=16,
        num_attention_heads=6,
        num_key_value_heads=6,
        num_hidden_layers=1,
        pad_token_id=0,
    )
    with pytest.raises(Unsupported, match=rf"{reason}; tensor_parallel may be one of \[1, 2, 3, 6\]"):
        prepare_checkpoint(str(save_model(config)), tensor_parallel=4, cache_dir=tmp_path)


def test_the_heads_that_count_are_those_of_the_text_model(
    save_model: Callable[[PreTrainedConfig], Path],
    plain_logits: Callable[[Path, list[int]], torch.Tensor],
    tmp_path: Path,
) -> None:
    text = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": 4}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"image_token_index": 58, "boi_token_index": 59, "eoi_token_index": 60, "mm_tokens_per_image": 4}
    sizes = {"image_size": 28, "patch_size": 14}
    folder = save_model(Gemma3Config(text_config=text | heads, vision_config=vision | sizes, **special))
    engine = Engine(prepare_checkpoint(str(folder), cache_dir=tmp_path), block_size=4, kv_cache_bytes=1 << 18)
    engine.open(1)
    (logits,) = engine.forward([Row(1, list(range(20)))])
    assert logits is not None
    torch.testing.assert_close(logits[0], plain_logits(folder, list(range(20)))[-1], atol=1e-4, rtol=0)
    with pytest.raises(Unsupported, match="it is a part of a larger model"):
        prepare_checkpoint(str(folder), tensor_parallel=4, cache_dir=tmp_path)


def test_a_folder_without_weights_and_a_file_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no safetensors and 0 GGUF files"):
        prepare_checkpoint(str(tmp_path))
    (tmp_path / "model.bin").touch()
    with pytest.raises(InvalidRequest, match=r"a file must be a \.gguf"):
        prepare_checkpoint(str(tmp_path / "model.bin"))


def test_weights_that_are_missing_are_never_made_up(tmp_path: Path, tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    weights = {name: value for name, value in model.state_dict().items() if "layers.1.mlp.up_proj" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(InvalidRequest, match=r"no weights for \['model.layers.1.mlp.up_proj.weight'\]"):
        Engine(prepare_checkpoint(str(tmp_path)), kv_cache_bytes=1 << 18)


def test_a_name_that_is_nowhere_is_model_not_found() -> None:
    with pytest.raises(ModelNotFound, match="'no/such/model' is neither a local path nor to be had from the hub"):
        prepare_checkpoint("no/such/model")


def test_a_hub_name_is_served_under_that_name(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "snapshot_download", lambda source, **kwargs: str(tiny_llama))
    checkpoint = prepare_checkpoint("somebody/tiny-llama")
    assert (checkpoint.folder, checkpoint.model) == (tiny_llama, "somebody/tiny-llama")
