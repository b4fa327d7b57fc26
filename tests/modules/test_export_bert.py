"""BERT modules: the exported graph against transformers' values and a reference in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest

from attention_service.modules.exporters import ExportError, export
from attention_service.modules.exporters.blocks import Graph
from attention_service.modules.manifest import MANIFEST_FILE, MODEL_FILE, Manifest
from attention_wire import safetensors

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXT = json.loads((GOLDENS / "text.json").read_text())
CASES: dict[str, dict[str, Any]] = {case["id"]: case for case in TEXT["cases"]}

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[Array, Array, Array], dict[str, Array]]


def runner(folder: Path) -> Run:
    """The module's graph as a function of ids, mask and type ids."""
    session = onnxruntime.InferenceSession(folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(ids: Array, mask: Array, types: Array) -> dict[str, Array]:
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


# --- all-MiniLM-L6-v2 against transformers -------------------------------------------------


@pytest.fixture(scope="module")
def mini_lm(text_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    modules = tmp_path_factory.mktemp("modules")
    return export(text_source, "mini-lm", modules, expected_sha256=TEXT["model"]["sha256"])


@pytest.fixture(scope="module")
def run_mini_lm(mini_lm: Path) -> Run:
    return runner(mini_lm)


@pytest.fixture(scope="module")
def goldens() -> dict[str, Array]:
    return dict(np.load(GOLDENS / "text.npz"))


def batch_of(cases: list[dict[str, Any]]) -> tuple[Array, Array, Array]:
    """Ids, mask and type ids, padded with zeros to the longest."""
    shape = (len(cases), max(len(case["token_ids"]) for case in cases))
    ids, mask, types = (np.zeros(shape, np.int64) for _ in range(3))
    for row, case in enumerate(cases):
        length = len(case["token_ids"])
        ids[row, :length] = case["token_ids"]
        types[row, :length] = case["type_ids"]
        mask[row, :length] = 1
    return ids, mask, types


def stack(answer: dict[str, Array], row: int) -> Array:
    """``[layers,heads,L,S]`` of one text of a batch."""
    return np.stack([answer[f"weights.{layer}"][row] for layer in range(len(answer) - 1)])


@pytest.mark.parametrize("name", CASES)
def test_a_text_matches_transformers(
    run_mini_lm: Run, goldens: dict[str, Array], name: str
) -> None:
    case = CASES[name]
    answer = run_mini_lm(*batch_of([case]))
    rows = slice(None) if case["rows"] is None else case["rows"]
    np.testing.assert_allclose(
        answer["output"][0, rows], goldens[f"{name}.output"], rtol=0, atol=1e-4
    )
    weights = stack(answer, 0)
    assert weights.shape[:2] == (6, 12)
    np.testing.assert_allclose(weights[:, :, rows], goldens[f"{name}.weights"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("batch", TEXT["batches"], ids="+".join)
def test_in_a_padded_batch_a_text_gives_what_it_gives_alone(
    run_mini_lm: Run, batch: list[str]
) -> None:
    cases = [CASES[name] for name in batch]
    together = run_mini_lm(*batch_of(cases))
    for row, case in enumerate(cases):
        alone = run_mini_lm(*batch_of([case]))
        length = len(case["token_ids"])
        np.testing.assert_allclose(
            together["output"][row, :length], alone["output"][0], rtol=0, atol=1e-5
        )
        weights = stack(together, row)[:, :, :length]
        np.testing.assert_allclose(weights[..., :length], stack(alone, 0), rtol=0, atol=1e-5)
        assert not weights[..., length:].any(), "padding gets no weight at all"


def test_the_manifest_says_what_the_model_is(mini_lm: Path) -> None:
    manifest = Manifest.model_validate_json((mini_lm / MANIFEST_FILE).read_bytes())
    assert manifest.kind == "text"
    assert (manifest.num_layers, manifest.num_heads, manifest.head_dim) == (6, 12, 32)
    assert (manifest.embed_dim, manifest.max_length) == (384, 512)
    assert manifest.outputs.weights == [f"weights.{layer}" for layer in range(6)]
    assert manifest.license == "Apache-2.0"
    assert manifest.source_sha256 == TEXT["model"]["sha256"]
    assert set(manifest.files) == {"model.onnx", "tokenizer.json", "LICENSE"}


def test_outputs_can_be_bound_to_buffers_of_their_own(mini_lm: Path) -> None:
    session = onnxruntime.InferenceSession(mini_lm / MODEL_FILE, providers=["CPUExecutionProvider"])
    shapes = {output.name: output.shape for output in session.get_outputs()}
    assert shapes["output"] == ["batch", "length", 384]
    assert shapes["weights.5"] == ["batch", 12, "length", "keys"]
    ids, mask, types = batch_of([CASES["animal"]])
    binding = session.io_binding()
    for name, array in (("input_ids", ids), ("attention_mask", mask), ("token_type_ids", types)):
        binding.bind_cpu_input(name, array)
    buffer = np.empty((1, 12, ids.shape[1], ids.shape[1]), np.float32)
    binding.bind_output("weights.5", "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
    session.run_with_iobinding(binding)
    np.testing.assert_allclose(buffer.sum(axis=-1), 1, atol=1e-5)


# --- Tiny models against float64 -----------------------------------------------------------

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 11,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 9,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 0.01,
}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefg"]
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {token: index for index, token in enumerate(VOCABULARY)},
    },
    "added_tokens": [{"id": 0, "content": "[PAD]", "special": True}],
}


def random_tensors(config: dict[str, Any], seed: int = 3) -> dict[str, Array]:
    """A BertModel's tensors by their names in transformers."""
    rng = np.random.default_rng(seed)
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        for dense, size_out, size_in in (
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", inner, width),
            ("output.dense", width, inner),
        ):
            shapes[f"{name}.{dense}.weight"] = (size_out, size_in)
            shapes[f"{name}.{dense}.bias"] = (size_out,)
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{name}.{norm}.weight"] = shapes[f"{name}.{norm}.bias"] = (width,)
    tensors = {name: rng.normal(0, 0.7, shape) for name, shape in shapes.items()}
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def write_model(folder: Path, config: dict[str, Any], tensors: dict[str, Array]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "model.safetensors").write_bytes(b"".join(safetensors.write(tensors, {})))
    return folder


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
}


class Reference:
    """BERT in float64, from https://arxiv.org/abs/1810.04805 and transformers' names."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Array]) -> None:
        self.config = config
        self.tensors = {name: array.astype(np.float64) for name, array in tensors.items()}

    def linear(self, name: str, x: Array) -> Array:
        product: Array = x @ self.tensors[f"{name}.weight"].T
        return product + self.tensors[f"{name}.bias"]

    def norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        unit = centred / np.sqrt(variance + self.config["layer_norm_eps"])
        return unit * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def attention(self, name: str, x: Array, mask: Array) -> tuple[Array, Array]:
        heads = self.config["num_attention_heads"]
        batch, length, width = x.shape
        q, k, v = (
            self.linear(f"{name}.self.{part}", x)
            .reshape(batch, length, heads, width // heads)
            .transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(width // heads)
        scores = np.where(mask[:, None, None, :] == 1, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        context = (weights @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        return self.linear(f"{name}.output.dense", context), weights

    def __call__(self, ids: Array, mask: Array, types: Array) -> dict[str, Array]:
        words, segments, positions = (
            self.tensors[f"embeddings.{kind}_embeddings.weight"]
            for kind in ("word", "token_type", "position")
        )
        x = words[ids] + segments[types] + positions[: ids.shape[1]]
        x = self.norm("embeddings.LayerNorm", x)
        answer = {}
        for layer in range(self.config["num_hidden_layers"]):
            name = f"encoder.layer.{layer}"
            attended, answer[f"weights.{layer}"] = self.attention(f"{name}.attention", x, mask)
            x = self.norm(f"{name}.attention.output.LayerNorm", attended + x)
            wide = self.linear(f"{name}.intermediate.dense", x)
            active = ACTIVATIONS[self.config["hidden_act"]](wide)
            x = self.norm(
                f"{name}.output.LayerNorm", self.linear(f"{name}.output.dense", active) + x
            )
        return {"output": x, **answer}


IDS = np.array([[2, 4, 5, 6, 3], [2, 10, 3, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
TYPES = np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])


def check_tiny(folder: Path, tmp_path: Path, reference: Reference) -> None:
    answer = runner(export(folder, "tiny", tmp_path / "modules"))(IDS, MASK, TYPES)
    expected = reference(IDS, MASK, TYPES)
    assert set(answer) == set(expected)
    for name, array in answer.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5, err_msg=name)


def legacy(name: str) -> str:
    """As checkpoints converted from TensorFlow name the parameters of a layer norm."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("rename", [str, legacy])
def test_names_of_other_checkpoints_mean_the_same(
    tmp_path: Path, prefix: str, rename: Callable[[str], str]
) -> None:
    tensors = random_tensors(CONFIG)
    named = {prefix + rename(name): array for name, array in tensors.items()}
    named["cls.predictions.bias"] = np.zeros(11, np.float32)
    named[f"{prefix}pooler.dense.weight"] = np.zeros((12, 12), np.float32)
    named[f"{prefix}embeddings.position_ids"] = np.arange(9)[None]
    check_tiny(write_model(tmp_path / "hf", CONFIG, named), tmp_path, Reference(CONFIG, tensors))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes_are_converted(tmp_path: Path, dtype: Any) -> None:
    tensors = {name: array.astype(dtype) for name, array in random_tensors(CONFIG).items()}
    check_tiny(write_model(tmp_path / "hf", CONFIG, tensors), tmp_path, Reference(CONFIG, tensors))


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(tmp_path: Path, kind: str) -> None:
    config = {**CONFIG, "hidden_act": kind}
    tensors = random_tensors(config)
    check_tiny(write_model(tmp_path / "hf", config, tensors), tmp_path, Reference(config, tensors))


# --- What is refused -----------------------------------------------------------------------


def refusal(folder: Path, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(ExportError) as error:
        export(folder, "tiny", tmp_path / "modules", **options)
    assert not list((tmp_path / "modules").glob("*")), "a refused export leaves nothing"
    return str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"position_embedding_type": "relative_key"}, ["position_embedding_type", "relative_key"]),
        ({"is_decoder": True}, ["is_decoder"]),
        ({"num_attention_heads": 5}, ["hidden_size 12", "num_attention_heads 5"]),
        ({"hidden_act": "mish"}, ["mish", "gelu_new", "silu"]),
        ({"vocab_size": "many"}, ["vocab_size"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers"]),
        ({"vocab_size": 10}, ["ids up to 10", "vocab_size 10"]),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_built_is_refused(
    tmp_path: Path, fields: dict[str, Any], words: list[str]
) -> None:
    folder = write_model(tmp_path / "hf", {**CONFIG, **fields}, random_tensors(CONFIG))
    message = refusal(folder, tmp_path)
    assert all(word in message for word in words), message


def test_a_missing_field_of_the_configuration_is_named(tmp_path: Path) -> None:
    config = {name: value for name, value in CONFIG.items() if name != "intermediate_size"}
    folder = write_model(tmp_path / "hf", config, random_tensors(CONFIG))
    assert "intermediate_size: Field required" in refusal(folder, tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    del tensors["encoder.layer.1.output.dense.bias"]
    message = refusal(write_model(tmp_path / "hf", CONFIG, tensors), tmp_path)
    assert "'encoder.layer.1.output.dense.bias'" in message
    assert "[12]" in message


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    name = "encoder.layer.0.intermediate.dense.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    message = refusal(write_model(tmp_path / "hf", CONFIG, tensors), tmp_path)
    assert name in message
    assert "expected the shape [20, 12], found [12, 20]" in message


def test_weights_that_are_not_floats_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    name = "encoder.layer.0.attention.self.key.weight"
    tensors[name] = tensors[name].astype(np.int32)
    message = refusal(write_model(tmp_path / "hf", CONFIG, tensors), tmp_path)
    assert name in message
    assert "int32" in message


def test_a_num_heads_that_contradicts_the_configuration_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", CONFIG, random_tensors(CONFIG))
    assert "num_heads 4" in refusal(folder, tmp_path, num_heads=4)
    export(folder, "tiny", tmp_path / "modules", num_heads=3)


def test_a_missing_tokenizer_is_named_with_the_way_to_make_one(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", CONFIG, random_tensors(CONFIG))
    (folder / "tokenizer.json").unlink()
    assert "save_pretrained" in refusal(folder, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"model": {"vocab": [["a", 0.5]]}}'])
def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    folder = write_model(tmp_path / "hf", CONFIG, random_tensors(CONFIG))
    (folder / "tokenizer.json").write_text(text)
    assert "no WordPiece" in refusal(folder, tmp_path)


def test_weights_past_what_an_onnx_file_holds_are_refused() -> None:
    graph = Graph("large")
    gigabyte = np.broadcast_to(np.float32(0), (2**28,))  # a view: no memory behind it
    graph.constant("first", gigabyte)
    with pytest.raises(ExportError, match="2 GiB"):
        graph.constant("second", gigabyte)


def test_two_constants_of_one_name_have_to_be_equal() -> None:
    graph = Graph("small")
    graph.constant("axis", np.array([1]))
    graph.constant("axis", np.array([1]))
    with pytest.raises(ValueError, match="axis"):
        graph.constant("axis", np.array([2]))
