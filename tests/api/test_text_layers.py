"""What is answered of a text's layers: their inputs, what keys carry, and heads taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from attention_service.modules.manifest import MODEL_FILE
from attention_service.settings import Settings
from attention_wire import bodies
from tests.api.support import ATTENTION, Caller, check_problem
from tests.api.text_models import (
    ASKED,
    TINY,
    Array,
    Asked,
    assert_same,
    every_model,
    make_models,
    manifest_of,
    post,
    result,
    whole_weights,
    without_heads,
    without_layers,
)
from tests.api.text_numbers import close, words_of
from tests.conftest import TEXT_MODULE, RunningService

# Heads that are taken out, of one layer and of several.
ABLATIONS = {"one": [(1, 1)], "several": [(0, 2), (2, 0), (0, 0)], "last": [(2, 1)]}


@pytest.fixture(scope="module")
def folder(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_models(tmp_path_factory.mktemp("layers"), modules)
    for name in TINY:
        without_layers(folder / name, f"{name}-whole")
        for kind, heads in ABLATIONS.items():
            without_heads(folder / name, f"{name}-{kind}", heads)
    without_layers(folder / TEXT_MODULE, f"{TEXT_MODULE}-whole")
    without_heads(folder / TEXT_MODULE, f"{TEXT_MODULE}-several", ABLATIONS["several"])
    return folder


@pytest.fixture(scope="module")
def caller(folder: Path, start_service: Callable[[Settings], RunningService]) -> Iterator[Caller]:
    caller = Caller(start_service(Settings(modules=folder, provider="cpu", threads=2)).url)
    yield caller
    caller.must_serve()
    caller.close()


# --- Inputs ------------------------------------------------------------------------------------


@every_model
def test_the_inputs_of_a_layer_give_its_weights_again(
    caller: Caller, folder: Path, asked: Asked
) -> None:
    returns = {"inputs": True, "output": False}
    found = result(caller, asked, layers=[2, 0], return_=returns)
    assert len(found["inputs"]) == 2
    said = manifest_of(folder / asked.module).layers
    assert said is not None
    for layer, inputs, weights in zip((2, 0), found["inputs"], found["weights"], strict=True):
        for option in ("scale", "is_causal", "left_window_size", "right_window_size"):
            assert inputs[option] == getattr(said[layer], option)
        body = bodies.write(bodies.SAFETENSORS, inputs, "request")
        answer = caller.post(ATTENTION, bytes(body), Content_Type=body.media_type)
        assert answer.status_code == 200, answer.text
        again = bodies.read(bodies.SAFETENSORS, answer.content, "response").values
        close(again["weights"][0], weights)


def test_windows_are_told_of_the_layers_that_have_them(caller: Caller) -> None:
    windows = {
        name: [
            (one["left_window_size"], one["right_window_size"])
            for one in result(caller, ASKED[name], return_={"inputs": True})["inputs"]
        ]
        for name in ("llama", "mistral", "modernbert")
    }
    # The golden configurations say 5 keys with the row's own, and 6 on both sides together.
    assert windows["llama"] == [(-1, -1)] * 3
    assert {left for left, _ in windows["mistral"]} == {4}
    assert windows["modernbert"] == [(-1, -1), (3, 3), (3, 3), (-1, -1)]


# --- What keys carry ---------------------------------------------------------------------------


def carried(folder: Path, layer: int, value: Array) -> Array:
    """|v·W| for each head and key ``[H,L]``, W of the constant in the graph."""
    manifest = manifest_of(folder)
    assert manifest.layers is not None
    graph = onnx.load(folder / MODEL_FILE).graph
    constants = {item.name: item for item in graph.initializer}
    matrix = numpy_helper.to_array(constants[manifest.layers[layer].projection])
    parts = matrix.astype(np.float64).reshape(manifest.num_heads, -1, matrix.shape[1])
    groups = manifest.num_heads // value.shape[1]
    heads = [value[0, head // groups] @ parts[head] for head in range(manifest.num_heads)]
    norms: Array = np.linalg.norm(np.stack(heads), axis=-1)
    return norms


@pytest.mark.parametrize("unit", ["token", "word"])
@every_model
def test_weights_times_what_they_carry(
    caller: Caller, folder: Path, asked: Asked, unit: str
) -> None:
    layers, heads = [2, 0], [2, 0]
    given = {"layers": layers, "heads": heads, "unit": unit}
    returns = {"weights": {"value_weighted": True}, "inputs": True, "rollout": True}
    found = result(caller, asked, **given, return_=returns)
    weights = whole_weights(caller, asked)
    expected = np.stack([
        weights[layer] * carried(folder / asked.module, layer, inputs["value"])[:, None]
        for layer, inputs in zip(layers, found["inputs"], strict=True)
    ])[:, heads]  # fmt: skip
    if unit == "word":
        expected = words_of(expected, found["words"]["tokens"])
    tolerance = 1e-5 * expected.max()
    np.testing.assert_allclose(found["weights"], expected, rtol=0, atol=tolerance)
    # Rollout is of the weights as they are.
    close(found["rollout"].sum(axis=-1), 1)
    plain = result(caller, asked, **given, return_={"rollout": True, "weights": False})
    close(found["rollout"], plain["rollout"])

    selection = {"value_weighted": True, "queries": [3, 1], "top_k": 2}
    # Statistics are of every head, and the weights still of those asked for.
    returns = {"weights": selection, "statistics": True}
    some = result(caller, asked, **given, return_=returns)["weights"]
    rows = expected[..., [3, 1], :]
    largest = -np.sort(-rows, axis=-1)
    np.testing.assert_allclose(some["values"], largest[..., :2], rtol=0, atol=tolerance)
    rest = largest[..., 2:].sum(axis=-1)
    np.testing.assert_allclose(some["rest"], rest, rtol=0, atol=tolerance)


# --- Heads taken out ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [(TEXT_MODULE, "several")] + [(name, kind) for name in TINY for kind in ABLATIONS],
)
def test_an_ablated_head_is_one_whose_projection_is_zero(
    caller: Caller, name: str, kind: str
) -> None:
    asked, heads = ASKED[name], [list(pair) for pair in ABLATIONS[kind]]
    whole = result(caller, asked)
    other = result(caller, asked._replace(module=f"{name}-{kind}"))
    found = result(caller, asked, ablate=heads)
    close(found["output"], other["output"])
    close(found["weights"], other["weights"])
    close(found["change"], other["output"].astype(np.float64) - whole["output"])
    # Or the head would have done nothing anyway.
    assert np.abs(found["change"]).max() > 0.01
    alone = result(caller, asked, ablate=heads, return_={"output": False, "weights": False})
    assert "output" not in alone
    assert "weights" not in alone
    close(alone["change"], found["change"])


@pytest.mark.parametrize("name", TINY)
def test_analyses_of_an_ablated_model_are_of_what_it_then_computes(
    caller: Caller, name: str
) -> None:
    returns = {"entropy": True, "statistics": True, "classes": True, "rollout": True}
    asked, heads = ASKED[name], [list(pair) for pair in ABLATIONS["several"]]
    for unit in ("token", "word"):
        found = result(caller, asked, unit=unit, ablate=heads, return_=returns)
        other = asked._replace(module=f"{name}-several")
        found.pop("change")
        assert_same(found, result(caller, other, unit=unit, return_=returns), 1e-5)


# --- Graphs that run as a whole ----------------------------------------------------------------

WHOLE: dict[str, dict[str, Any]] = {
    "plain": {},
    "words": {"unit": "word"},
    "selected": {
        "layers": [2, 0],
        "heads": [2, 0],
        "return": {"weights": {"queries": [3, 1], "reduce": "max", "top_k": 2}},
    },
    "range": {"return": {"weights": {"queries": {"start": 1, "stop": 4}}, "output": False}},
    "numbers": {
        "heads": [1],
        "return": {"entropy": True, "statistics": True, "classes": True, "weights": False},
    },
    "mixed": {"layers": [1], "unit": "word", "return": {"rollout": True, "flow": True}},
}


@pytest.mark.parametrize("fields", WHOLE.values(), ids=WHOLE)
@every_model
def test_a_graph_as_a_whole_gives_the_same(
    caller: Caller, asked: Asked, fields: dict[str, Any]
) -> None:
    whole = asked._replace(module=f"{asked.module}-whole")
    found = result(caller, whole, **fields)
    assert_same(found, result(caller, asked, **fields), 1e-5)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_masses_of_a_pair_in_a_graph_as_a_whole(caller: Caller, name: str) -> None:
    whole = ASKED[name]._replace(module=f"{name}-whole")
    found = result(caller, whole, return_={"blocks": True})
    assert_same(found, result(caller, ASKED[name], return_={"blocks": True}), 1e-5)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"ablate": [[0, 0]]}, "ablate"),
        ({"return": {"inputs": True}}, "return.inputs"),
        ({"return": {"weights": {"value_weighted": True}}}, "return.weights.value_weighted"),
    ],
)
@pytest.mark.parametrize("name", ["bert-whole", "llama-whole"])
def test_what_needs_layers_is_refused_where_none_are_told(
    caller: Caller, name: str, fields: dict[str, Any], field: str
) -> None:
    answer = post(caller, {"text": "cat", "module": name, **fields})
    says = (repr(name), "as a whole", "export the model")
    check_problem(answer, 422, "invalid_field", field, says=says)
