"""Limits that are checked before anything is computed: answer, memory, empty tensors."""

from __future__ import annotations

import base64
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from attention_service.settings import Settings
from tests.api.conftest import SMALL_ANSWER
from tests.api.support import (
    ATTENTION,
    SAFETENSORS,
    TEXT,
    Caller,
    check_problem,
    fitting_return,
)
from tests.conftest import RunningService

MEMORY = 2**20


@pytest.fixture(scope="module")
def little_memory_url(modules: Any, start_service: Callable[[Settings], RunningService]) -> str:
    settings = Settings(modules=modules, provider="cpu", memory_budget_bytes=MEMORY)
    return start_service(settings).url


@pytest.fixture
def little_memory(little_memory_url: str) -> Iterator[Caller]:
    """Calls a service with a small budget of memory and any answer."""
    caller = Caller(little_memory_url)
    yield caller
    caller.must_serve()
    caller.close()


@pytest.fixture(scope="module")
def little_answer_url(modules: Any, start_service: Callable[[Settings], RunningService]) -> str:
    settings = Settings(modules=modules, provider="cpu", max_answer_bytes=2**16)
    return start_service(settings).url


@pytest.fixture
def little_answer(little_answer_url: str) -> Iterator[Caller]:
    """Calls a service with modules, whose answers are small."""
    caller = Caller(little_answer_url)
    yield caller
    caller.must_serve()
    caller.close()


def noise(*shape: int) -> dict[str, Any]:
    """A float32 tensor object of random numbers."""
    array = np.random.default_rng(0).standard_normal(shape, np.float32)
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": "float32", "shape": list(shape), "data": data}


def three(q_length: int, kv_length: int, size: int = 1) -> dict[str, Any]:
    key = noise(kv_length, size)
    return {"query": noise(q_length, size), "key": key, "value": key}


@pytest.mark.parametrize(
    "fields",
    [
        three(64, 64),
        three(120, 120) | {"tensor_format": "base64"},
        three(3, 4000),
        three(4000, 3),
        three(64, 64, 100) | {"return": {"scores": "raw"}},
        three(64, 64) | {"return": {"output": False}},
    ],
    ids=["square", "base64", "wide", "long", "scores", "weights_alone"],
)
def test_an_answer_too_large_says_what_would_fit(small: Caller, fields: dict[str, Any]) -> None:
    answer = small.post(ATTENTION, fields)
    form = fields.get("tensor_format", "list")
    says = (f"bytes as {form}", f"at most {SMALL_ANSWER} are sent", SAFETENSORS)
    problem = check_problem(answer, 413, "answer_too_large", says=says)
    size = int(re.findall(r"could take (\d+) bytes", problem["detail"])[0])
    assert size > SMALL_ANSWER
    smaller = small.post(ATTENTION, fields | fitting_return(problem["detail"]))
    assert smaller.status_code == 200, smaller.text
    assert len(smaller.content) <= SMALL_ANSWER


def test_the_bound_of_an_answer_is_not_far_above_it(small: Caller) -> None:
    """What is close to the limit is served, so that the bound is no excuse to serve little."""
    fields = three(56, 56, 8)
    answer = small.post(ATTENTION, fields | {"return": {"output": False}})
    assert answer.status_code == 200, answer.text
    assert SMALL_ANSWER / 2 < len(answer.content) <= SMALL_ANSWER


def test_the_form_of_the_answer_counts(small: Caller) -> None:
    """What is too large as a list fits in bytes."""
    fields = three(100, 100)
    check_problem(small.post(ATTENTION, fields), 413, "answer_too_large", says=("as list",))
    answer = small.post(ATTENTION, fields, Accept=SAFETENSORS)
    assert answer.status_code == 200, answer.text
    tensors = {name: np.zeros((130, 1), np.float32) for name in ("query", "key", "value")}
    answer = small.post(ATTENTION, save(tensors), Content_Type=SAFETENSORS)
    problem = check_problem(answer, 413, "answer_too_large", says=("as safetensors",))
    assert "fewest bytes" not in problem["detail"]


def test_what_no_return_makes_fit_says_so(small: Caller) -> None:
    past = {"dtype": "float32", "shape": [1, 1, 0, 8000], "data": ""}
    tensor = noise(1, 1, 2, 8000)
    fields = {"query": tensor, "key": tensor, "value": tensor}
    answer = small.post(ATTENTION, fields | {"past_key": past, "past_value": past})
    says = ("fewer heads or shorter sequences",)
    check_problem(answer, 413, "answer_too_large", says=says)


def test_nothing_is_computed_before_the_limits_are_checked(caller: Caller) -> None:
    fields = three(30_000, 30_000)
    begin = time.monotonic()
    answer = caller.post(ATTENTION, fields)
    check_problem(answer, 413, "answer_too_large", says=("at most 268435456",))
    assert time.monotonic() - begin < 2  # the weights alone take 3.6 GB


def test_memory_too_large_says_what_would_fit(little_memory: Caller) -> None:
    fields = three(600, 600) | {"tensor_format": "base64"}
    answer = little_memory.post(ATTENTION, fields)
    says = (f"at most {MEMORY} may be taken",)
    problem = check_problem(answer, 413, "memory_too_large", says=says)
    size = int(re.findall(r"up to (\d+) bytes", problem["detail"])[0])
    assert size >= 600 * 600 * 4
    smaller = little_memory.post(ATTENTION, fields | fitting_return(problem["detail"]))
    assert smaller.status_code == 200, smaller.text


def test_a_module_keeps_the_limits_too(little_memory: Caller, little_answer: Caller) -> None:
    path = "/v1/modules/mha/attention"
    fields = {"query": noise(1, 50, 16)}
    problem = check_problem(little_answer.post(path, fields), 413, "answer_too_large")
    smaller = little_answer.post(path, fields | fitting_return(problem["detail"]))
    assert smaller.status_code == 200, smaller.text
    answer = little_memory.post(path, {"query": noise(1, 200, 16)})
    check_problem(answer, 413, "memory_too_large", says=("shorter sequences",))


def test_a_text_keeps_the_limits_too(little_memory: Caller, little_answer: Caller) -> None:
    fields = {"text": "The cat sat on the mat. " * 3, "tensor_format": "base64"}
    answer = little_answer.post(TEXT, fields)
    says = ('fewer "layers" or "heads"',)
    problem = check_problem(answer, 413, "answer_too_large", says=says)
    smaller = little_answer.post(TEXT, fields | fitting_return(problem["detail"]))
    assert smaller.status_code == 200, smaller.text
    fewer = {"layers": [1], "heads": [2]}
    answer = little_answer.post(TEXT, fields | fewer | {"return": {"output": False}})
    assert answer.status_code == 200, answer.text
    answer = little_memory.post(TEXT, {"text": "cat " * 300})
    check_problem(answer, 413, "memory_too_large", says=(f"at most {MEMORY}",))


def empty(*shape: int) -> dict[str, Any]:
    return {"dtype": "float32", "shape": list(shape), "data": ""}


@pytest.mark.parametrize(
    ("query", "key"),
    [
        (empty(0, 1, 2**36, 1), empty(0, 1, 1, 1)),
        (empty(0, 1, 1, 1), empty(0, 1, 2**36, 1)),
        (empty(0, 2**36, 1, 1), empty(0, 1, 1, 1)),
        (empty(2**36, 1, 0, 1), empty(2**36, 1, 0, 1)),
        (empty(2**12, 2**11, 0, 1), empty(2**12, 2**11, 0, 1)),
    ],
    ids=["rows", "keys", "heads", "batches", "batches_and_heads"],
)
def test_sizes_beside_a_zero_cost_nothing_to_send_and_are_limited(
    caller: Caller, query: dict[str, Any], key: dict[str, Any]
) -> None:
    begin = time.monotonic()
    answer = caller.post(ATTENTION, {"query": query, "key": key, "value": key})
    field = "query" if math.prod(size or 1 for size in query["shape"]) > 2**22 else "key"
    check_problem(answer, 422, "invalid_tensor", field, says=("4194304 at most",))
    assert time.monotonic() - begin < 2


def test_sizes_beside_a_zero_are_limited_for_modules(caller: Caller) -> None:
    answer = caller.post("/v1/modules/mha/attention", {"query": empty(0, 2**30, 16)})
    check_problem(answer, 422, "invalid_tensor", "query", says=("4194304 at most",))


@pytest.mark.parametrize("form", ["list", "base64"])
def test_empty_tensors_within_the_limits_are_served(caller: Caller, form: str) -> None:
    tensor = empty(0, 4, 1024, 64)
    fields = {"query": tensor, "key": tensor, "value": tensor, "tensor_format": form}
    answer = caller.post(ATTENTION, fields)
    assert answer.status_code == 200, answer.text
    weights = answer.json()["weights"]
    assert weights == ([] if form == "list" else empty(0, 4, 1024, 1024))


def test_an_answer_of_many_empty_lists_is_too_large(small: Caller) -> None:
    """It holds no number, and yet its brackets take bytes; no rows are there to ask for."""
    tensor = empty(2**15, 1, 0, 1)
    answer = small.post(ATTENTION, {"query": tensor, "key": tensor, "value": tensor})
    check_problem(answer, 413, "answer_too_large")
