"""Trained modules over HTTP against what PyTorch and transformers gave (see goldens/)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file

from attention_wire import bodies

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXT = json.loads((GOLDENS / "text.json").read_text())
CASES: dict[str, dict[str, Any]] = {case["id"]: case for case in TEXT["cases"]}
CALLS: list[dict[str, Any]] = json.loads((GOLDENS / "multi_head.json").read_text())
MODULES = {
    "bias": "mha",
    "nobias": "mha-nobias",
    "kdim": "mha-kdim",
    "kdim_nobias": "mha-kdim-nobias",
}


@pytest.fixture(scope="module")
def http(service_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def text_arrays() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDENS / "text.npz"))


@pytest.fixture(scope="module")
def multi_head_arrays() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDENS / "multi_head.npz"))


def post(http: httpx.Client, path: str, fields: dict[str, Any]) -> dict[str, Any]:
    body = bodies.write(bodies.SAFETENSORS, fields, "request")
    answer = http.post(path, content=bytes(body), headers={"Content-Type": body.media_type})
    assert answer.status_code == 200, answer.text
    return bodies.read(bodies.SAFETENSORS, answer.content, "response").values


def check_text(result: dict[str, Any], case: dict[str, Any], arrays: dict[str, Any]) -> None:
    assert result["tokens"] == case["tokens"]
    assert result["token_ids"] == case["token_ids"]
    assert result["offsets"] == case["offsets"]
    rows = slice(None) if case["rows"] is None else case["rows"]
    output, weights = result["output"], result["weights"]
    length = len(case["tokens"])
    assert output.shape == (length, 384)
    assert weights.shape == (6, 12, length, length)
    np.testing.assert_allclose(output[rows], arrays[f"{case['id']}.output"], atol=1e-4)
    np.testing.assert_allclose(weights[:, :, rows], arrays[f"{case['id']}.weights"], atol=1e-4)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """But for the rounding of kernels, which differ by what is asked and what runs together."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def texts(cases: list[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name in ("text", "text_pair") if cases[0][name] is not None]
    return {name: [case[name] for case in cases] for name in names}


@pytest.mark.parametrize("name", CASES)
def test_a_text_matches_transformers(
    http: httpx.Client, text_arrays: dict[str, np.ndarray], name: str
) -> None:
    case = CASES[name]
    fields = {name: values[0] for name, values in texts([case]).items()}
    answer = post(http, "/v1/text/attention", fields)
    assert answer["module"] == "all-MiniLM-L6-v2"
    check_text(answer["results"][0], case, text_arrays)


@pytest.mark.parametrize("batch", TEXT["batches"], ids="+".join)
def test_a_ragged_batch_gives_each_text_what_it_gives_alone(
    http: httpx.Client, text_arrays: dict[str, np.ndarray], batch: list[str]
) -> None:
    for is_pair in (False, True):  # a call holds texts or pairs, not both
        cases = [c for name in batch if ((c := CASES[name])["text_pair"] is not None) == is_pair]
        if not cases:
            continue
        fields = texts(cases)
        answer = post(http, "/v1/text/attention", fields)
        for case, result in zip(cases, answer["results"], strict=True):
            check_text(result, case, text_arrays)
            alone = post(http, "/v1/text/attention", texts([case]))["results"][0]
            # A short text takes one run of all layers if nothing runs with it, and its output is
            # wanted: that rounds elsewhere. By the same way it gives the same bits.
            assert_close(result["weights"], alone["weights"])
            assert_close(result["output"], alone["output"])
            asked = {**texts([case]), "return": {"output": False}}
            layered = post(http, "/v1/text/attention", asked)["results"][0]
            assert any(np.array_equal(result["weights"], w["weights"]) for w in (alone, layered))


def test_layers_and_heads_come_in_the_order_asked(http: httpx.Client) -> None:
    text = CASES["animal"]["text"]
    asked = {"text": text, "return": {"output": False}}
    whole = post(http, "/v1/text/attention", asked)["results"][0]
    part = post(
        http,
        "/v1/text/attention",
        {**asked, "layers": [4, 1], "heads": [11, 0, 5]},
    )["results"][0]
    assert "output" not in part
    np.testing.assert_array_equal(part["weights"], whole["weights"][[4, 1]][:, [11, 0, 5]])


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call["id"])
def test_a_multi_head_module_matches_pytorch(
    http: httpx.Client, multi_head_arrays: dict[str, np.ndarray], call: dict[str, Any]
) -> None:
    arrays = {name: multi_head_arrays[f"{call['id']}.{name}"] for name in call["arrays"]}
    expected = {name: arrays.pop(name) for name in ("output", "weights")}
    fields = {**arrays, "is_causal": call["is_causal"]}
    answer = post(http, f"/v1/modules/{MODULES[call['variant']]}/attention", fields)
    for name in ("output", "weights"):
        np.testing.assert_allclose(answer[name], expected[name], atol=1e-5)
    assert answer["module"] == MODULES[call["variant"]]


def test_a_row_that_a_module_masks_wholly_is_zero_before_the_output_projection(
    http: httpx.Client, multi_head_arrays: dict[str, np.ndarray]
) -> None:
    query = multi_head_arrays["bias_self.query"]
    mask = np.ones((query.shape[1], query.shape[1]), bool)
    mask[1] = False
    answer = post(http, "/v1/modules/mha/attention", {"query": query, "attn_mask": mask})
    assert not answer["weights"][:, :, 1].any()
    bias = load_file(GOLDENS / "multi_head_bias.safetensors")["out_proj.bias"]
    np.testing.assert_allclose(answer["output"][0, 1], bias, rtol=0, atol=1e-7)
