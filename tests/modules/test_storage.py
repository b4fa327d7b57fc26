"""Parameters stored as float16: the file, what it computes, and what is told of the difference."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from attention_service.modules.exporters import ExportError, export
from attention_service.modules.manifest import MANIFEST_FILE, MODEL_FILE, Manifest

GOLDENS = Path(__file__).parents[1] / "goldens"
FAMILIES = GOLDENS / "families"
TEXT = "The animal did not cross the street because it was too tired."
TOLERANCE = 1e-2

Array = npt.NDArray[Any]
Feeds = dict[str, Array]


class Stages(list[tuple[str, float]]):
    """The progress of an export, kept."""

    def __call__(self, stage: str, part: float) -> None:
        self.append((stage, part))

    @property
    def told(self) -> tuple[float, float]:
        """What the last stage says of output and weights."""
        stage, part = self[-1]
        assert part == 1
        words = (
            r"done: float16 storage changes the output by at most (.+) "
            r"and the weights by at most (.+)"
        )
        found = re.fullmatch(words, stage)
        assert found is not None, stage
        return float(found[1]), float(found[2])


def run(folder: Path, feeds: Feeds) -> tuple[Array, Array]:
    """Output, and the weights of all layers."""
    session = onnxruntime.InferenceSession(folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    output, *weights = session.run(None, feeds)
    return output, np.stack(weights)


def differences(one: Path, other: Path, feeds: Feeds) -> tuple[float, float]:
    pairs = zip(run(one, feeds), run(other, feeds), strict=True)
    output, weights = (float(np.abs(a - b).max()) for a, b in pairs)
    return output, weights


def both(tmp_path: Path, source: Path, **options: Any) -> tuple[Path, Path, Stages]:
    """A module stored as float32 and as float16."""
    stages = Stages()
    plain = export(source, "plain", tmp_path / "modules", **options)
    half = export(source, "half", tmp_path / "modules", dtype="float16", progress=stages, **options)
    assert {path.name for path in (tmp_path / "modules").iterdir()} == {"plain", "half"}
    return plain, half, stages


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_file_is_smaller_and_the_difference_is_told(tmp_path: Path, name: str) -> None:
    plain, half, stages = both(tmp_path, FAMILIES / name)
    ids = np.array([Tokenizer.from_file(str(plain / "tokenizer.json")).encode(TEXT).ids])
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    found = differences(plain, half, feeds)
    assert 0 < max(found) < TOLERANCE
    assert stages.told == pytest.approx(found, rel=0.06, abs=1e-6)  # told with two digits


@pytest.mark.slow
def test_a_trained_model_takes_half_the_file(tmp_path: Path, text_source: Path) -> None:
    plain, half, stages = both(tmp_path, text_source)
    sizes = [(folder / MODEL_FILE).stat().st_size for folder in (half, plain)]
    assert sizes[0] / sizes[1] == pytest.approx(0.5, abs=0.02)
    assert 0 < max(stages.told) < TOLERANCE


@pytest.mark.slow
def test_the_command_tells_the_difference_too(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "attention_service", "export", str(FAMILIES / "bert"),
        "--name", "half", "--modules", str(tmp_path), "--dtype", "float16",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    stage = done.stderr.splitlines()[-1]
    found = re.search(r"100% done: float16 storage changes .* most (.+) and the .* (.+)", stage)
    assert found is not None, done.stderr
    assert 0 < float(found[1]) < TOLERANCE
    assert 0 < float(found[2]) < TOLERANCE


def test_a_module_of_attention_alone_is_stored_so_too(tmp_path: Path) -> None:
    source = GOLDENS / "multi_head_bias.safetensors"
    plain, half, stages = both(tmp_path, source, num_heads=4)
    width = Manifest.model_validate_json((plain / MANIFEST_FILE).read_bytes()).embed_dim
    rows = np.random.default_rng(1).standard_normal((1, 5, width)).astype(np.float32)
    feeds = dict.fromkeys(("query", "key", "value"), rows) | {
        "attn_bias": np.zeros((1, 1, 1, 1), np.float32),
        "scale": np.array(0.3, np.float32),
    }
    found = differences(plain, half, feeds)
    assert 0 < max(found) < TOLERANCE
    assert 0 < max(stages.told) < TOLERANCE


def test_matrices_take_half_and_the_rest_stays(tmp_path: Path) -> None:
    source = wider(tmp_path)
    plain, half, _ = both(tmp_path, source)
    sizes = [(folder / MODEL_FILE).stat().st_size for folder in (half, plain)]
    assert sizes[0] / sizes[1] == pytest.approx(0.5, abs=0.01)
    constants = {item.name: item for item in onnx.load(half / MODEL_FILE).graph.initializer}
    for name, item in constants.items():
        is_matrix = len(item.dims) == 2
        assert (item.data_type == TensorProto.FLOAT16) == is_matrix, name
    manifest = Manifest.model_validate_json((half / MANIFEST_FILE).read_bytes())
    assert manifest.dtype == "float32"
    assert manifest.layers
    for layer in manifest.layers:
        assert constants[layer.projection].data_type == TensorProto.FLOAT16


def wider(tmp_path: Path) -> Path:
    """DistilBERT with more words, so that its parameters and not its nodes make up the file."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        text = (FAMILIES / "distilbert" / name).read_text()
        (folder / name).write_text(re.sub(r'"vocab_size": \d+', '"vocab_size": 60000', text))
    tensors = load_file(FAMILIES / "distilbert" / "model.safetensors")
    (name,) = (name for name in tensors if name.endswith("word_embeddings.weight"))
    table = tensors[name]
    tensors[name] = np.resize(table, (60000, table.shape[1]))
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_parameter_that_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    source = wider(tmp_path)
    tensors = load_file(source / "model.safetensors")
    name = "transformer.layer.1.ffn.lin2.weight"
    tensors[name][3, 5] = -65505
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ExportError, match=r"'layer\.1\.output\.dense\.weight' holds 65505.*65504"):
        export(source, "half", tmp_path / "modules", dtype="float16")
    assert not list((tmp_path / "modules").glob("*")), "a refused export leaves nothing"
    tensors[name][3, 5] = -65504
    save_file(tensors, source / "model.safetensors")
    export(source, "half", tmp_path / "modules", dtype="float16")


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    wrong: Any = "int8"
    with pytest.raises(ExportError, match=r"'int8'.*float32 or float16"):
        export(FAMILIES / "bert", "half", tmp_path / "modules", dtype=wrong)
