"""Multi-head modules: the exported graph against PyTorch's values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy

from attention_service.modules.exporters import ExportError, export
from attention_service.modules.manifest import MANIFEST_FILE, MODEL_FILE, Manifest
from attention_wire import safetensors as wire_safetensors

GOLDENS = Path(__file__).parents[1] / "goldens"
CALLS: list[dict[str, Any]] = json.loads((GOLDENS / "multi_head.json").read_text())
HEADS = {call["variant"]: call["num_heads"] for call in CALLS}

Array = np.ndarray[Any, np.dtype[Any]]


class Module:
    """An exported module, run by ONNX Runtime alone."""

    def __init__(self, folder: Path) -> None:
        self.manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
        self.model = onnx.load(folder / MODEL_FILE)
        self.session = self._open()

    def _open(self) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(
            self.model.SerializeToString(), providers=["CPUExecutionProvider"]
        )

    def expose(self, *names: str) -> None:
        """Make inner values of the graph outputs of it."""
        self.model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        self.session = self._open()

    def __call__(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        *,
        bias: Array | None = None,
        scale: float | None = None,
    ) -> dict[str, Array]:
        names = [output.name for output in self.session.get_outputs()]
        inputs = {
            "query": query,
            "key": query if key is None else key,
            "value": query if value is None else value,
            "attn_bias": np.zeros((1, 1, 1, 1), np.float32) if bias is None else bias,
            "scale": np.float32(self.manifest.head_dim**-0.5 if scale is None else scale),
        }
        inputs["scale"] = np.asarray(inputs["scale"])
        return dict(zip(names, self.session.run(names, inputs), strict=True))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every variant's module folder."""
    modules = tmp_path_factory.mktemp("modules")
    return {
        variant: export(
            GOLDENS / f"multi_head_{variant}.safetensors", variant, modules, num_heads=heads
        )
        for variant, heads in HEADS.items()
    }


@pytest.fixture(scope="module")
def goldens() -> dict[str, Array]:
    return dict(np.load(GOLDENS / "multi_head.npz"))


def bias_of(mask: Array | None, lengths: tuple[int, int], *, is_causal: bool) -> Array | None:
    """A golden's mask, or causal order, as an ``attn_bias`` of four dimensions."""
    if is_causal:
        mask = np.tri(*lengths, dtype=bool)
    if mask is None:
        return None
    if mask.dtype == bool:
        mask = np.where(mask, np.float32(0), np.float32(-np.inf))
    return mask.reshape((1,) * (4 - mask.ndim) + mask.shape)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call["id"])
def test_a_call_matches_pytorch(
    exported: dict[str, Path], goldens: dict[str, Array], call: dict[str, Any]
) -> None:
    arrays: dict[str, Any] = {name: goldens[f"{call['id']}.{name}"] for name in call["arrays"]}
    expected = {"output": arrays.pop("output"), "weights.0": arrays.pop("weights")}
    bias = bias_of(
        arrays.pop("attn_mask", None),
        expected["weights.0"].shape[2:],
        is_causal=call["is_causal"],
    )
    answer = Module(exported[call["variant"]])(**arrays, bias=bias)
    for name, array in expected.items():
        np.testing.assert_allclose(answer[name], array, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("variant", HEADS)
def test_the_manifest_says_what_the_module_is(exported: dict[str, Path], variant: str) -> None:
    call = next(call for call in CALLS if call["variant"] == variant)
    manifest = Module(exported[variant]).manifest
    assert manifest.kind == "multi_head"
    assert (manifest.num_heads, manifest.num_layers) == (call["num_heads"], 1)
    dims = (manifest.embed_dim, manifest.key_dim, manifest.value_dim)
    assert dims == (call["embed_dim"], call["kdim"], call["vdim"])
    assert manifest.head_dim == call["embed_dim"] // call["num_heads"]
    assert manifest.max_length is None
    assert manifest.source == f"multi_head_{variant}.safetensors"
    assert set(manifest.files) == {MODEL_FILE}


@pytest.mark.parametrize("shape", [(1, 1, 3, 5), (2, 1, 3, 5), (1, 4, 1, 5), (2, 4, 3, 5)], ids=str)
def test_a_row_without_keys_gives_the_bias_of_the_output_projection(
    exported: dict[str, Path], shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(4)
    query = rng.normal(size=(2, 3, 16)).astype(np.float32)
    key = rng.normal(size=(2, 5, 16)).astype(np.float32)
    bias = rng.normal(size=shape).astype(np.float32)
    bias[-1, :, 0] = -np.inf
    module = Module(exported["bias"])
    answer = module(query, key, key, bias=bias)
    empty = np.broadcast_to(np.isinf(bias).all(-1), (2, 4, 3))
    assert not answer["weights.0"][empty].any()
    np.testing.assert_allclose(answer["weights.0"][~empty].sum(-1), 1, rtol=0, atol=1e-6)
    tensors = safetensors.numpy.load_file(GOLDENS / "multi_head_bias.safetensors")
    rows = answer["output"][empty.all(axis=1)]
    expected = np.broadcast_to(tensors["out_proj.bias"], rows.shape)
    np.testing.assert_array_equal(rows, expected)
    # The other rows are computed as if no row were empty.
    whole = module(query, key, key, bias=np.where(np.isinf(bias), np.float32(0), bias))
    for name in ("output", "weights.0"):
        kept = ~empty if name == "weights.0" else ~empty.any(axis=1)
        np.testing.assert_array_equal(answer[name][kept], whole[name][kept])


def test_a_masked_key_has_no_weight_at_all(exported: dict[str, Path]) -> None:
    query = np.random.default_rng(5).normal(size=(1, 40, 16)).astype(np.float32)
    bias = np.zeros((1, 1, 1, 40), np.float32)
    bias[..., 7::3] = -np.inf
    weights = Module(exported["bias"])(query, bias=bias)["weights.0"]
    assert not weights[..., 7::3].any()


@pytest.mark.parametrize(("queries", "keys"), [(3, 0), (0, 3), (0, 0)])
def test_empty_sequences(exported: dict[str, Path], queries: int, keys: int) -> None:
    query, key = np.ones((2, queries, 24), np.float32), np.ones((2, keys, 24), np.float32)
    for shape in ((1, 1, 1, 1), (1, 1, queries, keys)):
        answer = Module(exported["nobias"])(query, key, key, bias=np.zeros(shape, np.float32))
        assert answer["weights.0"].shape == (2, 3, queries, keys)
        np.testing.assert_array_equal(answer["output"], np.zeros((2, queries, 24)))


def test_the_scale_multiplies_the_projected_query(exported: dict[str, Path]) -> None:
    query = np.random.default_rng(6).normal(size=(1, 4, 16)).astype(np.float32)
    module = Module(exported["bias"])
    np.testing.assert_allclose(module(query, scale=0)["weights.0"], 0.25, rtol=1e-6)
    module.expose("query_heads", "key_heads")
    answer = module(query, scale=0.3)
    scores = 0.3 * answer["query_heads"] @ answer["key_heads"].swapaxes(-1, -2)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(answer["weights.0"], weights, rtol=0, atol=1e-5)


def test_the_graph_can_be_cut_at_the_heads_and_the_context(
    exported: dict[str, Path], goldens: dict[str, Array]
) -> None:
    module = Module(exported["kdim"])
    module.expose("query_heads", "key_heads", "value_heads", "context")
    arrays: dict[str, Any] = {
        name: goldens[f"kdim_cross.{name}"] for name in ("query", "key", "value")
    }
    answer = module(**arrays)
    for name, array in arrays.items():
        assert answer[f"{name}_heads"].shape == (array.shape[0], 2, array.shape[1], 8)
    context = answer["weights.0"] @ answer["value_heads"]
    np.testing.assert_allclose(answer["context"], context, rtol=0, atol=1e-6)


# --- State dicts ---------------------------------------------------------------------------


def state_dict() -> dict[str, Array]:
    rng = np.random.default_rng(7)
    shapes = {
        "in_proj_weight": (24, 8),
        "in_proj_bias": (24,),
        "out_proj.weight": (8, 8),
        "out_proj.bias": (8,),
    }
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def write(path: Path, tensors: dict[str, Array]) -> Path:
    path.write_bytes(b"".join(wire_safetensors.write(tensors, {})))
    return path


def test_a_folder_with_one_safetensors_file_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder / "attention.safetensors", state_dict())
    module = Module(export(folder, "mha", tmp_path / "modules", num_heads=4))
    assert module.manifest.source == "mine"
    assert module.manifest.license is None


def refusal(tmp_path: Path, tensors: dict[str, Array], num_heads: int = 2) -> str:
    path = write(tmp_path / "mha.safetensors", tensors)
    with pytest.raises(ExportError) as error:
        export(path, "mha", tmp_path / "modules", num_heads=num_heads)
    return str(error.value)


@pytest.mark.parametrize("num_heads", [3, 0, -2])
def test_num_heads_has_to_divide(tmp_path: Path, num_heads: int) -> None:
    message = refusal(tmp_path, state_dict(), num_heads)
    assert f"num_heads {num_heads} does not divide embed_dim 8" in message


def test_learned_extra_keys_are_refused_with_the_reason(tmp_path: Path) -> None:
    extra = np.zeros((1, 1, 8), np.float32)
    message = refusal(tmp_path, {**state_dict(), "bias_k": extra, "bias_v": extra})
    assert "bias_k and bias_v" in message
    assert "belongs to no key" in message


def test_tensors_of_something_else_are_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, {**state_dict(), "norm.weight": np.zeros(8, np.float32)})
    assert "norm.weight" in message


def test_what_is_no_state_dict_of_the_module_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"weight": np.zeros((2, 2), np.float32)})
    assert "is not the state dict of a torch.nn.MultiheadAttention" in message


@pytest.mark.parametrize("missing", ["in_proj_bias", "out_proj.weight", "out_proj.bias"])
def test_a_missing_tensor_is_named(tmp_path: Path, missing: str) -> None:
    tensors = state_dict()
    del tensors[missing]
    assert f"holds no tensor '{missing}'" in refusal(tmp_path, tensors)


def test_a_missing_separate_projection_is_named(tmp_path: Path) -> None:
    tensors = state_dict()
    tensors["q_proj_weight"], _, tensors["v_proj_weight"] = np.split(
        tensors.pop("in_proj_weight"), 3
    )
    assert "holds no tensor 'k_proj_weight'" in refusal(tmp_path, tensors)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("in_proj_weight", (16, 8), "[24, 8]"),
        ("in_proj_weight", (24,), "[3·embed_dim, embed_dim]"),
        ("in_proj_bias", (8,), "[24]"),
        ("out_proj.weight", (8, 9), "[8, 8]"),
    ],
    ids=str,
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(
    tmp_path: Path, name: str, shape: tuple[int, ...], expected: str
) -> None:
    message = refusal(tmp_path, {**state_dict(), name: np.zeros(shape, np.float32)})
    assert f"'{name}'" in message
    assert f"expected the shape {expected}, found {list(shape)}" in message


def test_a_module_inside_of_another_is_named(tmp_path: Path) -> None:
    inner = safetensors.numpy.load_file(GOLDENS / "multi_head_bias.safetensors")
    layers = {f"layers.{at}.self_attn.{name}": v for at in range(5) for name, v in inner.items()}
    safetensors.numpy.save_file(layers, tmp_path / "encoder.safetensors")
    with pytest.raises(ExportError) as error:
        export(tmp_path / "encoder.safetensors", "mha", tmp_path / "modules", num_heads=4)
    message = str(error.value)
    assert "under layers.0.self_attn, layers.1.self_attn, layers.2.self_attn, …: save" in message
    assert "model.get_submodule('layers.0.self_attn').state_dict()" in message
