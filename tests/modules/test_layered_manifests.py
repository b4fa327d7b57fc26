"""Manifests that say of layers what their graphs do not hold: refused by name, with a reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from attention_service.modules.exporters import export
from attention_service.modules.manifest import MANIFEST_FILE, MODEL_FILE, sha256
from attention_service.settings import Settings
from tests.api.support import TEXT, Caller, check_problem
from tests.api.text_models import Asked, assert_same, manifest_of, result, without_layers
from tests.conftest import RunningService
from tests.modules.families import GOLDENS


@contextmanager
def changed_manifest(folder: Path) -> Iterator[dict[str, Any]]:
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    yield manifest
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def set_layer(folder: Path, layer: int, **fields: Any) -> None:
    with changed_manifest(folder) as manifest:
        manifest["layers"][layer] |= fields


def take_a_layer_away(folder: Path) -> None:
    with changed_manifest(folder) as manifest:
        manifest["layers"].pop()


def turn_layers_round(folder: Path) -> None:
    with changed_manifest(folder) as manifest:
        manifest["layers"].reverse()


def put_an_if_between(folder: Path) -> None:
    """The same numbers, but what a layer adds to goes through a node that holds graphs."""
    layers = manifest_of(folder).layers
    assert layers is not None
    model = onnx.load(folder / MODEL_FILE)
    hidden, nodes = layers[1].hidden, model.graph.node
    (place,) = (at for at, node in enumerate(nodes) if hidden in node.output)
    nodes[place].output[0] = "before_if"
    branches = {
        branch: helper.make_graph(
            [helper.make_node("Identity", ["before_if"], [f"{branch}_value"])],
            branch,
            [],
            [helper.make_tensor_value_info(f"{branch}_value", TensorProto.FLOAT, None)],
        )
        for branch in ("then_branch", "else_branch")
    }
    model.graph.initializer.append(helper.make_tensor("always", TensorProto.BOOL, [], [True]))
    nodes.insert(place + 1, helper.make_node("If", ["always"], [hidden], name="choice", **branches))
    onnx.checker.check_model(model)
    onnx.save(model, folder / MODEL_FILE)
    with changed_manifest(folder) as manifest:
        manifest["files"][MODEL_FILE] = sha256(folder / MODEL_FILE)


BREAKAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "query": (lambda f: set_layer(f, 1, query="gone"), ("no value 'gone'",)),
    "projection": (lambda f: set_layer(f, 1, projection="gone"), ("no constant 'gone'",)),
    "other-projection": (
        lambda f: set_layer(f, 1, projection="layer.1.intermediate.dense.weight"),
        ("'layer.1.intermediate.dense.weight'", "[24, 40]", "3 heads to 24"),
    ),
    "flat-projection": (
        lambda f: set_layer(f, 1, projection="layer.1.attention.output.dense.bias"),
        ("'layer.1.attention.output.dense.bias'", "[24]", "3 heads to 24"),
    ),
    "large-projection": (
        lambda f: set_layer(f, 1, projection="embeddings.position_embeddings"),
        ("layer.1.attention.value_heads", "[1, 3, 2, 8]", "[1, 3, 2, 32]"),
    ),
    "context": (lambda f: set_layer(f, 1, context="gone"), ("no value 'gone'",)),
    "few-layers": (take_a_layer_away, ("2 layers", "3")),
    "turned-layers": (turn_layers_round, ("nothing behind the attention", "reads")),
    # These would give the right numbers and leave out what is done to a context.
    "early-context": (
        lambda f: set_layer(f, 1, context="layer.0.attention.context"),
        ("nothing behind", "'layer.0.attention.context'"),
    ),
    "early-hidden": (
        lambda f: set_layer(f, 1, hidden="embeddings.output"),
        ("is read behind the attention",),
    ),
    "other-value": (
        lambda f: set_layer(f, 0, query="embeddings.output"),
        ("'embeddings.output' is read behind",),
    ),
    "if": (put_an_if_between, ("'choice'", "holds a graph", "cannot be cut")),
}


@pytest.fixture(scope="module")
def broken(
    tmp_path_factory: pytest.TempPathFactory, start_service: Callable[[Settings], RunningService]
) -> Iterator[Caller]:
    folder = tmp_path_factory.mktemp("broken")
    good = export(GOLDENS / "bert", "good", folder)
    for name, (breakage, _) in BREAKAGES.items():
        shutil.copytree(good, folder / name)
        breakage(folder / name)
    # What is wrong is only that it was to be cut.
    without_layers(folder / "if", "if-whole")
    caller = Caller(start_service(Settings(modules=folder, provider="cpu", threads=2)).url)
    yield caller
    caller.must_serve()
    caller.close()


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_manifest_that_does_not_fit_is_refused_by_name(broken: Caller, name: str) -> None:
    told = broken.ask("GET", "/v1/modules").json()["refused"]
    (reason,) = (module["reason"] for module in told if module["name"] == name)
    for words in BREAKAGES[name][1]:
        assert words in reason, reason
    answer = broken.post(TEXT, {"text": "cat", "module": name})
    check_problem(answer, 404, "unknown_module", "module", says=(repr(name), reason))


def test_the_others_serve(broken: Caller) -> None:
    told = broken.ask("GET", "/v1/modules").json()
    assert {module["name"] for module in told["modules"]} == {"good", "if-whole"}
    assert {module["name"] for module in told["refused"]} == set(BREAKAGES)
    found = {name: result(broken, Asked(name)) for name in ("good", "if-whole")}
    assert_same(found["if-whole"], found["good"], 1e-5)
