"""Bodies of every form of both protocols, spoilt: whatever comes is answered, never with a 5xx.

`ATTENTION_FUZZ=100000` sends as many; `make test` fewer.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from tests.conftest import TEXT_MODULE
from tests.service.served import Served, serving

COUNT = int(os.environ.get("ATTENTION_FUZZ", "1000"))
LENGTH = "Inference-Header-Content-Length"
RNG = np.random.default_rng(0)
# What a call may leave behind: heaps and caches settle, and each body is some hundred bytes.
MOST_GROWTH = 60e6


class Seed(NamedTuple):
    """A good call."""

    path: str
    headers: dict[str, str]
    body: bytes


def _tensors(rank: int) -> dict[str, np.ndarray[Any, Any]]:
    shape = (1, 2, 3, 4)[4 - rank :]
    names = ("query", "key", "value")
    return {name: RNG.standard_normal(shape).astype(np.float32) for name in names}


def _as_base64(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": "float32", "shape": list(array.shape), "data": data}


def _seeds() -> Iterator[Seed]:
    is_json, is_safetensors = "application/json", "application/x-safetensors"
    options: dict[str, Any] = {
        "is_causal": True,
        "softcap": 2.5,
        "attn_mask": [[True, False, True]] * 3,
        "left_window_size": 1,
        "query_document_ids": [[0, 0, 1]],
        "key_document_ids": [[0, 1, 1]],
        "sinks": [0.5, -1],
        "return": {"weights": {"heads": [1], "top_k": 2}, "lse": True, "scores": False},
    }
    lists = {name: array.tolist() for name, array in _tensors(4).items()}
    coded = {name: _as_base64(array) for name, array in _tensors(2).items()}
    json_bodies = {
        "/v1/attention": [lists | options, coded, {**lists, "tensor_format": "base64"}],
        "/v1/modules/example/attention": [{"query": RNG.standard_normal((1, 3, 8)).tolist()}],
        "/v1/text/attention": [
            {"text": ["größer 🙂", "a"], "text_pair": ["b", "c"], "layers": [0], "heads": "all"}
        ],
    }
    for path, bodies in json_bodies.items():
        for body in bodies:
            yield Seed(path, {"Content-Type": is_json}, json.dumps(body).encode())
    for metadata in ({}, {"request": json.dumps({"is_causal": True, "scale": 0.5})}):
        body = save(_tensors(4), metadata=metadata)
        yield Seed("/v1/attention", {"Content-Type": is_safetensors}, body)
    packed = gzip.compress(json.dumps(lists).encode())
    yield Seed("/v1/attention", {"Content-Type": is_json, "Content-Encoding": "gzip"}, packed)
    yield from _inference_seeds()


def _inference_seeds() -> Iterator[Seed]:
    sdpa, text = "/v2/models/sdpa/infer", f"/v2/models/{TEXT_MODULE}/infer"
    chosen = {"outputs": [{"name": "weights", "parameters": {"binary_data": True}}], "id": "1"}
    asked = {"parameters": {"return": '{"lse": true}', "timeout": 10**7, "is_causal": True}}
    for more in ({}, chosen, asked):
        flat, binary, raw = [], [], b""
        for name, array in _tensors(4).items():
            about = {"name": name, "shape": list(array.shape), "datatype": "FP32"}
            flat.append({**about, "data": array.reshape(-1).tolist()})
            binary.append({**about, "parameters": {"binary_data_size": array.nbytes}})
            raw += array.tobytes()
        yield Seed(sdpa, {}, json.dumps({"inputs": flat, **more}).encode())
        head = json.dumps({"inputs": binary, **more}).encode()
        yield Seed(sdpa, {LENGTH: str(len(head))}, head + raw)
        packed = zlib.compress(head + raw)
        yield Seed(sdpa, {LENGTH: str(len(head)), "Content-Encoding": "deflate"}, packed)
    words = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["one", "zwölf"]}
    yield Seed(text, {}, json.dumps({"inputs": [words], "parameters": {"heads": "[1]"}}).encode())
    yield Seed(text, {LENGTH: "0"}, "größer".encode())
    yield Seed("/v2/models/example/infer", {LENGTH: "0"}, np.zeros((2, 8), np.float32).tobytes())
    yield Seed("/v2/repository/index", {}, b'{"ready": true}')


SEEDS = list(_seeds())
# What parsers trip over.
WORDS = [
    *(b"null", b"true", b"-1", b"1e400", b"NaN", b'"Infinity"', b"9999999999999999999", b"0.5"),
    *(b"[" * 70, b"{" * 70, b"[]", b"{}", b'""', b'"\\ud800"', b"\xff\xfe", b"\x00", b"\\u0000"),
    *(b'"query":', b'"shape":[1099511627776,1]', b'"dtype":"float16"', b'"BYTES"', b'"FP16"'),
    *(b'"binary_data_size":-1', b'"binary_data_size":4611686018427387904', b"\xff" * 8),
]

Spoil = Callable[[bytes], bytes]


def _at(body: bytes, where: float) -> int:
    return int(where * len(body))


@st.composite
def spoils(draw: st.DrawFn) -> Spoil:
    """One change of a body, at a place that is a part of its length."""
    begin, end = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    begin, end = min(begin, end), max(begin, end)
    kind = draw(st.sampled_from(["word", "bytes", "cut", "drop", "twice", "flip", "digit"]))
    word = draw(st.sampled_from(WORDS) if kind == "word" else st.binary(min_size=1, max_size=8))
    bit = draw(st.integers(0, 7))

    def spoil(body: bytes) -> bytes:
        low, high = _at(body, begin), _at(body, end)
        high = min(high, low + 40)
        match kind:
            case "word" | "bytes":
                return body[:low] + word + body[low + len(word) * (bit % 2) :]
            case "cut":
                return body[:low]
            case "drop":
                return body[:low] + body[high:]
            case "twice":
                return body[:high] + body[low:]
            case "flip":
                flipped = bytes(byte ^ (1 << bit) for byte in body[low : low + 1])
                return body[:low] + flipped + body[low + 1 :]
            case _:
                return body[:low] + str(bit).encode() + body[low + 1 :]

    return spoil


VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63 - 1, 0.5, -1.5, 1e30, 1e308, "", "a", "all"),
    *("Infinity", "NaN", "mean", "float16", "FP16", "BYTES", "{}", "[0]", [], {}, [0], [[0.5]]),
    *([1, 2, 3], [2**40, 2**40], [-1], [[1, 2], [3]], {"heads": [0]}, {"top_k": 0}, ["a", "b"]),
]
NAMES = ["query", "scale", "return", "shape", "data", "datatype", "parameters", "name", "weights"]


def changed(value: Any, steps: list[float], new: Any, name: str) -> Any:
    """A JSON value with one of its parts replaced, removed or added."""
    if steps and isinstance(value, dict | list) and value:
        where, *rest = steps
        places: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        place = places[min(int(where * len(places)), len(places) - 1)]
        copy = value.copy()
        if rest or where > 0.2:
            copy[place] = changed(value[place], rest, new, name)
        elif where > 0.1:
            del copy[place]
        elif isinstance(copy, dict):
            copy[name] = new
        else:
            copy.insert(place, new)
        return copy
    if isinstance(value, str) and value.startswith("{"):
        return json.dumps(changed(json.loads(value), [0.9], new, name))
    return new


def restructured(seed: Seed, change: Callable[[Any], Any]) -> Seed:
    """A call whose JSON says something else, its lengths right."""
    body, headers = seed.body, dict(seed.headers)
    if "Content-Encoding" in headers or headers.get(LENGTH) == "0":
        return seed
    if LENGTH in headers:
        size = int(headers[LENGTH])
        text = json.dumps(change(json.loads(body[:size]))).encode()
        headers[LENGTH] = str(len(text))
        return Seed(seed.path, headers, text + body[size:])
    if headers.get("Content-Type") == "application/x-safetensors":
        end = 8 + int.from_bytes(body[:8], "little")
        text = json.dumps(change(json.loads(body[8:end]))).encode()
        return Seed(seed.path, headers, len(text).to_bytes(8, "little") + text + body[end:])
    return Seed(seed.path, headers, json.dumps(change(json.loads(body))).encode())


@st.composite
def changes(draw: st.DrawFn) -> Callable[[Any], Any]:
    """One change of what a call's JSON says."""
    steps = draw(st.lists(st.floats(0, 1), max_size=5))
    new, name = draw(st.sampled_from(VALUES)), draw(st.sampled_from(NAMES))
    return lambda value: changed(value, steps, new, name)


@st.composite
def calls(draw: st.DrawFn) -> Seed:
    """A good call with what it says changed or its bytes spoilt, and sometimes a header."""
    seed = draw(st.sampled_from(SEEDS))
    is_structure = draw(st.booleans())
    for change in draw(st.lists(changes(), min_size=1, max_size=3)) if is_structure else ():
        seed = restructured(seed, change)
    body, headers = seed.body, dict(seed.headers)
    for spoil in draw(st.lists(spoils(), max_size=0 if is_structure else 3)):
        body = spoil(body)
    if LENGTH in headers and draw(st.integers(0, 3)) == 0:
        headers[LENGTH] = draw(st.sampled_from(["0", "1", "-1", "x", "10000", "9" * 40, "64"]))
    if draw(st.integers(0, 9)) == 0:
        headers["Content-Encoding"] = draw(st.sampled_from(["gzip", "deflate", "br"]))
    if draw(st.integers(0, 9)) == 0:
        headers["Accept"] = draw(st.sampled_from(["application/x-safetensors", "text/html;q=x"]))
    if draw(st.integers(0, 9)) == 0:
        headers["Accept-Encoding"] = draw(st.sampled_from(["gzip", "deflate", "identity"]))
    return Seed(seed.path, headers, body)


@pytest.fixture(scope="module")
def service(modules: Path) -> Iterator[Served]:
    """In a process of its own, whose memory is nobody else's."""
    environment = {**os.environ, "ATTENTION_THREADS": "2"}
    with serving(environment, modules, "--drain-delay", "0") as served:
        yield served


@pytest.fixture(scope="module")
def http(service: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url(), timeout=60) as client:
        yield client


def resident(service: Served) -> int:
    pages = int(Path(f"/proc/{service.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def ask(http: httpx.Client, call: Seed) -> httpx.Response:
    headers = {"Accept-Encoding": "identity", **call.headers}
    return http.post(call.path, content=call.body, headers=headers)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.path)
def test_the_seeds_are_good(http: httpx.Client, seed: Seed) -> None:
    assert ask(http, seed).status_code == 200, ask(http, seed).text


@pytest.mark.timeout(60 + COUNT // 20)
def test_whatever_comes_is_answered(service: Served, http: httpx.Client) -> None:
    seen: dict[int, int] = {}
    sizes: list[int] = []

    @settings(
        max_examples=COUNT,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(calls())
    def fuzz(call: Seed) -> None:
        answer = ask(http, call)
        seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
        # Of the 5xx only this one, for a call that gave itself no time.
        late = (504,) if b"timeout" in call.body else ()
        assert answer.status_code in (200, 400, 404, 413, 415, 422, *late), (call, answer.text)
        if answer.status_code != httpx.codes.OK:
            name = "error" if call.path.startswith("/v2") else "detail"
            assert answer.json()[name]
        if sum(seen.values()) % 100 == 0:
            sizes.append(resident(service))

    fuzz()
    for seed in SEEDS:
        assert ask(http, seed).status_code == httpx.codes.OK
    print(f"{sum(seen.values())} calls: {dict(sorted(seen.items()))}")
    # By the first third all there is to warm up has been met: graphs and heaps.
    early, late = np.median(sizes[: len(sizes) // 3]), np.median(sizes[-len(sizes) // 3 :])
    print(f"resident: {early / 1e6:.0f} MB, then {late / 1e6:.0f} MB")
    assert min(seen.get(200, 0), seen.get(400, 0), seen.get(422, 0)) > COUNT / 50
    assert late - early < MOST_GROWTH
