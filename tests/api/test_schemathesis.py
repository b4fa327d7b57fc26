"""The whole OpenAPI document, played against a running service.

schemathesis makes requests of the document, good ones and broken ones, and holds every answer
against it: no 5xx, and no status, type, header or body that the document does not announce.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from schemathesis.config import SchemathesisConfig

from attention_service.api.app import create_app
from attention_service.settings import Settings
from tests.api.support import ATTENTION, JSON, SAFETENSORS, TEXT

CONFIG = {
    "generation": {"deterministic": True, "max-examples": 30, "database": "none"},
    # Whether tensors fit each other is nothing that a JSON schema could say.
    "checks": {"positive_data_acceptance": {"enabled": False}},
}
schema = schemathesis.openapi.from_dict(
    create_app(Settings(provider="cpu")).openapi(), config=SchemathesisConfig.from_dict(CONFIG)
)


@st.composite
def safetensors_bodies(draw: st.DrawFn) -> bytes:
    """Bodies of tensors that may fit, with fields beside them, and at times a broken byte."""
    names = st.sampled_from(["query", "key", "value", "attn_mask", "past_key", "sinks", "text"])
    dtype = draw(st.sampled_from(["f4", "f2", "f8", "i8", "?"]))
    shape = draw(st.lists(st.integers(0, 8), max_size=4))
    chosen = draw(st.sets(names) | st.just({"query", "key", "value"}))
    fields = draw(
        st.just({})
        | st.just({"text": "a cat"})
        | st.dictionaries(st.sampled_from(["scale", "text", "return", "x"]), JSON_VALUES)
    )
    body = bytearray(
        save({name: np.ones(shape, dtype) for name in chosen}, {"request": json.dumps(fields)})
    )
    if draw(st.integers(0, 3)) == 0:
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return bytes(body)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
schemathesis.openapi.media_type(SAFETENSORS, safetensors_bodies())


@schemathesis.deserializer(SAFETENSORS)
def _read_safetensors(_: object, response: schemathesis.Response) -> str:
    """The document says that the body is a string; a foreign reader says that it is safetensors."""
    load(response.content)
    return ""


@schema.parametrize()
def test_every_answer_is_as_the_document_says(case: schemathesis.Case, service_url: str) -> None:
    # 504 is right for a call that is given no time, but any 5xx counts as a fault here.
    given = (case.headers or {}).get("X-Request-Timeout", "")
    if re.fullmatch(r"[0-9.]+(e-?[0-9]+)?", given) and float(given) > 0:
        case.headers["X-Request-Timeout"] = "60"
    case.call_and_validate(base_url=service_url)


def list_of(*shape: int) -> list[Any]:
    """A nested list of the same random numbers each time."""
    numbers: list[Any] = np.random.default_rng(0).standard_normal(shape).round(3).tolist()
    return numbers


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


def distinct(count: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, count - 1), min_size=1, max_size=count, unique=True)


flag = st.booleans()
form = st.sampled_from(["list", "base64"])
accept = st.sampled_from([None, JSON, SAFETENSORS, "*/*", "text/html", f"{SAFETENSORS};q=x, a/b"])
# Two batch elements, four query heads, two key heads, three queries and five keys.
TENSORS = {
    "query": list_of(2, 4, 3, 2),
    "key": list_of(2, 2, 5, 2),
    "value": list_of(2, 2, 5, 3),
}
PAST = {"past_key": list_of(2, 2, 1, 2), "past_value": list_of(2, 2, 1, 3)}
weights = flag | optional(
    heads=distinct(4),
    queries=distinct(3) | st.just({"start": 1, "stop": 3}),
    reduce=st.sampled_from(["mean", "max"]),
    top_k=st.integers(1, 9),
)
attention_calls = st.builds(
    lambda options, cache: TENSORS | options | cache,
    optional(
        is_causal=flag,
        scale=st.none() | st.floats(-2, 2),
        softcap=st.floats(0, 9),
        left_window_size=st.integers(-1, 3),
        right_window_size=st.integers(-1, 3),
        attn_mask=st.sampled_from([list_of(3, 1), [[True, False, True]], [[False]], None]),
        softmax_precision=st.sampled_from([None, 1, 10, 11, 16, "float32", "bfloat16"]),
        sinks=st.just(list_of(4)),
        alibi_slopes=st.just(list_of(4)),
        query_offset=st.integers(-9, 9),
        key_offset=st.integers(-9, 9),
        tensor_format=form,
        **{
            "return": optional(
                output=flag,
                weights=weights,
                lse=flag,
                entropy=flag,
                scores=st.sampled_from([False, "raw", "softcap", "masked"]),
                plan=flag,
            )
        },
    ),
    st.sampled_from([{}, PAST, {"nonpad_kv_seqlen": [0, 4]}, PAST | {"return": {"present": True}}]),
)
plain_return = optional(output=flag, weights=flag)
module_calls = st.builds(
    lambda options: {"query": list_of(2, 3, 8)} | options,
    optional(
        key=st.just(list_of(2, 3, 8)),
        is_causal=flag,
        scale=st.floats(-2, 2),
        attn_mask=st.sampled_from([list_of(3, 1), [[True, False, True]], None]),
        tensor_format=form,
        **{"return": plain_return},
    ),
)
text = st.text(st.characters(codec="utf-8"), max_size=30)
text_calls = st.builds(
    lambda texts, options: texts | options,
    st.builds(lambda text: {"text": text}, text | st.lists(text, min_size=1, max_size=3))
    | st.builds(lambda text, pair: {"text": text, "text_pair": pair}, text, text),
    optional(
        layers=st.just("all") | distinct(6),
        heads=st.just("all") | distinct(12),
        truncate=flag,
        tensor_format=form,
        **{"return": plain_return},
    ),
)
CALLS = {
    ATTENTION: attention_calls,
    "/v1/modules/{name}/attention": module_calls,
    TEXT: text_calls,
}


@pytest.mark.parametrize("path", CALLS)
@settings(max_examples=50, derandomize=True, database=None, deadline=None)
@given(data=st.data())
def test_good_calls_are_answered_as_the_document_says(
    service_url: str, path: str, data: st.DataObject
) -> None:
    """Random tensors hardly ever fit each other: these do, so every one is computed."""
    operation = schema[path]["POST"]
    case = operation.Case(
        path_parameters={"name": "example"} if "{name}" in path else {},
        body=data.draw(CALLS[path]),
        media_type=JSON,
    )
    headers = {"Accept": data.draw(accept)}
    answer = case.call_and_validate(base_url=service_url, headers=headers)
    assert answer.status_code == 200, answer.text
