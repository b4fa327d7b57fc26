"""The Open Inference Protocol over plain HTTP, against values computed for the test.

What its own clients make of it is tested with them, in tests/system.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest

from attention_service.modules.text import TextModule
from tests.api.support import Caller
from tests.conftest import TEXT_MODULE
from tests.reference import attention

SDPA = "/v2/models/sdpa/infer"
TEXT = f"/v2/models/{TEXT_MODULE}/infer"
LENGTH = "Inference-Header-Content-Length"
DTYPES: dict[str, Any] = {
    "BOOL": np.dtype("?"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
}
RNG = np.random.default_rng(5)
Array = np.ndarray[Any, Any]


def tensors(shape: tuple[int, ...] = (1, 2, 4, 8), datatype: str = "FP32") -> dict[str, Array]:
    names = ("query", "key", "value")
    return {name: RNG.standard_normal(shape).astype(DTYPES[datatype]) for name in names}


def datatype_of(array: Array) -> str:
    return next(name for name, dtype in DTYPES.items() if dtype == array.dtype)


def in_json(given: Mapping[str, Array]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": datatype_of(array),
            "data": array.reshape(-1).tolist(),
        }
        for name, array in given.items()
    ]


def in_binary(given: Mapping[str, Array], **fields: Any) -> tuple[bytes, dict[str, str]]:
    """A body, and the header that tells how much of it is JSON."""
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": datatype_of(array),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in given.items()
    ]
    text = json.dumps({"inputs": inputs, **fields}).encode()
    raw = b"".join(array.tobytes() for array in given.values())
    return text + raw, {LENGTH: str(len(text))}


def ask(caller: Caller, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with httpx.Client(base_url=caller.url, timeout=30) as http:
        http.headers.pop("Accept-Encoding")
        return http.post(path, content=content, headers=headers)


def outputs(answer: httpx.Response) -> dict[str, Any]:
    """Name → array of an answer in either form, or both."""
    assert answer.status_code == 200, answer.text
    size = int(answer.headers.get(LENGTH, len(answer.content)))
    told, end = json.loads(answer.content[:size]), size
    found: dict[str, Any] = {}
    for entry in told["outputs"]:
        if "data" in entry:
            dtype = object if entry["datatype"] == "BYTES" else DTYPES[entry["datatype"]]
            flat = np.array(entry["data"], dtype)
        else:
            begin, end = end, end + entry["parameters"]["binary_data_size"]
            raw = answer.content[begin:end]
            is_text = entry["datatype"] == "BYTES"
            flat = np.array(texts(raw), object) if is_text else np.frombuffer(
                raw, DTYPES[entry["datatype"]]
            )  # fmt: skip
        found[entry["name"]] = flat.reshape(entry["shape"])
    assert end == len(answer.content)
    return found


def texts(raw: bytes) -> list[str]:
    found = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        found.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return found


def near(found: Array, expected: Array, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=1e-4, atol=atol)


# --- What is served ---------------------------------------------------------------------------


def test_the_server_and_its_health(caller: Caller) -> None:
    server = caller.ask("GET", "/v2").json()
    assert server["name"] == "attention-service"
    assert "binary_tensor_data" in server["extensions"]
    assert caller.ask("GET", "/v2/health/live").json() == {"live": True}
    assert caller.ask("GET", "/v2/health/ready").json() == {"ready": True}


def test_every_module_is_a_model(caller: Caller) -> None:
    index = caller.post("/v2/repository/index", b"").json()
    names = [model["name"] for model in index if model["state"] == "READY"]
    modules = [module["name"] for module in caller.ask("GET", "/v1/modules").json()["modules"]]
    assert names == ["sdpa", *modules]
    for name in names:
        for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/1"):
            assert caller.ask("GET", f"{path}/ready").status_code == 200
            metadata = caller.ask("GET", path).json()
            assert metadata["name"] == name
            assert metadata["versions"] == ["1"]
            config = caller.ask("GET", f"{path}/config").json()
            assert [item["name"] for item in config["input"]] == [
                item["name"] for item in metadata["inputs"]
            ]
            assert caller.ask("GET", f"{path}/stats").json()["model_stats"][0]["name"] == name
    everything = caller.ask("GET", "/v2/models/stats").json()["model_stats"]
    assert [model["name"] for model in everything] == names


def test_statistics_count_calls_of_both_protocols(caller: Caller) -> None:
    def seen() -> dict[str, Any]:
        (model,) = caller.ask("GET", "/v2/models/sdpa/stats").json()["model_stats"]
        return model

    before = seen()
    outputs(ask(caller, SDPA, {"inputs": in_json(tensors())}))
    caller.must_serve()
    after = seen()
    assert after["inference_count"] == before["inference_count"] + 2
    for phase in ("success", "compute_infer"):
        old, new = before["inference_stats"][phase], after["inference_stats"][phase]
        assert new["count"] == old["count"] + 2
        assert new["ns"] > old["ns"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/models/sdpa/load"),
        ("POST", "/v2/repository/models/sdpa/unload"),
        ("GET", "/v2/trace/setting"),
        ("POST", "/v2/models/sdpa/trace/setting"),
        ("GET", "/v2/logging"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/a/register"),
        ("POST", "/v2/cudasharedmemory/unregister"),
        ("GET", "/v2/models/nobody"),
        ("GET", "/v2/models/nobody/ready"),
        ("GET", "/v2/models/sdpa/versions/2"),
        ("GET", "/v2/models/sdpa/versions/2/config"),
        ("GET", "/v2/nothing"),
    ],
)
def test_what_is_not_there_is_refused_in_the_protocols_form(
    caller: Caller, method: str, path: str
) -> None:
    answer = caller.ask(method, path)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/json"
    assert set(answer.json()) == {"error"}
    assert len(answer.json()["error"]) > 10


# --- infer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
def test_binary_of_every_float(caller: Caller, datatype: str) -> None:
    given = tensors(datatype=datatype)
    atol = {"FP16": 1e-2, "BF16": 2e-2, "FP32": 1e-5, "FP64": 1e-12}[datatype]
    expected = attention(*(array.astype(np.float64) for array in given.values()))
    body, headers = in_binary(given, parameters={"binary_data_output": True})
    for _ in range(3):  # the second call may be of a known form
        found = outputs(ask(caller, SDPA, body, **headers))
        assert list(found) == ["output", "weights"]
        assert found["output"].dtype == DTYPES[datatype]
        near(found["output"], expected.output, atol)
        near(found["weights"], expected.weights, atol)


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_json_flat_and_nested(caller: Caller, datatype: str, *, is_nested: bool) -> None:
    given = tensors(datatype=datatype)
    inputs = in_json(given)
    if is_nested:
        for entry, array in zip(inputs, given.values(), strict=True):
            entry["data"] = array.tolist()
    expected = attention(*given.values())
    answer = ask(caller, SDPA, {"inputs": inputs})
    found = outputs(answer)
    assert answer.headers["Content-Type"] == "application/json"
    assert found["weights"].dtype == DTYPES[datatype]
    near(found["output"], expected.output)
    near(found["weights"], expected.weights)


def test_null_is_left_out(caller: Caller) -> None:
    given = tensors()
    inputs = [{**entry, "parameters": None} for entry in in_json(given)]
    body = {"id": None, "parameters": None, "outputs": None, "inputs": inputs}
    near(outputs(ask(caller, SDPA, body))["weights"], attention(*given.values()).weights)


def test_each_output_has_its_own_form(caller: Caller) -> None:
    given = tensors()
    body, headers = in_binary(
        given,
        id="7",
        parameters={"is_causal": True, "binary_data_output": True, "return": '{"entropy": true}'},
        outputs=[
            {"name": "entropy", "parameters": {"binary_data": False}},
            {"name": "lse"},
            {"name": "weights", "parameters": {"binary_data": True}},
        ],
    )
    answer = ask(caller, SDPA, body, **headers)
    told = json.loads(answer.content[: int(answer.headers[LENGTH])])
    assert (told["id"], told["model_name"], told["model_version"]) == ("7", "sdpa", "1")
    forms = {entry["name"]: "data" in entry for entry in told["outputs"]}
    assert forms == {"weights": False, "lse": False, "entropy": True}
    expected = attention(*given.values(), is_causal=True)
    found = outputs(answer)
    near(found["weights"], expected.weights)
    near(found["lse"], expected.lse)
    near(found["entropy"], expected.entropy)


def test_a_mask_documents_and_top_k(caller: Caller) -> None:
    given: dict[str, Array] = {
        **tensors(),
        "attn_mask": np.tril(np.ones((4, 4), bool)),
        "query_document_ids": np.array([[0, 0, 1, 1]], np.int32),
        "key_document_ids": np.array([[0, 0, 1, 1]], np.int64),
    }
    chosen = '{"weights": {"top_k": 2}}'
    body, headers = in_binary(given, parameters={"return": chosen})
    found = outputs(ask(caller, SDPA, body, **headers))
    assert list(found) == ["output", "weights.indices", "weights.values", "weights.rest"]
    mask = given["attn_mask"] & (np.repeat([0, 1], 2)[:, None] == np.repeat([0, 1], 2))
    expected = attention(*list(given.values())[:3], attn_mask=mask)
    near(found["output"], expected.output)
    near(found["weights.values"], -np.sort(-expected.weights)[..., :2])


def test_a_learned_module(caller: Caller) -> None:
    query = {"query": RNG.standard_normal((2, 3, 8)).astype(np.float32)}
    body, headers = in_binary(query)
    found = outputs(ask(caller, "/v2/models/example/infer", body, **headers))
    same = caller.post("/v1/modules/example/attention", {"query": query["query"].tolist()}).json()
    near(found["output"], np.array(same["output"]))
    near(found["weights"], np.array(same["weights"]))


@pytest.mark.parametrize("form", ["json", "binary", "raw"])
def test_texts(caller: Caller, form: str) -> None:
    words = ["the cat sat"] if form == "raw" else ["the cat sat", "a", "größer 🙂"]
    entry: dict[str, Any] = {"name": "text", "shape": [len(words)], "datatype": "BYTES"}
    parameters = {"layers": "[0, 5]", "heads": "[3]", "binary_data_output": form == "binary"}
    if form == "raw":
        answer = ask(caller, TEXT, words[0].encode(), **{LENGTH: "0"})
        parameters = {"layers": "all", "heads": "all"}
    elif form == "binary":
        raw = b"".join(len(w.encode()).to_bytes(4, "little") + w.encode() for w in words)
        entry["parameters"] = {"binary_data_size": len(raw)}
        text = json.dumps({"inputs": [entry], "parameters": parameters}).encode()
        answer = ask(caller, TEXT, text + raw, **{LENGTH: str(len(text))})
    else:
        body = {"inputs": [{**entry, "data": words}], "parameters": parameters}
        answer = ask(caller, TEXT, body)
    found = outputs(answer)
    asked = {
        name: value if value == "all" else json.loads(value)
        for name, value in parameters.items()
        if isinstance(value, str)
    }
    results = caller.post("/v1/text/attention", {"text": words, **asked}).json()["results"]
    assert found["lengths"].tolist() == [len(result["tokens"]) for result in results]
    longest = max(found["lengths"])
    for row, result in enumerate(results):
        size = len(result["tokens"])
        assert found["tokens"][row].tolist() == result["tokens"] + [""] * (longest - size)
        assert found["token_ids"][row, :size].tolist() == result["token_ids"]
        assert found["offsets"][row, :size].tolist() == result["offsets"]
        without = [-1 if word is None else word for word in result["word_ids"]]
        assert found["word_ids"][row, :size].tolist() == without
        near(found["output"][row, :size], np.array(result["output"]), 1e-4)
        near(found["weights"][row, ..., :size, :size], np.array(result["weights"]), 1e-4)
        assert not found["weights"][row, ..., size:].any()
        assert not found["output"][row, size:].any()


def test_tokens_alone_run_no_model(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise RuntimeError("the model was run")

    monkeypatch.setattr(TextModule, "run", run)
    entry = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["hello"]}
    found = outputs(ask(caller, TEXT, {"inputs": [entry], "outputs": [{"name": "tokens"}]}))
    assert list(found) == ["tokens"]
    assert found["tokens"].tolist() == [["[CLS]", "hello", "[SEP]"]]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_both_ways(caller: Caller, coding: str) -> None:
    given = tensors()
    body, headers = in_binary(given, parameters={"binary_data_output": True})
    packed = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    with httpx.Client(base_url=caller.url) as http:
        headers |= {"Content-Encoding": coding, "Accept-Encoding": coding}
        answer = http.post(SDPA, content=packed, headers=headers)
    assert answer.headers["Content-Encoding"] == coding
    near(outputs(answer)["weights"], attention(*given.values()).weights)


def test_a_client_that_takes_any_coding_gets_none(caller: Caller) -> None:
    body, headers = in_binary(tensors())
    headers["Accept-Encoding"] = "gzip, deflate"
    answer = ask(caller, SDPA, body, **headers)
    assert answer.status_code == 200, answer.text
    assert "Content-Encoding" not in answer.headers


def test_a_timeout_in_microseconds(caller: Caller) -> None:
    given = tensors((1, 8, 2048, 64))
    body, headers = in_binary(given, parameters={"timeout": 1, "binary_data_output": True})
    answer = ask(caller, SDPA, body, **headers)
    assert answer.status_code == 504
    assert set(answer.json()) == {"error"}
    body, headers = in_binary(tensors(), parameters={"timeout": 0})
    assert ask(caller, SDPA, body, **headers).status_code == 200


# --- What is wrong ----------------------------------------------------------------------------

GOOD = in_json(tensors((2, 4)))
QUERY = GOOD[0]


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in QUERY.items() if key != name}


@pytest.mark.parametrize(
    ("inputs", "status", "says"),
    [
        ([], 422, "query: is missing"),
        ("none", 422, "inputs: must be a list"),
        ([7], 422, "inputs.0: must be an object"),
        ([{**QUERY, "datatype": "FP8"}], 422, "known are BOOL, FP16"),
        ([{**QUERY, "datatype": "UINT8"}], 422, "'UINT8' is not taken"),
        ([{**QUERY, "datatype": None}], 422, "datatype None"),
        ([{**QUERY, "datatype": "BF16"}], 422, "send it in binary"),
        ([{**QUERY, "shape": [2, 5]}], 400, "8 elements"),
        ([{**QUERY, "shape": [-1, 4]}], 422, "0 or more"),
        ([{**QUERY, "shape": [2**40, 2**40]}], 422, "too large"),
        ([{**QUERY, "shape": "2x4"}], 422, "list of integers"),
        ([{**QUERY, "data": "AAAA"}], 422, "flat or nested"),
        ([{**QUERY, "data": [1, [2], 3, 4, 5, 6, 7, 8]}], 422, "ragged"),
        ([{**QUERY, "data": [None] * 8}], 422, "cannot hold null"),
        ([without("data")], 422, "give data, or the parameter binary_data_size"),
        ([without("name")], 422, "the input's name"),
        ([without("shape")], 422, "shape must be a list"),
        ([{**QUERY, "parameters": {"shared_memory_region": "a"}}], 422, "shared_memory_region"),
        ([{**QUERY, "parameters": {"binary_data_size": 8}}], 422, "not both"),
        ([QUERY, QUERY], 400, "given twice"),
        ([{**QUERY, "name": "queries"}], 422, "sdpa takes no such input"),
        ([{**QUERY, "name": "return"}], 422, "takes no such input"),
        ([{**QUERY, "more": 1}], 422, "unknown field"),
        ([{**QUERY, "datatype": "BYTES"}], 422, "must be strings"),
    ],
    ids=str,
)
def test_inputs_that_are_none(caller: Caller, inputs: Any, status: int, says: str) -> None:
    answer = ask(caller, SDPA, {"inputs": inputs})
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert says in answer.json()["error"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"outputs": [{"name": "nothing"}]}, "sdpa has no such output; it has output"),
        ({"outputs": [{"name": "weights.values"}]}, "outputs.weights.values"),
        ({"outputs": [{"name": "lse"}, {"name": "lse"}]}, "asked for twice"),
        ({"outputs": [{"name": "lse", "parameters": {"classification": 3}}]}, "classification"),
        ({"outputs": {"name": "lse"}}, "outputs: must be a list"),
        ({"outputs": [{"name": "scores"}]}, "scores"),
        (
            {"outputs": [{"name": "lse"}], "parameters": {"return": '{"lse": false}'}},
            "parameters.return.lse",
        ),
        ({"parameters": []}, "parameters: must be an object"),
        ({"parameters": {"nothing": 1}}, "unknown field"),
        ({"parameters": {"query": [[1]]}}, "tensors are inputs"),
        ({"parameters": {"is_causal": "yes"}}, "is_causal"),
        ({"parameters": {"return": {"lse": True}}}, "string that holds JSON"),
        ({"parameters": {"return": "{"}}, "no valid JSON"),
        ({"parameters": {"return": "[]"}}, "return"),
        ({"parameters": {"timeout": -1}}, "microseconds"),
        ({"parameters": {"timeout": True}}, "microseconds"),
        ({"parameters": {"binary_data_output": 1}}, "true or false"),
        ({"id": 7}, "id: must be a string"),
        ({"model_name": "other"}, "the path says 'sdpa'"),
        ({"more": 7}, "more: unknown field"),
    ],
    ids=str,
)
def test_fields_that_are_none(caller: Caller, fields: dict[str, Any], says: str) -> None:
    answer = ask(caller, SDPA, {"inputs": GOOD, **fields})
    is_read = says not in ("asked for twice", "no valid JSON")
    assert answer.status_code == (422 if is_read else 400), answer.text
    assert set(answer.json()) == {"error"}
    assert says in answer.json()["error"]


def sized(*sizes: Any) -> list[dict[str, Any]]:
    return [
        {**without("data"), "name": name, "parameters": {"binary_data_size": size}}
        for name, size in zip(("query", "key", "value"), sizes, strict=True)
    ]


@pytest.mark.parametrize(
    ("inputs", "raw", "length", "status", "says"),
    [
        (sized(32, 32, 32), bytes(96), None, 200, ""),
        (sized(32, 32, 32), bytes(95), None, 400, "only 31 bytes are left"),
        (sized(32, 32, 32), bytes(97), None, 400, "1 bytes follow the last input"),
        (sized(32, 32, 2**62), bytes(96), None, 400, "bytes are left"),
        (sized(32, 32, -1), bytes(96), None, 400, "must be a number of bytes"),
        (sized(32, 32, "32"), bytes(96), None, 400, "must be a number of bytes"),
        (sized(32, 28, 36), bytes(96), None, 400, "takes 32"),
        (sized(32, 32, 32), bytes(96), "100000", 400, "but the body has"),
        (sized(32, 32, 32), bytes(96), "10", 400, "not valid JSON"),
        (sized(32, 32, 32), bytes(96), "-1", 400, "no number of bytes"),
        (sized(32, 32, 32), bytes(96), "1e3", 400, "no number of bytes"),
        (sized(32, 32, 32), bytes(96), "9" * 30, 400, "no number of bytes"),
        (sized(32, 32, 32), bytes(96), "0", 400, "sdpa needs query, key, value"),
    ],
    ids=lambda value: len(value) if isinstance(value, bytes) else str(value)[-60:],
)
def test_lengths_that_lie(
    caller: Caller, inputs: Any, raw: bytes, length: str | None, status: int, says: str
) -> None:
    text = json.dumps({"inputs": inputs}).encode()
    answer = ask(caller, SDPA, text + raw, **{LENGTH: length or str(len(text))})
    assert answer.status_code == status, answer.text
    if status != 200:
        assert says in answer.json()["error"]


@pytest.mark.parametrize(
    ("raw", "shape"),
    [
        (b"\x05\0\0\0hell", [1]),
        (b"\x01\0\0", [1]),
        (b"\x01\0\0\0\xff", [1]),
        (b"\x01\0\0\0a", [2]),
        (b"", [1]),
    ],
)
def test_strings_that_are_none(caller: Caller, raw: bytes, shape: Sequence[int]) -> None:
    entry = {"name": "text", "shape": shape, "datatype": "BYTES"}
    entry["parameters"] = {"binary_data_size": len(raw)}
    text = json.dumps({"inputs": [entry]}).encode()
    answer = ask(caller, TEXT, text + raw, **{LENGTH: str(len(text))})
    assert answer.status_code == 400
    assert "inputs.0.text" in answer.json()["error"]


def test_no_text_at_all(caller: Caller) -> None:
    entry = {"name": "text", "shape": [0], "datatype": "BYTES", "data": []}
    answer = ask(caller, TEXT, {"inputs": [entry]})
    assert (answer.status_code, "holds no text" in answer.text) == (422, True)


def test_a_bomb_is_not_unpacked(small: Caller) -> None:
    bomb = gzip.compress(bytes(50 * 2**20))
    answer = ask(small, SDPA, bomb, **{"Content-Encoding": "gzip"})
    assert answer.status_code == 413
    assert set(answer.json()) == {"error"}


def test_an_answer_that_is_too_large(small: Caller) -> None:
    body, headers = in_binary(tensors((1, 1, 256, 2)))
    answer = ask(small, SDPA, body, **headers)
    assert answer.status_code == 413
    assert "return" in answer.json()["error"]


def test_numbers_that_are_none(caller: Caller) -> None:
    given = tensors()
    body, headers = in_binary(given)
    outputs(ask(caller, SDPA, body, **headers))
    given["query"][0, 0, 0, 0] = math.nan
    body, headers = in_binary(given)
    answer = ask(caller, SDPA, body, **headers)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("query: holds NaN")
