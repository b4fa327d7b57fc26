"""A call over HTTP in each of the three forms of the wire, as a caller would write them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import orjson

from attention_wire import bodies
from tests.reference import Array

FORMS = ("list", "base64", "safetensors")
DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "int32": np.dtype(np.int32),
}


def post(http: httpx.Client, fields: Mapping[str, Any], form: str) -> dict[str, Any]:
    """Send the fields of an attention call, arrays among them, and read the answer.

    In the form ``list`` the arrays that come back are float64, and one without elements has
    lost its shape.
    """
    if form == "safetensors":
        body = bodies.write(bodies.SAFETENSORS, fields, "request")
        answer = http.post(
            "/v1/attention", content=bytes(body), headers={"Content-Type": body.media_type}
        )
        assert answer.status_code == 200, answer.text
        return bodies.read(bodies.SAFETENSORS, answer.content, "response").values
    encode = as_base64 if form == "base64" else as_list
    plain = {name: encode(v) if isinstance(v, np.ndarray) else v for name, v in fields.items()}
    if form == "base64":
        plain["tensor_format"] = "base64"
    answer = http.post("/v1/attention", content=orjson.dumps(plain))
    assert answer.status_code == 200, answer.text
    return {
        name: value if name == "plan" else _decoded(value)
        for name, value in orjson.loads(answer.content).items()
    }


def as_list(array: Array) -> Any:
    """A nested list where that says it all, else an object with its dtype and shape."""
    name = array.dtype.name
    numbers: Any = array
    if array.dtype.name in DTYPES and name != "int32":
        wide = array.astype(np.float64)
        numbers = wide.astype(object)
        numbers[np.isnan(wide)] = "NaN"
        numbers[wide == np.inf] = "Infinity"
        numbers[wide == -np.inf] = "-Infinity"
    nested = numbers.tolist()
    # A mask of 0s and 1s is refused as a list, since it could mean two things.
    ambiguous = array.dtype.kind == "f" and array.any() and np.isin(array, (0, 1)).all()
    if array.size and name in ("float32", "bool", "int64") and not ambiguous:
        return nested
    return {"dtype": name, "shape": list(array.shape), "data": nested if array.size else []}


def as_base64(array: Array) -> dict[str, Any]:
    """An object that holds the bytes."""
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return np.array(value, np.float64)
    if isinstance(value, dict) and set(value) == {"dtype", "shape", "data"}:
        raw = base64.b64decode(value["data"])
        return np.frombuffer(raw, DTYPES[value["dtype"]]).reshape(value["shape"])
    if isinstance(value, dict):
        return {name: _decoded(item) for name, item in value.items()}
    return value
