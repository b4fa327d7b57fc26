"""What is asked of texts over the Open Inference Protocol, against the answers of /v1."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.api.support import Caller
from tests.conftest import TEXT_MODULE

PATH = f"/v2/models/{TEXT_MODULE}/infer"
TEXTS = ["The cat sat on the mat.", "It slept."]
PAIRS = ["Why?", "Was it tired of all that?"]


def ask(caller: Caller, parameters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    inputs = [
        {"name": name, "shape": [2], "datatype": "BYTES", "data": data}
        for name, data in (("text", TEXTS), ("text_pair", PAIRS))
    ]
    answer = caller.post(PATH, {"inputs": inputs, "parameters": parameters, **fields})
    assert answer.status_code == 200, answer.text
    return {
        entry["name"]: np.array(entry["data"]).reshape(entry["shape"])
        for entry in answer.json()["outputs"]
    }


def of_v1(caller: Caller, **fields: Any) -> list[dict[str, Any]]:
    asked = {"text": TEXTS, "text_pair": PAIRS, **fields}
    results: list[dict[str, Any]] = caller.post("/v1/text/attention", asked).json()["results"]
    return results


def member(result: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        result = result[part]
    return np.array(result)


def test_analyses_are_tensors_that_are_filled_up(caller: Caller) -> None:
    asked = {
        "weights": {"top_k": 4, "reduce": "mean"},
        "entropy": True,
        "statistics": True,
        "classes": True,
        "rollout": True,
        "flow": True,
        "blocks": True,
    }
    parameters = {"return": json.dumps(asked), "layers": "[3, 1]", "ablate": "[[0, 2]]"}
    found = ask(caller, parameters)
    expected = of_v1(caller, layers=[3, 1], ablate=[[0, 2]], **{"return": asked})
    names = ["weights.indices", "weights.values", "weights.rest", "entropy", "rollout", "flow"]
    names += ["statistics.distance", "classes.induction", "blocks", "change", "output"]
    assert set(names) <= set(found)
    for name in names:
        for row, result in enumerate(expected):
            part = member(result, name)
            own = found[name][row]
            inside = tuple(slice(size) for size in part.shape)
            np.testing.assert_allclose(own[inside], part, rtol=0, atol=1e-6, err_msg=name)
            rest = own.copy()
            rest[inside] = 0
            assert not rest.any(), f"{name}: zeros stand where a text is shorter"


def test_what_outputs_name_is_computed_alone(caller: Caller) -> None:
    found = ask(caller, {}, outputs=[{"name": "entropy"}, {"name": "lengths"}])
    assert set(found) == {"entropy", "lengths"}
    for row, result in enumerate(of_v1(caller, **{"return": {"entropy": True}})):
        own = found["entropy"][row, :, :, : len(result["tokens"])]
        np.testing.assert_allclose(own, result["entropy"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"unit": "word"}, "parameters.unit"),
        ({"return": json.dumps({"inputs": True})}, "parameters.return.inputs"),
    ],
)
def test_what_is_no_tensor_is_refused(
    caller: Caller, parameters: dict[str, Any], field: str
) -> None:
    inputs = [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["hello"]}]
    answer = caller.post(PATH, {"inputs": inputs, "parameters": parameters})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"].startswith(f"{field}: is answered by POST /v1/text/attention")
