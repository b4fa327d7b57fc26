"""docs/attention.md is a reference: its examples and tables hold for the code and the service.

An example is a code block whose first line is ``json request PATH``, and in the block after
it what is answered. A table is found by the names of its columns.
"""

from __future__ import annotations

import doctest
import json
import math
import re
from itertools import pairwise
from typing import Any, get_args

import httpx
import ml_dtypes  # noqa: F401 - numpy knows bfloat16 by it
import numpy as np
import pytest
from onnx import defs

from attention_client import AttentionClient
from attention_wire import answers, schemas
from attention_wire.names import meant
from tests.conftest import ROOT

DOCUMENT = (ROOT / "docs" / "attention.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+) ?(\w*) ?(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [match.groups() for match in FENCE.finditer(DOCUMENT)]
EXAMPLES = [
    (request[2], json.loads(request[3]), json.loads(answer[3]))
    for request, answer in pairwise(BLOCKS)
    if request[1] == "request"
]
BASE = next(fields for _, fields, answer in EXAMPLES if answer == {
    "output": [[1.5]], "weights": [[0.5, 0.5]]
})  # fmt: skip


def table(*columns: str) -> list[list[str]]:
    """The cells of the one table with these columns."""
    head = f"\n| {' | '.join(columns)} |\n"
    assert DOCUMENT.count(head) == 1, head
    lines = DOCUMENT.split(head)[1].split("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert all(len(row) == len(columns) for row in rows)
    return rows


def codes(cell: str) -> list[str]:
    """What a cell shows as code."""
    return re.findall(r"`(.+?)`", cell)


def post(url: str, fields: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{url}/v1/attention", json=fields)


# --- Examples --------------------------------------------------------------------------


def assert_shown(given: Any, shown: Any, path: str = "") -> None:
    """That what was answered is what is shown, to six decimals."""
    if isinstance(shown, dict):
        assert isinstance(given, dict), path
        assert set(given) == set(shown), path
        for name, value in shown.items():
            assert_shown(given[name], value, f"{path}.{name}")
    elif isinstance(shown, list):
        assert isinstance(given, list), path
        assert len(given) == len(shown), path
        for index, value in enumerate(shown):
            assert_shown(given[index], value, f"{path}[{index}]")
    elif isinstance(shown, str):
        assert given == shown, path
    else:
        assert math.isclose(given, shown, rel_tol=0, abs_tol=1.5e-6), f"{path}: {given}"


def test_every_block_is_checked() -> None:
    kinds = [(language, kind) for language, kind, _, _ in BLOCKS]
    assert len(BLOCKS) == DOCUMENT.count("\n```") / 2
    assert kinds == [("json", "request"), ("json", "answer")] * len(EXAMPLES) + [("python", "")]
    assert len(EXAMPLES) == 19


@pytest.mark.parametrize(("path", "request_", "answer"), EXAMPLES)
def test_an_example_is_answered_as_shown(
    service_url: str, path: str, request_: dict[str, Any], answer: dict[str, Any]
) -> None:
    assert path == "/v1/attention"
    given = post(service_url, request_)
    assert given.status_code == 200, given.text
    fields = given.json()
    assert fields.pop("provider") == "CPUExecutionProvider"
    assert_shown(fields, answer)


def test_the_python_example(service_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTENTION_URL", service_url)
    (text,) = (block[3] for block in BLOCKS if block[0] == "python")
    example = doctest.DocTestParser().get_doctest(text, {}, "attention.md", None, 0)
    report: list[str] = []
    runner = doctest.DocTestRunner()
    runner.run(example, out=report.append)
    assert runner.failures == 0, "".join(report)
    assert runner.tries == 8


@pytest.mark.parametrize(("fields", "answer", "blamed"), table("fields", "answer", "blamed"))
def test_what_is_refused(service_url: str, fields: str, answer: str, blamed: str) -> None:
    given = post(service_url, {**BASE, **json.loads(f"{{{codes(fields)[0]}}}")})
    problem = given.json()
    assert answer == f"{given.status_code} `{problem['code']}`", given.text
    assert codes(blamed) == [".".join(error["loc"]) for error in problem["errors"]]


# --- Names -----------------------------------------------------------------------------

LIBRARIES = ("ONNX", "PyTorch", "JAX", "FlashAttention")


def names_in_onnx(opset: int) -> set[str]:
    schema = defs.get_schema("Attention", opset)
    parameters = [*schema.inputs, *schema.outputs]
    return {parameter.name for parameter in parameters} | set(schema.attributes)


def test_the_options() -> None:
    rows = table("field", "shape, type", *LIBRARIES)
    fields = schemas.AttentionRequest.model_fields.items()
    assert {codes(row[0])[0] for row in rows} == {field.alias or name for name, field in fields}
    for _, _, onnx, *_ in rows:
        for name in codes(onnx):
            opset = int((re.search(r"\((\d+)\)", onnx) or ["", "23"])[1])
            assert name in names_in_onnx(opset)
            assert opset == 23 or name not in names_in_onnx(opset - 1)
    named = {name for row in rows for name in codes(row[2])}
    results = {"Y", "present_key", "present_value", "qk_matmul_output", "qk_matmul_output_mode"}
    assert named | results == names_in_onnx(25)


def test_the_results() -> None:
    rows = table("`return`", "answered as", *LIBRARIES)
    assert [codes(row[0])[0] for row in rows] == list(schemas.Return.model_fields)
    answered = {name for row in rows for name in codes(row[1])}
    assert answered == set(answers.AttentionAnswer.model_fields) - {"module", "provider"}
    assert {name for row in rows for name in codes(row[2])} <= names_in_onnx(23)


def test_another_s_name_leads_to_its_row() -> None:
    rows = table("field", "shape, type", *LIBRARIES)
    named = [(codes(row[0])[0], name) for row in rows for name in codes(" ".join(row[2:]))]
    rows = table("`return`", "answered as", *LIBRARIES)
    named += [
        (f"return.{codes(row[0])[0]}", name) for row in rows for name in codes(" ".join(row[2:]))
    ]
    for field, name in named:
        if name.isidentifier() and name != field:
            assert f"'{field}'" in str(meant(schemas.AttentionRequest, name)), name


def test_the_selection() -> None:
    rows = table("member", "meaning")
    assert {codes(row[0])[0] for row in rows} == set(schemas.WeightsSelection.model_fields)
    rows = table("member", "shape", "dtype")
    assert [codes(row[0])[0] for row in rows] == list(answers.TopK.model_fields)


def test_the_scores() -> None:
    rows = table("value", "scores after step", "ONNX `qk_matmul_output_mode`")
    values = [json.loads(codes(row[0])[0]) for row in rows if codes(row[0])]
    assert values == list(get_args(schemas.Return.model_fields["scores"].annotation))


def test_links_inside_the_page_lead_somewhere() -> None:
    anchors: list[str] = []
    for title in re.findall(r"^#+ (.+)$", DOCUMENT, re.MULTILINE):
        slug = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        anchors.append(f"{slug}-{anchors.count(slug)}" if slug in anchors else slug)
    links = re.findall(r"\]\(#(.+?)\)", DOCUMENT)
    assert set(links) <= set(anchors)
    assert set(anchors) - set(links) <= {"attention"}


# --- Shapes and dtypes -----------------------------------------------------------------

SIZES = {"B": 2, "Hq": 6, "Hkv": 3, "L": 4, "S": 5, "T": 5, "D": 7, "Dv": 2}
RNG = np.random.default_rng(23)


def shape(cell: str) -> tuple[int, ...]:
    """[B,L,Hq·D] as numbers."""
    return tuple(
        math.prod(SIZES[letter] for letter in size.split("·"))
        for size in cell.strip("[]").split(",")
    )


@pytest.mark.parametrize(
    "row",
    table("rank", "`query`", "`key`", "`value`", "`output`", "`weights`, `scores`",
          "`lse`, `entropy`"),
)  # fmt: skip
def test_the_ranks(client: AttentionClient, row: list[str]) -> None:
    heads = {"q_num_heads": 6, "kv_num_heads": 3} if row[0] == "3" else {}
    tensors = [RNG.standard_normal(shape(cell)).astype(np.float32) for cell in row[1:4]]
    assert [tensor.ndim for tensor in tensors] == [int(row[0])] * 3
    asked = {"lse": True, "entropy": True, "scores": "raw"}
    result = client.attention(*tensors, return_=asked, **heads)  # type: ignore[arg-type]
    assert result.output.shape == shape(row[4])
    assert result.weights.shape == result.scores.shape == shape(row[5])
    assert result.lse.shape == result.entropy.shape == shape(row[6])


@pytest.mark.parametrize(
    "row",
    table("`query`", "computed in", "`output`, `weights`, `scores`, `present_…`",
          "`lse`, `entropy`, `rest`"),
)  # fmt: skip
def test_the_dtypes(client: AttentionClient, row: list[str]) -> None:
    asked = {"lse": True, "entropy": True, "scores": "raw", "present": True, "plan": True}
    tensors = [RNG.standard_normal((1, 1, 3, 4)).astype(row[0]) for _ in range(3)]
    result = client.attention(*tensors, return_=asked)
    assert {step.dtype for step in result.plan.steps} == {row[1]}
    for name in ("output", "weights", "scores", "present_key", "present_value"):
        assert result.arrays[name].dtype.name == row[2], name
    for name in ("lse", "entropy"):
        assert result.arrays[name].dtype.name == row[3], name
    top = client.attention(*tensors, return_={"weights": {"top_k": 2}}).top_k
    assert (top.indices.dtype.name, top.values.dtype.name, top.rest.dtype.name) == (
        "int32", row[2], row[3],
    )  # fmt: skip


def _softmax_precisions() -> set[object]:
    properties = schemas.AttentionRequest.model_json_schema()["properties"]
    return set(properties["softmax_precision"]["anyOf"][0]["enum"])


def test_the_precisions(client: AttentionClient) -> None:
    rows = table("value", "name", "effect here")
    taken = {int(value): codes(name)[0] for value, name, _ in rows}
    assert {*taken, *taken.values()} == _softmax_precisions()
    half = [np.ones((1, 4), np.float16)] * 3
    for value, name, effect in rows:
        for precision in (int(value), codes(name)[0]):
            result = client.attention(
                *half,
                softmax_precision=precision,  # type: ignore[arg-type]
                return_={"plan": True},
            )
            expected = "float32" if effect == "none" else "float64"
            assert {step.dtype for step in result.plan.steps} == {expected}
            assert result.output.dtype == np.float16


def test_a_precision_of_float64_is_more_precise(client: AttentionClient) -> None:
    tensors = [RNG.standard_normal((1, 1, 40, 16)).astype(np.float32) for _ in range(3)]
    exact = client.attention(*(each.astype(np.float64) for each in tensors)).output
    plain = client.attention(*tensors).output
    precise = client.attention(*tensors, softmax_precision="float64").output
    np.testing.assert_array_equal(precise, exact.astype(np.float32))
    assert (plain != precise).any()


# --- Rules in words --------------------------------------------------------------------


def test_the_largest_weights_of_a_masked_row(client: AttentionClient) -> None:
    keys = np.ones((5, 2))
    asked = {"weights": {"top_k": 3}}
    top = client.attention(keys[:1], keys, keys, attn_mask=[[False] * 5], return_=asked).top_k
    assert (top.indices.tolist(), top.values.tolist(), top.rest.tolist()) == (
        [[0, 1, 2]], [[0, 0, 0]], [0],
    )  # fmt: skip
    some = [[False, True, False, True, False]]
    top = client.attention(keys[:1], keys, keys, attn_mask=some, return_=asked).top_k
    assert top.indices.tolist() == [[1, 3, 0]]


def test_equal_weights_are_those_that_are_equal_when_rounded(client: AttentionClient) -> None:
    # Two scores that differ by less than float16 can show of their weights.
    bias = np.array([[0.0, 1e-5, 0.0]], np.float32)
    tensors = [np.zeros((rows, 1), np.float16) for rows in (1, 3, 3)]
    asked = {"weights": {"top_k": 3}}
    top = client.attention(*tensors, attn_mask=bias, return_=asked).top_k
    assert top.indices.tolist() == [[0, 1, 2]]
    single = [tensor.astype(np.float32) for tensor in tensors]
    top = client.attention(*single, attn_mask=bias, return_=asked).top_k
    assert top.indices.tolist() == [[1, 0, 2]]


def test_a_mask_for_each_batch_element_needs_four_dimensions(client: AttentionClient) -> None:
    tensors = [np.ones((2, 2, 1, 1), np.float32)] * 3
    by_head = np.array([[[True]], [[False]]])
    result = client.attention(*tensors, attn_mask=by_head)
    assert result.output[:, :, 0, 0].tolist() == [[1, 0], [1, 0]]
    result = client.attention(*tensors, attn_mask=by_head[:, None])
    assert result.output[:, :, 0, 0].tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("mask", ["float16", "bfloat16", "float32", "float64"])
def test_a_bias_of_any_float_dtype(client: AttentionClient, mask: str) -> None:
    bias = np.array([[0, -4, -np.inf]], np.float64).astype(mask)
    tensors = [np.zeros((rows, 1), np.float16) for rows in (1, 3, 3)]
    result = client.attention(*tensors, attn_mask=bias, alibi_slopes=np.zeros(1, mask))
    np.testing.assert_allclose(result.weights, [[0.982, 0.018, 0]], atol=1e-3)


def test_a_bias_below_the_range_masks(client: AttentionClient) -> None:
    bias = np.array([[0, -1e300], [-1e300, -1e300]])
    tensors = [np.zeros((2, 1), np.float32)] * 3
    result = client.attention(*tensors, attn_mask=bias)
    assert result.weights.tolist() == [[1, 0], [0, 0]]


def test_values_without_columns(client: AttentionClient) -> None:
    result = client.attention(np.ones((2, 3)), np.ones((4, 3)), np.ones((4, 0)))
    assert (result.output.shape, result.weights.shape) == ((2, 0), (2, 4))


def test_float32_scores_that_would_overflow(client: AttentionClient) -> None:
    query, key = np.full((1, 1), 1e30, np.float32), np.array([[1e30], [1e-30]], np.float32)
    result = client.attention(query, key, np.array([[1], [2]], np.float32), return_={"plan": True})
    assert result.output.tolist() == [[1.0]]
    assert {step.dtype for step in result.plan.steps} == {"float64"}


def test_a_part_s_weights_as_those_of_the_whole(client: AttentionClient) -> None:
    query, key, value = RNG.standard_normal((3, 6, 4)).astype(np.float32)
    whole = client.attention(query, key, value, return_={"lse": True})
    part = client.attention(query, key[2:], value[2:], return_={"lse": True})
    factor = np.exp(part.lse - whole.lse)[:, None]
    np.testing.assert_allclose(part.weights * factor, whole.weights[:, 2:], rtol=1e-5)
