"""Clients of KServe and Triton, unmodified, call the service under `/v2`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from tests.conftest import TEXT_MODULE
from tests.reference import attention
from tests.system.harness import REPOSITORY, run

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

CLIENTS = REPOSITORY / "tests" / "system" / "inference_clients"
PYTHON = REPOSITORY / "build" / "inference-clients" / "bin" / "python"
ATOL = {"FP16": 1e-2, "BF16": 2e-2, "FP32": 1e-5, "FP64": 1e-12}
TEXTS = ["the cat sat", "größer 🙂", "a"]
Array = np.ndarray[Any, Any]


class Seen(NamedTuple):
    """What a client printed, and the arrays that it got."""

    told: dict[str, Any]
    arrays: dict[str, Array]


@pytest.fixture(scope="module")
def given() -> dict[str, Array]:
    rng = np.random.default_rng(3)
    # In float32 no number changes on its way.
    shapes = {"query": (1, 2, 5, 4), "key": (1, 2, 6, 4), "value": (1, 2, 6, 3)}
    return {
        **{n: rng.standard_normal(s).astype(np.float32).astype(float) for n, s in shapes.items()},
        "attn_mask": rng.random((5, 6)) < 0.8,
        "texts": np.array(TEXTS),
    }


def call(script: str, url: str, given: dict[str, Array], folder: Path) -> Seen:
    np.savez(folder / "inputs.npz", **given)
    words = [PYTHON, CLIENTS / script, url, folder / "inputs.npz", folder / "outputs.npz"]
    told = json.loads(run(words, timeout=240))
    return Seen(told, dict(np.load(folder / "outputs.npz")))


def near(found: Array, expected: Array, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=1e-4, atol=atol)


def check_texts(found: dict[str, Array], url: str, *, is_whole: bool = True, **asked: Any) -> None:
    fields = {"text": TEXTS, "module": TEXT_MODULE, **asked}
    results = httpx.post(f"{url}/v1/text/attention", json=fields, timeout=60).json()["results"]
    for row, result in enumerate(results):
        size = len(result["tokens"])
        assert found["tokens"][row, :size].tolist() == result["tokens"]
        assert found["token_ids"][row, :size].tolist() == result["token_ids"]
        if is_whole:
            near(found["weights"][row, ..., :size, :size], np.array(result["weights"]), 1e-4)
            near(found["output"][row, :size], np.array(result["output"]), 1e-4)


@pytest.fixture(scope="module")
def triton(url: str, given: dict[str, Array], tmp_path_factory: pytest.TempPathFactory) -> Seen:
    square = {**given, "documents": np.array([[0, 0, 1, 1, 1]])}
    for name in ("key", "value"):
        square[name] = given[name][:, :, :5]
    square["attn_mask"] = given["attn_mask"][:, :5]
    return call("triton.py", url, square, tmp_path_factory.mktemp("triton"))


def test_triton_learns_what_is_served(triton: Seen) -> None:
    sync, aio = triton.told["sync"], triton.told["aio"]
    assert sync["live"]
    assert sync["ready"]
    assert sync["model ready"]
    assert not sync["nobody ready"]
    assert aio["ready"]
    assert sync["server"]["name"] == "attention-service"
    assert "binary_tensor_data" in sync["server"]["extensions"]
    assert sync["metadata"] == aio["metadata"]
    assert [tensor["name"] for tensor in sync["metadata"]["inputs"]] == ["text", "text_pair"]
    optional = {one["name"] for one in sync["config"]["input"] if one.get("optional")}
    assert "attn_mask" in optional
    assert "query" not in optional
    assert sync["index"] == aio["index"]
    assert {"name": "sdpa", "version": "1", "state": "READY"} in sync["index"]
    (statistics,) = sync["statistics"]["model_stats"]
    assert statistics["inference_count"] >= 9


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_triton_gets_the_right_numbers(
    triton: Seen, url: str, given: dict[str, Array], kind: str
) -> None:
    def of(name: str) -> dict[str, Array]:
        prefix = f"{kind}/{name}/"
        found = {n.removeprefix(prefix): a for n, a in triton.arrays.items() if prefix in n}
        assert found, f"no {prefix} in {sorted(triton.arrays)}"
        return found

    query, (key, value) = given["query"], (given[name][:, :, :5] for name in ("key", "value"))
    plain = attention(query, key, value)
    for name in [*(f"{d}, binary" for d in ATOL), "FP32, JSON", "FP64, JSON", "gzip", "deflate"]:
        atol = ATOL.get(name.split(",")[0], 1e-5)
        found = of(name)
        near(found["output"], plain.output, atol)
        near(found["weights"], plain.weights, atol)
    if kind == "sync":  # begun, and waited for later
        near(of("begun")["output"], plain.output)
        near(of("begun")["weights"], plain.weights)
    documents = np.array([0, 0, 1, 1, 1])
    mask = given["attn_mask"][:, :5] & (documents[:, None] == documents)
    masked = attention(query, key, value, attn_mask=mask, scale=0.5)
    assert set(of("masked")) == {"weights", "lse"}
    near(of("masked")["weights"], masked.weights)
    near(of("masked")["lse"], masked.lse)
    assert triton.told["sync"]["id"] == "seven"
    check_texts(of("text"), url, layers=[5], heads=[0, 7])
    assert set(of("text, JSON")) == {"tokens", "token_ids"}
    check_texts(of("text, JSON"), url, is_whole=False)


def test_tritons_errors_hold_our_text(triton: Seen) -> None:
    says = {
        "no such model": ["404", "There is no module 'nobody'"],
        "a tensor is missing": ["422", "value: is missing"],
        "no such output": ["422", "sdpa has no such output; it has output, weights"],
        "shapes that do not fit": ["422", "value"],
    }
    for seen in triton.told.values():
        for name, (status, text) in says.items():
            assert seen[name][0] == status
            assert text in seen[name][1]
    for name in ("load", "trace", "log", "shared memory", "no model"):
        assert triton.told["sync"][name][0] == "404"
        assert len(triton.told["sync"][name][1]) > 20


def test_kserves_client(url: str, given: dict[str, Array], tmp_path: Path) -> None:
    seen, arrays = call("kserve_rest.py", url, given, tmp_path)
    assert seen["live"]
    assert seen["ready"]
    assert seen["model ready"]
    assert not seen["nobody ready"]
    assert "value: is missing" in seen["a tensor is missing"]
    assert "422" in seen["a tensor is missing"]
    tensors = [given[name] for name in ("query", "key", "value")]
    plain, causal = attention(*tensors), attention(*tensors, is_causal=True)
    for form in ("binary", "JSON"):
        near(arrays[f"{form}/output"], plain.output)
        near(arrays[f"{form}/weights"], plain.weights)
        near(arrays[f"{form}, causal/lse"], causal.lse)
        prefix = f"{form}, text/"
        check_texts({n.removeprefix(prefix): a for n, a in arrays.items() if prefix in n}, url)
    near(arrays["FP16/weights"], plain.weights, ATOL["FP16"])
