"""Exported models of every family against what transformers computes for them.

The models are tiny and random; ``goldens/record_families.py`` makes them and their values.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attention_service.modules.exporters import ExportError, export
from attention_service.modules.exporters.source import INDEX_FILE
from attention_service.modules.manifest import MANIFEST_FILE, MODEL_FILE
from attention_service.settings import Settings
from attention_wire import bodies
from tests.conftest import RunningService
from tests.modules.families import FAMILIES, GOLDENS, TOLERANCE, changed

PART = "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for name in FAMILIES:
        export(GOLDENS / name, name, folder)
    return folder


@pytest.fixture(scope="module")
def http(
    folder: Path, start_service: Callable[[Settings], RunningService]
) -> Iterator[httpx.Client]:
    url = start_service(Settings(modules=folder, provider="cpu", threads=2)).url
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def results(http: httpx.Client, fields: dict[str, Any]) -> list[dict[str, Any]]:
    body = bodies.write(bodies.SAFETENSORS, fields, "request")
    headers = {"Content-Type": body.media_type}
    answer = http.post("/v1/text/attention", content=bytes(body), headers=headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = bodies.read(
        bodies.SAFETENSORS, answer.content, "response"
    ).values["results"]
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_match_transformers(http: httpx.Client, name: str) -> None:
    arrays = np.load(GOLDENS / name / "golden.npz")
    cases = json.loads((GOLDENS / name / "golden.json").read_text())["cases"]
    assert max(len(case["token_ids"]) for case in cases) > 20
    for index, case in enumerate(cases):
        given = {field: case[field] for field in ("text", "text_pair") if case[field] is not None}
        (result,) = results(http, {**given, "module": name})
        assert result["token_ids"] == case["token_ids"]
        for part in ("output", "weights"):
            expected = arrays[f"{index}.{part}"]
            assert result[part].shape == expected.shape
            np.testing.assert_allclose(result[part], expected, rtol=0, atol=TOLERANCE)
        # Or any weights would do.
        assert result["weights"].max() > 0.5


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_gives_the_same_alone_and_among_others(http: httpx.Client, name: str) -> None:
    cases = json.loads((GOLDENS / name / "golden.json").read_text())["cases"]
    texts = [case["text"] for case in cases]
    together = results(http, {"text": texts, "module": name})
    for text, result in zip(texts, together, strict=True):
        (alone,) = results(http, {"text": text, "module": name})
        for part in ("output", "weights"):
            np.testing.assert_allclose(result[part], alone[part], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_graph_tells_no_path(folder: Path, name: str) -> None:
    path = folder / name / MODEL_FILE
    assert str(Path.home()).encode() not in path.read_bytes()
    assert str(GOLDENS).encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("distilbert", {"n_heads": 5}, ["dim 24", "n_heads 5"]),
        ("distilbert", {"dim": None}, ["dim"]),
        ("distilbert", {"vocab_size": 20}, ["vocab_size 20"]),
        ("distilbert", {"n_layers": 4}, ["transformer.layer.3.attention.q_lin.weight"]),
        ("roberta", {"vocab_size": 20}, ["vocab_size 20"]),
        ("xlm-roberta", {"vocab_size": 20}, ["vocab_size 20"]),
        ("roberta", {"pad_token_id": 97}, ["max_position_embeddings 98", "pad_token_id 97"]),
        ("llama", {"num_key_value_heads": 3}, ["num_attention_heads 4", "num_key_value_heads 3"]),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, ["'yarn'", "linear, llama3"]),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, ["'linear'", "'factor'"]),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, ["a part of a head"]),
        ("qwen2", {"layer_types": ["full_attention"]}, ["1 layers", "num_hidden_layers says 3"]),
        ("qwen2", {"layer_types": ["linear_attention"] * 3}, ["'linear_attention'"]),
        ("qwen3", {"head_dim": 8}, ["q_proj.weight", "[32, 24]", "[40, 24]"]),
        ("modernbert", {"num_attention_heads": 5}, ["hidden_size 24", "num_attention_heads 5"]),
        ("modernbert", {"vocab_size": 20}, ["vocab_size 20"]),
        ("modernbert", {"layer_types": ["full_attention"]}, ["num_hidden_layers says 4"]),
        ("modernbert", {"attention_bias": True}, ["layers.0.attn.Wqkv.bias", "[72]"]),
        ("modernbert", {"hidden_activation": "mish"}, ["'mish'"]),
        ("gpt2", {"n_head": 5}, ["n_embd 24", "n_head 5"]),
        ("gpt2", {"add_cross_attention": True}, ["add_cross_attention"]),
        ("gpt2", {"n_positions": 95}, ["wpe.weight", "[95, 24]", "[96, 24]"]),
        (
            "roberta",
            {"model_type": "gpt5"},
            [
                *("'gpt5'", "RoBERTa", "DistilBERT", "BERT", "MultiheadAttention"),
                *("to ONNX yourself", "docs/models.md"),
            ],
        ),
    ],
)
def test_what_cannot_be_built_is_refused(
    tmp_path: Path, name: str, fields: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ExportError) as error:
        export(changed(tmp_path, name, **fields), "tiny", tmp_path / "modules")
    assert not list((tmp_path / "modules").glob("*")), "a refused export leaves nothing"
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta"])
def test_positions_end_where_the_table_does(http: httpx.Client, name: str) -> None:
    info = http.get(f"/v1/modules/{name}").json()
    assert info["max_length"] == 96  # of 98 rows, the first for what follows the padding's
    answer = http.post("/v1/text/attention", json={"text": "a " * 200, "module": name})
    assert answer.status_code == 422
    assert "takes 96" in answer.text


def test_a_modernbert_configuration_of_older_form_means_the_same(
    tmp_path: Path, folder: Path
) -> None:
    older = {
        "layer_types": None,
        "rope_parameters": None,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
    }
    made = export(changed(tmp_path, "modernbert", **older), "older", tmp_path / "modules")
    assert (made / MODEL_FILE).read_bytes() == (folder / "modernbert" / MODEL_FILE).read_bytes()
    other = changed(tmp_path / "other", "modernbert", **older | {"local_rope_theta": 160000.0})
    made = export(other, "other", tmp_path / "modules")
    assert (made / MODEL_FILE).read_bytes() != (folder / "modernbert" / MODEL_FILE).read_bytes()


# --- Weights in several files ------------------------------------------------------------------


def in_parts(tmp_path: Path) -> Path:
    """A model as transformers saves it in parts: an index, and files that it names."""
    folder = changed(tmp_path, "distilbert")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{part:05}-of-00003.safetensors" for part in (1, 2, 3)]
    where = {tensor: names[index % 3] for index, tensor in enumerate(tensors)}
    for name in names:
        save_file({t: a for t, a in tensors.items() if where[t] == name}, folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    return folder


def test_weights_in_several_files_are_one_model(tmp_path: Path, folder: Path) -> None:
    source = in_parts(tmp_path)
    made = export(source, "parts", tmp_path / "modules")
    assert (made / MODEL_FILE).read_bytes() == (folder / "distilbert" / MODEL_FILE).read_bytes()
    checksum = json.loads((made / MANIFEST_FILE).read_text())["source_sha256"]
    sums = subprocess.run(
        ["sha256sum", *sorted(path.name for path in source.glob("*.safetensors"))],
        cwd=source, capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert checksum == hashlib.sha256(sums).hexdigest()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: folder.joinpath(PART).unlink(), [PART, "missing"]),
        (lambda folder: folder.joinpath(INDEX_FILE).unlink(), ["3 safetensors files", INDEX_FILE]),
        (lambda folder: folder.joinpath(INDEX_FILE).write_text("{"), ["no JSON"]),
        (lambda folder: folder.joinpath(INDEX_FILE).write_text("{}"), ["weight_map"]),
        (
            lambda folder: folder.joinpath(INDEX_FILE).write_text(
                json.dumps({"weight_map": {"a": "../model.safetensors"}})
            ),
            ["'../model.safetensors'"],
        ),
        (
            lambda folder: shutil.copy(folder / PART, folder / PART.replace("2-of", "1-of")),
            ["as another file does"],
        ),
        (lambda folder: save_file({}, folder / PART), ["hold no tensor"]),
        (lambda folder: os.truncate(folder / PART, 300), [PART, "no readable safetensors"]),
    ],
)
def test_parts_that_are_not_whole_are_refused(
    tmp_path: Path, spoil: Callable[[Path], object], words: list[str]
) -> None:
    source = in_parts(tmp_path)
    spoil(source)
    with pytest.raises(ExportError) as error:
        export(source, "parts", tmp_path / "modules")
    assert not list((tmp_path / "modules").glob("*")), "a refused export leaves nothing"
    assert all(word in str(error.value) for word in words), str(error.value)
