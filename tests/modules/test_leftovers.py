"""Tensors that no family knows, and modules that a failed export would replace."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from attention_service.modules.exporters import ExportError, export
from attention_service.modules.manifest import MODEL_FILE
from tests.modules.families import GOLDENS, changed

Array = npt.NDArray[Any]


def with_tensors(tmp_path: Path, name: str, prefix: str, more: dict[str, Array]) -> Path:
    """A model whose tensors have a prefix, with some beside them."""
    folder = changed(tmp_path, name)
    tensors = load_file(folder / "model.safetensors")
    named = {f"{prefix}{tensor}": array for tensor, array in tensors.items()}
    save_file(named | more, folder / "model.safetensors")
    return folder


ONE = np.zeros(1, np.float32)


@pytest.mark.parametrize(
    ("name", "prefix", "more"),
    [
        ("bert", "bert.", ["cls.predictions.bias", "bert.pooler.dense.weight", "any.head.weight"]),
        ("bert", "", ["classifier.bias", "pooler.dense.bias", "embeddings.position_ids"]),
        ("roberta", "roberta.", ["lm_head.bias", "roberta.embeddings.position_ids"]),
        ("distilbert", "distilbert.", ["pre_classifier.weight", "vocab_projector.bias"]),
        ("distilbert", "", ["vocab_transform.weight", "qa_outputs.weight"]),
        ("gpt2", "", ["h.0.attn.bias", "h.2.attn.masked_bias", "lm_head.weight"]),
        ("gpt2", "transformer.", ["lm_head.weight", "transformer.h.1.attn.bias"]),
        ("llama", "model.", ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]),
        ("llama", "", ["score.weight", "layers.2.self_attn.rotary_emb.inv_freq"]),
        ("modernbert", "model.", ["decoder.bias", "head.dense.weight"]),
        ("modernbert", "", ["decoder.bias", "head.norm.weight"]),
    ],
)
def test_heads_and_buffers_beside_a_model_are_left_out(
    tmp_path: Path, name: str, prefix: str, more: list[str]
) -> None:
    alone = export(GOLDENS / name, "alone", tmp_path / "modules")
    source = with_tensors(tmp_path, name, prefix, dict.fromkeys(more, ONE))
    made = export(source, name, tmp_path / "modules")
    assert (made / MODEL_FILE).read_bytes() == (alone / MODEL_FILE).read_bytes()


@pytest.mark.parametrize(
    ("name", "prefix", "more"),
    [
        ("bert", "bert.", "bert.encoder.layer.3.output.dense.weight"),
        ("bert", "", "encoder.layer.0.crossattention.self.query.weight"),
        ("bert", "bert.", "bert.encoder.layer.0.attention.self.query.lora_A"),
        ("bert", "", "decoder.layer.0.attention.self.query.weight"),
        ("roberta", "", "encoder.layer.1.adapters.some.down.weight"),
        ("distilbert", "", "transformer.layer.0.extra.weight"),
        ("gpt2", "transformer.", "transformer.h.0.crossattention.c_attn.weight"),
        ("gpt2", "", "h.0.attn.bias_too"),
        ("llama", "model.", "model.layers.1.self_attn.q_proj.lora_B.weight"),
        ("llama", "model.", "model.layers.0.mlp.experts.1.w1.weight"),
        ("modernbert", "", "layers.0.attn_norm.weight"),
        ("modernbert", "model.", "model.layers.2.attn.Wqkv.bias"),
    ],
)
def test_a_tensor_in_a_model_that_nothing_is_made_of_is_refused(
    tmp_path: Path, name: str, prefix: str, more: str
) -> None:
    source = with_tensors(tmp_path, name, prefix, {more: ONE})
    with pytest.raises(ExportError, match=r"config\.json.*docs/models\.md") as error:
        export(source, name, tmp_path / "modules")
    assert f"hold 1 more than config.json speaks of ({more!r})" in str(error.value)
    assert not list((tmp_path / "modules").glob("*")), "a refused export leaves nothing"


def test_of_many_tensors_too_many_the_first_are_named(tmp_path: Path) -> None:
    source = changed(tmp_path, "bert", num_hidden_layers=2)
    with pytest.raises(ExportError) as error:
        export(source, "tiny", tmp_path / "modules")
    named = [
        f"'encoder.layer.2.attention.output.{tensor}'"
        for tensor in ("LayerNorm.bias", "LayerNorm.weight", "dense.bias")
    ]
    assert f"hold 16 more than config.json speaks of ({', '.join(named)}, …)" in str(error.value)


# --- A module that is there --------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda source: os.truncate(source / "model.safetensors", 40_000),
        lambda source: os.truncate(source / "model.safetensors", 0),
        lambda source: (source / "tokenizer.json").write_text("{}"),
        lambda source: (source / "config.json").write_text('{"model_type": "gpt5"}'),
    ],
    ids=["cut short", "empty", "tokenizer", "family"],
)
def test_a_module_stays_as_it_was_when_replacing_it_fails(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    source = changed(tmp_path, "bert")
    made = export(source, "tiny", tmp_path / "modules")
    before = {file.name: file.read_bytes() for file in made.iterdir()}
    spoil(source)
    with pytest.raises(ExportError):
        export(source, "tiny", tmp_path / "modules", force=True)
    assert {file.name: file.read_bytes() for file in made.iterdir()} == before
    assert list((tmp_path / "modules").iterdir()) == [made]
