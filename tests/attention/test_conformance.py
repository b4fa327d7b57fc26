"""Random calls over HTTP, in every wire form, against float64 numpy."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attention_wire import bodies
from tests import reference
from tests.reference import Array

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
TOLERANCE = {"float16": 1e-2, "bfloat16": 1e-2, "float32": 1e-5, "float64": 1e-12}


@dataclass(frozen=True)
class Case:
    """One call, in rank 4; `rank` says how it is sent."""

    query: Array
    key: Array
    value: Array
    attn_mask: Array | None
    is_causal: bool
    scale: float | None
    rank: int
    dtype: str
    form: str

    def fields(self) -> dict[str, Any]:
        tensors = {"query": self.query, "key": self.key, "value": self.value}
        fields: dict[str, Any] = {
            name: self._in_rank(tensor.astype(DTYPES[self.dtype]))
            for name, tensor in tensors.items()
        }
        if self.rank == 3:
            fields["q_num_heads"] = self.query.shape[1]
            fields["kv_num_heads"] = self.key.shape[1]
        if self.attn_mask is not None:
            fields["attn_mask"] = self.attn_mask
        if self.is_causal:
            fields["is_causal"] = True
        if self.scale is not None:
            fields["scale"] = self.scale
        return fields

    def _in_rank(self, tensor: Array) -> Array:
        if self.rank == 2:
            return tensor[0, 0]
        if self.rank == 3:
            batch, heads, length, size = tensor.shape
            return tensor.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)
        return tensor

    def expected(self) -> reference.Expected:
        dtype = DTYPES[self.dtype]
        return reference.attention(
            self.query.astype(dtype),
            self.key.astype(dtype),
            self.value.astype(dtype),
            attn_mask=self.attn_mask,
            is_causal=self.is_causal,
            scale=self.scale,
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rank = draw(st.sampled_from([2, 3, 4]))
    form = draw(st.sampled_from(["list", "base64", "safetensors"]))
    dtype = "float32" if form == "list" else draw(st.sampled_from(sorted(DTYPES)))
    batch = 1 if rank == 2 else draw(st.integers(1, 3))
    kv_heads = 1 if rank == 2 else draw(st.integers(1, 3))
    q_heads = kv_heads * (1 if rank == 2 else draw(st.integers(1, 3)))
    q_length, kv_length = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    head_size, v_head_size = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.1, 1.0, 3.0]))
    mask = draw(masks(rng, (batch, q_heads, q_length, kv_length)))
    return Case(
        query=spread * rng.standard_normal((batch, q_heads, q_length, head_size)),
        key=spread * rng.standard_normal((batch, kv_heads, kv_length, head_size)),
        value=rng.standard_normal((batch, kv_heads, kv_length, v_head_size)),
        attn_mask=mask,
        is_causal=draw(st.booleans()),
        scale=draw(st.sampled_from([None, None, 0.0, 0.5, 1.0, -0.25])),
        rank=rank,
        dtype=dtype,
        form=form,
    )


@st.composite
def masks(draw: st.DrawFn, rng: np.random.Generator, full: tuple[int, ...]) -> Array | None:
    kind = draw(st.sampled_from(["none", "bool", "float", "float with -inf"]))
    if kind == "none":
        return None
    rank = draw(st.integers(1, 4))
    shape = [1 if draw(st.booleans()) else size for size in full[-rank:-1]]
    shape.append(draw(st.integers(1, full[-1])))
    if kind == "bool":
        return rng.random(shape) < draw(st.sampled_from([0.2, 0.8, 1.0]))
    mask = rng.standard_normal(shape).astype(np.float32)
    if kind == "float with -inf":
        mask[rng.random(shape) < 0.4] = -np.inf
    return mask


@pytest.fixture(scope="module")
def http(service_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service_url, timeout=60) as client:
        yield client


def send(http: httpx.Client, case: Case) -> dict[str, Any]:
    fields = case.fields()
    if case.form == "safetensors":
        body = bodies.write(bodies.SAFETENSORS, fields, "request")
        answer = http.post(
            "/v1/attention", content=bytes(body), headers={"Content-Type": body.media_type}
        )
        assert answer.status_code == 200, answer.text
        return bodies.read(bodies.SAFETENSORS, answer.content, "response").values
    encode = as_base64 if case.form == "base64" else as_list
    plain = {name: encode(v) if isinstance(v, np.ndarray) else v for name, v in fields.items()}
    if case.form == "base64":
        plain["tensor_format"] = "base64"
    answer = http.post("/v1/attention", content=orjson.dumps(plain))
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = orjson.loads(answer.content)
    decode = from_base64 if case.form == "base64" else np.array
    return result | {name: decode(result[name]) for name in ("output", "weights")}


def as_list(array: Array) -> Any:
    """As a caller without a library would write it, −∞ as a string."""
    if array.ndim:
        return [as_list(part) for part in array]
    return "-Infinity" if array == -np.inf else array.item()


def as_base64(array: Array) -> dict[str, Any]:
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def from_base64(encoded: dict[str, Any]) -> Array:
    dtype = DTYPES[encoded["dtype"]]
    return np.frombuffer(base64.b64decode(encoded["data"]), dtype).reshape(encoded["shape"])


def ambiguous(case: Case) -> bool:
    """A number list of 0s and 1s with a 1 among them is refused as a mask."""
    mask = case.attn_mask
    if case.form != "list" or mask is None or mask.dtype == bool:
        return False
    return bool(np.isin(mask, (0, 1)).all() and mask.any())


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=cases())
def test_random_calls_match_float64_numpy(http: httpx.Client, case: Case) -> None:
    if ambiguous(case):
        return
    answer = send(http, case)
    expected = case.expected()
    output, weights = expected.output, expected.weights
    if case.rank == 3:
        batch, heads, length, size = output.shape
        output = output.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)
    elif case.rank == 2:
        output, weights = output[0, 0], weights[0, 0]
    tolerance = TOLERANCE[case.dtype] * max(1.0, expected.largest_score)
    reference.assert_close(answer["output"], output, tolerance)
    reference.assert_close(answer["weights"], weights, tolerance)
    if case.form != "list":
        assert answer["output"].dtype == answer["weights"].dtype == DTYPES[case.dtype]
    rows = answer["weights"].astype(np.float64).sum(axis=-1)
    np.testing.assert_allclose(rows, weights.sum(axis=-1).round(), atol=4 * TOLERANCE[case.dtype])
