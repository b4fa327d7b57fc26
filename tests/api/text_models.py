"""What the tests of text analyses share: models to serve, and calls of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from attention_service.modules.exporters import export
from attention_service.modules.manifest import MANIFEST_FILE, MODEL_FILE, Manifest
from attention_wire import bodies
from tests.api.support import TEXT, Caller
from tests.conftest import TEXT_MODULE
from tests.modules.families import GOLDENS

Array = npt.NDArray[Any]
TINY = ("bert", "llama", "mistral", "modernbert")
SENTENCE = "The animal did not cross the street because it was too tired."
REPLY = "It was the street that was too wide."


class Asked(NamedTuple):
    """A text, or a pair of them, and the module that is asked."""

    module: str
    text: str = SENTENCE
    text_pair: str | None = None

    @property
    def fields(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if value is not None}


# A trained encoder, a pair, grouped heads, and windows with and without what comes later.
ASKED = {
    TEXT_MODULE: Asked(TEXT_MODULE, text_pair=REPLY),
    "bert": Asked("bert", text_pair=REPLY),
    "llama": Asked("llama"),
    "mistral": Asked("mistral"),
    "modernbert": Asked("modernbert", text_pair=REPLY),
}
every_model = pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)


def make_models(folder: Path, modules: Path) -> Path:
    """A module folder with all that `ASKED` names."""
    (folder / TEXT_MODULE).symlink_to((modules / TEXT_MODULE).resolve())
    for name in TINY:
        export(GOLDENS / name, name, folder)
    return folder


def manifest_of(folder: Path) -> Manifest:
    return Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())


def without_layers(made: Path, name: str) -> Path:
    """A copy of a module whose manifest does not say where its layers are."""
    copy = made.with_name(name)
    shutil.copytree(made, copy)
    fields = json.loads((copy / MANIFEST_FILE).read_text())
    del fields["layers"]
    (copy / MANIFEST_FILE).write_text(json.dumps(fields))
    return copy


def without_heads(made: Path, name: str, heads: Sequence[tuple[int, int]]) -> Path:
    """A copy of a module in whose graph nothing is carried on from some heads of some layers."""
    copy = made.with_name(name)
    shutil.copytree(made, copy)
    fields = json.loads((copy / MANIFEST_FILE).read_text())
    model = onnx.load(copy / MODEL_FILE)
    for layer, head in heads:
        (constant,) = (
            item
            for item in model.graph.initializer
            if item.name == fields["layers"][layer]["projection"]
        )
        matrix = numpy_helper.to_array(constant).copy()
        size = matrix.shape[0] // fields["num_heads"]
        matrix[head * size : (head + 1) * size] = 0
        constant.CopyFrom(numpy_helper.from_array(matrix, constant.name))
    onnx.save(model, copy / MODEL_FILE)
    checksum = hashlib.sha256((copy / MODEL_FILE).read_bytes()).hexdigest()
    fields["files"][MODEL_FILE] = checksum
    (copy / MANIFEST_FILE).write_text(json.dumps(fields))
    return copy


def post(caller: Caller, fields: dict[str, Any]) -> httpx.Response:
    body = bodies.write(bodies.SAFETENSORS, fields, "request")
    return caller.post(TEXT, bytes(body), Content_Type=body.media_type)


def results(caller: Caller, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of a call in safetensors, with arrays for tensors."""
    answer = post(caller, fields)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = bodies.read(
        bodies.SAFETENSORS, answer.content, "response"
    ).values["results"]
    return found


def result(caller: Caller, asked: Asked, /, **fields: Any) -> dict[str, Any]:
    """The result of the one text; `return_` stands for the field."""
    named = {name.rstrip("_"): value for name, value in fields.items()}
    (found,) = results(caller, {**asked.fields, **named})
    return found


def whole_weights(caller: Caller, asked: Asked) -> Array:
    """All weights of a text, as a call that asks for nothing else gives them, in float64."""
    weights: Array = result(caller, asked)["weights"]
    assert weights.dtype == np.float32
    return weights.astype(np.float64)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Members of objects and lists by dotted names, so that two results can be compared."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = list(enumerate(value))
    else:
        return {path: value}
    return {name: leaf for key, part in items for name, leaf in flat(part, f"{path}.{key}").items()}


def assert_same(found: Any, expected: Any, atol: float) -> None:
    """That two results hold the same members, and close numbers in them."""
    left, right = flat(found), flat(expected)
    assert sorted(left) == sorted(right)
    for name, value in right.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            np.testing.assert_allclose(left[name], value, rtol=0, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(left[name], value, err_msg=name)
