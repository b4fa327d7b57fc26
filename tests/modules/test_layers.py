"""Where the manifest says that a graph can be cut, and how each layer attends there.

Every graph is run in pieces, with attention computed in float64 between them, against what
transformers computes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.utils
import onnxruntime
import pytest

from attention_service.modules.exporters import export
from attention_service.modules.manifest import MANIFEST_FILE, MODEL_FILE, Layer, Manifest
from tests.modules.families import FAMILIES, GOLDENS, TOLERANCE, changed

Array = npt.NDArray[Any]


def manifest_of(folder: Path) -> Manifest:
    return Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())


def attend(layer: Layer, query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """Weights ``[H,L,L]`` and context ``[H,L,Dv]`` in float64, by the options of a layer."""
    groups = query.shape[1] // key.shape[1]
    query, key, value = (array[0].astype(np.float64) for array in (query, key, value))
    key, value = (np.repeat(array, groups, axis=0) for array in (key, value))
    scores = layer.scale * query @ key.swapaxes(1, 2)
    ahead = np.arange(key.shape[1]) - np.arange(query.shape[1])[:, None]
    left, right = (side if side >= 0 else len(ahead) for side in (
        layer.left_window_size, layer.right_window_size
    ))  # fmt: skip
    hidden = (ahead < -left) | (ahead > (0 if layer.is_causal else right))
    scores = np.where(hidden, -np.inf, scores)
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = raised / raised.sum(axis=-1, keepdims=True)
    return weights, weights @ value


def run_piece(
    extractor: onnx.utils.Extractor, feeds: dict[str, Array], outputs: list[str]
) -> list[Array]:
    """What a graph computes between some of its values, with no attention in between."""
    piece = extractor.extract_model(list(feeds), outputs)
    assert "Softmax" not in {node.op_type for node in piece.graph.node}
    session = onnxruntime.InferenceSession(
        piece.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    arrays: list[Array] = session.run(outputs, feeds)
    return arrays


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_graph_cut_at_its_layers_gives_what_transformers_does(
    tmp_path: Path, name: str, dtype: Any
) -> None:
    made = export(GOLDENS / name, name, tmp_path, dtype=dtype)
    tolerance = TOLERANCE if dtype == "float32" else 0.05
    manifest, model = manifest_of(made), onnx.load(made / MODEL_FILE)
    case = json.loads((GOLDENS / name / "golden.json").read_text())["cases"][1]
    goldens = np.load(GOLDENS / name / "golden.npz")
    ids = np.array([case["token_ids"]])
    given = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model))
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    at_cut: dict[str, Array] = {}
    assert manifest.layers is not None
    assert len(manifest.layers) == manifest.num_layers
    for index, layer in enumerate(manifest.layers):
        wanted = [layer.query, layer.key, layer.value, layer.hidden]
        *heads, hidden = run_piece(extractor, given | at_cut, wanted)
        assert hidden.shape == (*ids.shape, manifest.embed_dim)
        weights, context = attend(layer, heads[0], heads[1], heads[2])
        expected = goldens["1.weights"][index]
        np.testing.assert_allclose(weights, expected, rtol=0, atol=tolerance)
        assert np.array_equal(weights == 0, expected == 0), "the same keys are seen"
        at_cut = {layer.hidden: hidden, layer.context: context[None].astype(np.float32)}

        projection = constants[layer.projection].astype(np.float32)
        assert projection.shape == (context.shape[0] * context.shape[2], manifest.embed_dim)
        used = layer.projection if dtype == "float32" else f"{layer.projection}.float32"
        (product,) = (node for node in model.graph.node if used in node.input)
        (found,) = run_piece(extractor, {layer.context: at_cut[layer.context]}, [product.output[0]])
        merged = context.swapaxes(0, 1).reshape(len(ids[0]), -1)
        np.testing.assert_allclose(found[0], merged @ projection, rtol=0, atol=1e-4)
    (output,) = run_piece(extractor, given | at_cut, [manifest.outputs.output])
    np.testing.assert_allclose(output[0], goldens["1.output"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_much_longer_than_a_text_changes_nothing(tmp_path: Path, name: str) -> None:
    """Rows far behind a text, which a window may leave without any token, reach none of it."""
    path = export(GOLDENS / name, name, tmp_path) / MODEL_FILE
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(length: int) -> list[Array]:
        ids, mask = np.zeros((2, 1, length), np.int64)
        ids[:, :3], mask[:, :3] = [5, 9, 7], 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        arrays: list[Array] = session.run(None, feeds)
        return arrays

    for alone, padded in zip(run(3), run(40), strict=True):
        rows = padded[:, :3] if padded.ndim == 3 else padded[:, :, :3, :3]
        np.testing.assert_allclose(rows, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "scales"),
    [
        ({}, [1 / 8**0.5] * 3),
        ({"scale_attn_weights": False}, [1, 1, 1]),
        (
            {"scale_attn_by_inverse_layer_idx": True},
            [1 / 8**0.5, 1 / 2 / 8**0.5, 1 / 3 / 8**0.5],
        ),
    ],
)
def test_the_scale_of_gpt2_is_that_of_its_configuration(
    tmp_path: Path, fields: dict[str, Any], scales: list[float]
) -> None:
    made = export(changed(tmp_path, "gpt2", **fields), "gpt2", tmp_path / "modules")
    layers = manifest_of(made).layers or []
    assert [layer.scale for layer in layers] == pytest.approx(scales)
    constants = {
        item.name: onnx.numpy_helper.to_array(item)
        for item in onnx.load(made / MODEL_FILE).graph.initializer
    }
    in_graph = [float(constants[f"layer.{index}.attention.scale"]) for index in range(3)]
    assert in_graph == pytest.approx(scales)
