"""The page's tensor tab in a real browser: what it shows is what the formula gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.reference import attention
from tests.system.page.harness import Array, table, visit

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

RTOL = 2e-5


@pytest.fixture
def given() -> dict[str, Array]:
    rng = np.random.default_rng(5)
    shapes = {"query": (2, 2, 3, 4), "key": (2, 1, 5, 4), "value": (2, 1, 5, 2)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def read_out(seen: dict[str, Any]) -> Array:
    """The matrix as its read-out tells it, cell by cell."""
    rows, columns = (1 + max(cell[axis] for cell in seen["cells"]) for axis in (0, 1))
    matrix = np.full((rows, columns), np.nan)
    for row, column, text in seen["cells"]:
        names, number = text.split(": ")
        assert names == f"query {row} → key {column}"
        matrix[row, column] = float(number)
    return matrix


def column(seen: dict[str, Any], name: str) -> Array:
    header, *rows = seen["table"]
    at = header.index(name)
    return np.array([float(row[at]) for row in rows])


def check(seen: dict[str, Any], expected: Any, batch: int = 0, head: int = 0) -> None:
    """Weights, output, lse and entropy of a head."""
    np.testing.assert_allclose(read_out(seen), expected.weights[batch, head], rtol=RTOL, atol=1e-7)
    for name in ("lse", "entropy"):
        np.testing.assert_allclose(
            column(seen, name), getattr(expected, name)[batch, head], rtol=RTOL
        )
    for at, numbers in enumerate(expected.output[batch, head].T):
        np.testing.assert_allclose(column(seen, f"output {at}"), numbers, rtol=RTOL, atol=1e-6)


def test_a_worked_example_is_there_at_once(url: str, tmp_path: Path) -> None:
    told = visit("tensors.example", url, tmp_path)
    fields = {name: np.array(tensor) for name, tensor in json.loads(told["input"]).items()}
    mask = fields.pop("attn_mask")
    query, key, value = (one[None, None].astype(float) for one in fields.values())
    expected = attention(query, key, value, attn_mask=mask)
    assert told["status"] == "Computed."
    assert "query [3, 3]" in told["shapes"]
    assert "weights [3, 4]" in told["shapes"]
    check(told, expected)

    names, *rows = table(tmp_path / "tensor-export-csv.csv")
    assert names == ["", "key 0", "key 1", "key 2", "key 3"]
    assert [row[0] for row in rows] == ["query 0", "query 1", "query 2"]
    np.testing.assert_allclose(
        np.array([row[1:] for row in rows], float), expected.weights[0, 0], rtol=RTOL
    )
    answer = json.loads((tmp_path / "tensor-export-json.json").read_text())
    assert answer["weights"]["shape"] == [3, 4]
    np.testing.assert_allclose(
        answer["weights"]["data"], expected.weights.ravel(), rtol=RTOL, atol=1e-7
    )
    tensors = load_file(tmp_path / "tensor-export-safetensors.safetensors")
    np.testing.assert_allclose(tensors["output"], expected.output[0, 0], rtol=RTOL)


def test_a_dropped_safetensors_file_is_computed_head_by_head(
    url: str, tmp_path: Path, given: dict[str, Array]
) -> None:
    save_file(given, tmp_path / "qkv.safetensors")
    dropped = [str(tmp_path / "qkv.safetensors")]
    told = visit("tensors.files", url, tmp_path, dropped=dropped, chosen=[], fields={}, softcap=1.5)
    assert told["read"] == "Read qkv.safetensors."
    assert len(told["seen"]) == 4
    expected = attention(*(one.astype(float) for one in given.values()), softcap=1.5)
    for seen in told["seen"]:
        check(seen, expected, seen["batch"], seen["head"])


def test_npy_files_are_taken_by_name_or_asked_about(
    url: str, tmp_path: Path, given: dict[str, Array]
) -> None:
    mask = np.tri(3, 5, 1, dtype=bool)
    np.save(tmp_path / "layer_q.npy", given["query"].astype(np.float16))
    np.save(tmp_path / "KEY.npy", np.asfortranarray(given["key"]))
    np.save(tmp_path / "third.npy", given["value"])
    np.save(tmp_path / "mask.npy", mask)
    paths = [str(tmp_path / name) for name in ("layer_q.npy", "KEY.npy", "third.npy", "mask.npy")]
    told = visit(
        "tensors.files",
        url,
        tmp_path,
        dropped=paths[:1],
        chosen=paths[1:],
        fields={"third.npy": "value"},
    )
    assert told["before"] == "Say which field third.npy is, or remove it."
    query = given["query"].astype(np.float16).astype(float)
    expected = attention(
        query, given["key"].astype(float), given["value"].astype(float), attn_mask=mask
    )
    assert len(told["seen"]) == 4
    for seen in told["seen"]:
        check(seen, expected, seen["batch"], seen["head"])


def test_heads_side_by_side_in_a_json_file_are_shown_apart(
    url: str, tmp_path: Path, given: dict[str, Array]
) -> None:
    merged = {
        name: one.swapaxes(1, 2).reshape(one.shape[0], one.shape[2], -1).tolist()
        for name, one in given.items()
    }
    path = tmp_path / "rank3.json"
    path.write_text(json.dumps({**merged, "q_num_heads": 2, "kv_num_heads": 1}))
    options: dict[str, Any] = {"dropped": [str(path)], "chosen": [], "fields": {}}
    told = visit("tensors.files", url, tmp_path, **options)
    assert told["brought"] == [""]
    assert len(told["seen"]) == 4
    expected = attention(*(one.astype(float) for one in given.values()))
    for seen in told["seen"]:
        assert "output [2, 3, 4]" in seen["shapes"]
        check(seen, expected, seen["batch"], seen["head"])


def test_a_pasted_requests_options_stand_in_the_form_and_can_be_changed(
    url: str, tmp_path: Path, given: dict[str, Array]
) -> None:
    request: dict[str, Any] = {name: tensor.tolist() for name, tensor in given.items()}
    request |= {"is_causal": True, "scale": 0.25, "softcap": 2.0}
    request["return"] = {"lse": False, "scores": "raw", "weights": {"heads": [1], "top_k": 2}}
    told = visit(
        "tensors.pasted",
        url,
        tmp_path,
        request=json.dumps(request),
        is_causal=False,
        top_k="",
        lse=True,
        left_window_size=1,
    )
    assert told["checked"] == {
        "is_causal": True,
        "output": True,
        "weights": True,
        "lse": False,
        "entropy": True,
    }
    assert told["values"] == {
        "scale": "0.25",
        "softcap": "2",
        "left_window_size": "",
        "top_k": "2",
        "scores": "raw",
    }
    tensors = (one.astype(float) for one in given.values())
    expected = attention(*tensors, scale=0.25, softcap=2.0, left_window_size=1)
    assert "scores [2, 1, 3, 5]" in told["shapes"]
    # One head was asked for, and it is the second.
    check(told, expected, 0, 1)


def test_scores_and_the_largest_weights_are_shown_too(
    url: str, tmp_path: Path, given: dict[str, Array]
) -> None:
    request = json.dumps({name: tensor.tolist() for name, tensor in given.items()})
    tensors = [one.astype(float) for one in given.values()]
    expected = attention(*tensors)
    told = visit("tensors.pasted", url, tmp_path, request=request, scores="raw", kind=1)
    np.testing.assert_allclose(read_out(told), expected.scores["raw"][0, 0], rtol=1e-4, atol=1e-6)

    told = visit("tensors.pasted", url, tmp_path, request=request, top_k=2)
    weights = expected.weights[0, 0]
    largest = np.where(weights >= np.sort(weights)[:, -2:-1], weights, 0)
    np.testing.assert_allclose(read_out(told), largest, rtol=RTOL, atol=1e-7)
    np.testing.assert_allclose(column(told, "other keys"), 1 - largest.sum(-1), rtol=1e-4)


def test_what_is_wrong_is_told_in_words(url: str, tmp_path: Path) -> None:
    requests = {
        "{": "The request is no JSON: ",
        "[1]": "The request is no JSON object",
        '{"query": [[1, 0]], "key": [[1, 0]]}': "There is no value yet: paste or drop it.",
        '{"query": [[1, 0], [1]], "key": [[1, 0]], "value": [[1]]}': "query",
        '{"query": [[1, 0]], "key": [[1, 0]], "value": [[1]], "sclae": 1}': "sclae",
        '{"query": [[1, 0]], "key": [[1, 0, 2]], "value": [[1]]}': "key",
    }
    (tmp_path / "notes.txt").write_text("1, 2")
    (tmp_path / "query.npy").write_bytes(b"no such file at all")
    files = [str(tmp_path / "notes.txt"), str(tmp_path / "query.npy")]
    # The console has a line for each answer of 4xx.
    given: dict[str, Any] = {"requests": list(requests), "files": files}
    told = visit("tensors.refused", url, tmp_path, **given, height=500, errors=3)
    assert max(told["bottoms"]) <= 500  # what is said is brought into sight
    for said, expected in zip(told["requests"], requests.values(), strict=True):
        assert expected in said
    assert told["files"][0] == "notes.txt is none of .json, .npy and .safetensors."
    assert told["files"][1].startswith("query.npy: This is no .npy file")
