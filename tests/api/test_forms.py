"""Small calls of a known form are answered as the others are, whatever they hold."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
from starlette.requests import Request

from attention_service.api.forms import Forms
from attention_service.api.layouts import Layout, ListedNumbers
from attention_service.api.operations import Answered, FieldsOperation
from attention_service.api.request_body import RequestBody
from attention_service.attention.compiled import Compiled
from attention_service.attention.engine import Engine
from attention_service.attention.sdpa import AttentionJob
from attention_service.attention.values import Doubtful
from attention_wire import bodies
from attention_wire.schemas import AttentionRequest
from tests.reference import attention

Array = np.ndarray[Any, Any]
CHANGING = ("date", "server-timing", "x-request-id")
RNG = np.random.default_rng(11)


def tensors(shape: tuple[int, ...] = (1, 2, 5, 4), keys: int = 6, dtype: Any = np.float32) -> Any:
    rest = (*shape[:-2], keys, shape[-1])
    sizes = {"query": shape, "key": rest, "value": (*rest[:-1], 3)}
    return {name: RNG.standard_normal(size).astype(dtype) for name, size in sizes.items()}


def ask(
    http: httpx.Client, fields: dict[str, Any], media_type: str = bodies.SAFETENSORS, **headers: str
) -> httpx.Response:
    body = bodies.write(media_type, fields, "request")
    types = {"Content-Type": body.media_type, **headers}
    return http.post("/v1/attention", content=bytes(body), headers=types)


def answer(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    media_type = response.headers["content-type"]
    return bodies.read(media_type, response.content, "response").values


OPTIONS: list[dict[str, Any]] = [
    {},
    {"scale": 0.7},
    {"return": {"weights": False}},
    {"return": {"lse": True, "entropy": True}},
    {"return": {"weights": False, "lse": True}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=json.dumps)
@pytest.mark.parametrize("shape", [(1, 2, 5, 4), (3, 1, 2, 8), (5, 4)], ids=str)
@pytest.mark.parametrize("media_type", [bodies.SAFETENSORS, bodies.JSON])
def test_every_call_of_a_form_has_its_own_answer(
    http: httpx.Client, media_type: str, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    first: dict[str, str] | None = None
    for _ in range(3):
        given = tensors(shape)
        response = ask(http, {**given, **options}, media_type)
        found = answer(response)
        rank_4 = [
            np.reshape(array, (1,) * (4 - array.ndim) + array.shape) for array in given.values()
        ]
        expected = attention(*rank_4, scale=options.get("scale"))
        wants = {"output": True, "weights": True, **options.get("return", {})}
        assert {name for name in found if name != "provider"} == {n for n, w in wants.items() if w}
        for name in ("output", "weights", "lse", "entropy"):
            if wants.get(name):
                right = getattr(expected, name)
                array = np.array(found[name], np.float32)
                assert array.ndim == len(shape) - (name in ("lse", "entropy"))
                np.testing.assert_allclose(array, right.reshape(array.shape), rtol=2e-5, atol=2e-6)
                assert media_type == bodies.JSON or found[name].dtype == np.float32
        kept = {
            k: v
            for k, v in response.headers.items()
            if k not in CHANGING and (media_type != bodies.JSON or k != "content-length")
        }
        first = first or kept
        assert kept == first
        phases = [part.split(";")[0] for part in response.headers["server-timing"].split(", ")]
        assert phases == ["parse", "queue", "compute", "serialize"]


def test_grouped_heads(http: httpx.Client) -> None:
    for _ in range(2):
        given = tensors((2, 4, 3, 4)) | {
            name: tensors((2, 2, 6, 4))[name] for name in ("key", "value")
        }
        expected = attention(given["query"], given["key"], given["value"])
        found = answer(ask(http, given))
        np.testing.assert_allclose(found["output"], expected.output, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(found["weights"], expected.weights, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("field", ["query", "key", "value"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_named_as_ever(
    http: httpx.Client, field: str, wrong: float
) -> None:
    good = tensors((1, 1, 3, 5))
    answer(ask(http, good))
    bad = {**good, field: good[field].copy()}
    bad[field][0, 0, 1, 2] = wrong
    response = ask(http, bad)
    assert response.status_code == 422
    assert response.json()["code"] == "non_finite"
    assert response.json()["errors"][0]["loc"] == [field]
    answer(ask(http, good))


def test_large_numbers_are_computed_in_float64_as_ever(http: httpx.Client) -> None:
    shape = {name: array.shape for name, array in tensors((1, 1, 2, 7)).items()}
    for size in (1.0, 1e20, 1e30, 1.0):
        given = {name: np.full(of, size, np.float32) for name, of in shape.items()}
        given["key"][0, 0, 0, 0] = -size
        expected = attention(given["query"], given["key"], given["value"])
        found = answer(ask(http, given))
        np.testing.assert_allclose(found["output"], expected.output, rtol=1e-5)
        np.testing.assert_allclose(found["weights"], expected.weights, atol=1e-6)


def test_bytes_that_do_not_fit_the_header(http: httpx.Client) -> None:
    whole = bytes(bodies.write(bodies.SAFETENSORS, tensors((1, 1, 2, 9)), "request"))
    headers = {"Content-Type": bodies.SAFETENSORS}
    for body in (whole, whole[:-1], whole + b"x", whole[:40], whole[:4], whole):
        response = http.post("/v1/attention", content=body, headers=headers)
        assert response.status_code == (200 if body == whole else 400)


def test_an_answer_in_another_form_is_still_given(http: httpx.Client) -> None:
    given = tensors((1, 1, 2, 6))
    answer(ask(http, given))
    as_json = ask(http, given, Accept=bodies.JSON)
    expected = attention(given["query"], given["key"], given["value"])
    np.testing.assert_allclose(as_json.json()["output"], expected.output, rtol=2e-5, atol=2e-6)


# --- Lists, whose numbers have no fixed place --------------------------------------------------

GOOD = {
    "query": [[[[1.0, 2.0], [3.0, 4.0]]]],
    "key": [[[[0.5, -1.0], [1.0, 1.0]]]],
    "value": [[[[7.0], [7]]]],
}
TEXT = json.dumps(GOOD)


def assert_sevens(response: httpx.Response) -> None:
    np.testing.assert_allclose(response.json()["output"], [[[[7.0], [7.0]]]], rtol=1e-6)


def post_text(http: httpx.Client, text: str) -> httpx.Response:
    return http.post("/v1/attention", content=text, headers={"Content-Type": bodies.JSON})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[3.0, 4.0]", "[3.0, ]"),
        ("[3.0, 4.0]", "[, 4.0]"),
        ("[3.0, 4.0]", "[3.0 4, .0]"),
        ("[3.0, 4.0]", "[03.0, 4.0]"),
        ("[3.0, 4.0]", "[+3.0, 4.0]"),
        ("[3.0, 4.0]", "[3., 4.0]"),
        ("[3.0, 4.0]", "[3.0, .4]"),
        ("[3.0, 4.0]", "[3.0, -]"),
        ("[3.0, 4.0]", "[3.0, e]"),
        ("[3.0, 4.0]", "[3.0], 4.0]"),
        ("[3.0, 4.0]", "[3.0, 4.0]1"),
        ("[7.0]", "[]"),
        ("[7.0]", "7.0[]"),
        ("[7.0]", "[]7.0"),
        ('"key"', '"kEy"'),
        ('"key"', '"ky"'),
        ('"value"', '"query"'),
        ("]]]]}", "]]]]}1"),
        ("]]]]}", "]]]]1}"),
        (": [[[[7", ": 1[[[[7"),
        ("7.0", "1e39"),
        ("7.0", "-1e400"),
        ("7.0", "NaN"),
        ("7.0", '"NaN"'),
    ],
)
def test_a_text_that_only_looks_like_a_known_one(http: httpx.Client, old: str, new: str) -> None:
    text = TEXT.replace(old, new, 1)
    assert text != TEXT
    # A service that has not seen the good one says the same of the bad one.
    first = post_text(http, text)
    assert first.status_code in (400, 422)
    for _ in range(2):
        assert_sevens(post_text(http, TEXT))
    again = post_text(http, text)
    told = again.json()
    assert told.pop("request_id")
    assert {**told, "request_id": first.json()["request_id"]} == first.json()
    assert again.status_code == first.status_code


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("7.0", "7E0"),
        ("7", "36893488147419103232"),
        ("7.0", "-0"),
        (", ", ","),
        (", ", "\r\n\t, "),
        ("[[[[7.0], [7]]]]", '{"dtype": "float32", "shape": [1, 1, 2, 1], "data": "AADgQAAA4EA="}'),
        ('"value"', '"val\\u0075e"'),
    ],
)
def test_numbers_as_one_may_write_them(http: httpx.Client, old: str, new: str) -> None:
    text = TEXT.replace(old, new)
    given = json.loads(text)
    if isinstance(given["value"], dict):
        given["value"] = [[[[7.0], [7.0]]]]
    expected = attention(*map(np.array, given.values())).output
    for _ in range(3):
        assert_sevens(post_text(http, TEXT))
        np.testing.assert_allclose(post_text(http, text).json()["output"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        [{"scale": 0.5}, {"scale": 1.5}],
        [{"return": {"lse": True}}, {"return": {"entropy": True}}],
        [{"tensor_format": "base64"}, {"tensor_format": "list"}],
        [{"return": {"weights": {"queries": [0, 1]}}}, {"return": {"weights": {"queries": [1]}}}],
    ],
    ids=json.dumps,
)
def test_options_are_told_apart(http: httpx.Client, options: list[dict[str, Any]]) -> None:
    alone = [post_text(http, json.dumps(GOOD | each)).json() for each in options]
    assert all(one != other for one, other in pairwise(alone))
    for _ in range(2):
        for each, first in zip(options, alone, strict=True):
            assert post_text(http, json.dumps(GOOD | each)).json() == first
            # Names may come in any order.
            turned = json.dumps(dict(reversed((GOOD | each).items())))
            assert post_text(http, turned).json() == first


def test_options_are_told_apart_behind_escapes(http: httpx.Client) -> None:
    answers = []
    for scale in (0.5, 1.5, 0.5):
        text = json.dumps(GOOD | {"scale": scale}).replace('"value"', '"val\\u0075e"')
        answers.append(post_text(http, text).json())
    assert answers[0] == answers[2] != answers[1]


@pytest.mark.parametrize("media_type", [bodies.SAFETENSORS, bodies.JSON])
@pytest.mark.parametrize(("rows", "keeps"), [(6, True), (64, False)])
def test_a_call_of_a_known_form_is_answered_by_it(
    engine: Engine, media_type: str, rows: int, *, keeps: bool
) -> None:
    operation = FieldsOperation(
        "/v1/attention",
        AttentionRequest,
        lambda asked, _: AttentionJob.of(asked, engine),
        Forms(engine),
    )
    request = Request({"type": "http", "headers": [], "path_params": {}})
    if media_type == bodies.SAFETENSORS:
        request = Request({**request.scope, "headers": [(b"content-type", media_type.encode())]})
    first, second = (
        RequestBody(media_type, written(tensors((1, 2, rows, 4), rows), media_type))
        for _ in range(2)
    )
    key = operation.form_key(request, first)
    assert key == operation.form_key(request, second)
    forms = operation.forms
    assert forms is not None
    assert forms.find(key) is None
    prepared = operation.prepare(request, first)
    answer = prepared.job.run()
    answered = Answered(prepared, answer, prepared.write(answer))
    forms.learn(key, prepared.job, lambda: operation.layout(request, first, answered))
    form = forms.find(key)
    assert form is not None
    assert form.compiled.keeps == keeps
    of_second = operation.prepare(request, second)
    by_form = [form.answer(body.content) for body in (first, second)]
    # Also of the first: the second has not written over it.
    whole = [answered.written, of_second.write(of_second.job.run())]
    for found, expected in zip(by_form, whole, strict=True):
        assert found.media_type == expected.media_type
        assert_close(found, expected)
    with pytest.raises(Doubtful):
        form.answer(written(tensors((1, 2, rows, 5), rows), media_type))


def assert_close(found: bodies.Body, expected: bodies.Body) -> None:
    values, right = (
        bodies.read(body.media_type, bytes(body), "response").values for body in (found, expected)
    )
    assert values.keys() == right.keys()
    for name in ("output", "weights"):
        np.testing.assert_allclose(values[name], right[name], rtol=2e-5, atol=2e-6)


def written(fields: dict[str, Any], media_type: str = bodies.JSON) -> bytes:
    return bytes(bodies.write(media_type, fields, "request"))


# --- What is compiled, and what is not --------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("cpu", 2)


def takes(engine: Engine, fields: dict[str, Any]) -> bool:
    job = AttentionJob.of(AttentionRequest.model_validate(fields), engine)
    return Compiled.takes(job)


@pytest.mark.parametrize(
    ("fields", "is_compiled"),
    [
        (tensors(), True),
        ({**tensors(), "scale": 0.0}, True),
        ({**tensors(), "is_causal": True}, False),
        ({**tensors(), "softcap": 1.0}, False),
        ({**tensors(), "attn_mask": np.ones((5, 6), bool)}, False),
        ({**tensors(), "sinks": np.ones(2, np.float32)}, False),
        ({**tensors(), "return": {"plan": True}}, False),
        ({**tensors(), "return": {"output": False}}, False),
        ({**tensors(), "return": {"scores": "raw"}}, False),
        ({**tensors(), "return": {"weights": {"heads": [1]}}}, False),
        ({**tensors(), "return": {"weights": {"top_k": 2}}}, False),
        (tensors(dtype=np.float64), False),
        (tensors(dtype=np.float16), False),
        (tensors(dtype=ml_dtypes.bfloat16), False),
        (tensors((1, 8, 128, 64), 128), True),
        (tensors((1, 8, 512, 64), 512), False),  # it takes a while
        (tensors((1, 2, 0, 4)), False),
        (tensors(keys=0), False),
    ],
)
def test_which_calls_are_compiled(
    engine: Engine, fields: dict[str, Any], is_compiled: bool
) -> None:
    assert takes(engine, fields) == is_compiled


def test_forms_are_forgotten_in_the_end(engine: Engine) -> None:
    forms = Forms(engine)
    keys = [str(rows).encode() for rows in range(1, 300)]
    for rows, key in enumerate(keys, 1):
        given = tensors((1, 1, rows, 2), keys=2)
        job = AttentionJob.of(AttentionRequest.model_validate(given), engine)
        numbers = ListedNumbers.of({name: array.shape for name, array in given.items()})
        layout = Layout(numbers, lambda _: bodies.Body(bodies.JSON, []))
        forms.learn(key, job, lambda known=layout: known)
    assert [forms.find(key) is not None for key in keys] == [False] * 43 + [True] * 256


def test_of_a_call_that_can_have_no_form_nothing_more_is_read(engine: Engine) -> None:
    forms = Forms(engine)
    given = {**tensors(), "is_causal": True}
    job = AttentionJob.of(AttentionRequest.model_validate(given), engine)
    forms.learn(b"key", job, lambda: pytest.fail("read again"))
    assert forms.find(b"key") is None
