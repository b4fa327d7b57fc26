"""Merging results of disjoint parts of the keys: exact, in float64, and strict about its input."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attention_client import AttentionResult, NotReturnedError, merge
from tests import reference

RNG = np.random.default_rng(11)


def result(output: Any = None, lse: Any = None, **changes: Any) -> AttentionResult:
    arrays = {"output": output, "lse": lse}
    fields: dict[str, Any] = {
        "arrays": {name: np.asarray(array) for name, array in arrays.items() if array is not None},
        "module": None,
        "provider": "CPUExecutionProvider",
        "request_id": None,
    }
    return AttentionResult(**fields | changes)


def part(scores: np.ndarray, values: np.ndarray) -> AttentionResult:
    """Softmax over some columns of the scores [..., L, S], and its log-sum-exp."""
    exponentials = np.exp(scores)
    total = exponentials.sum(-1)
    return result(exponentials @ values / total[..., None], np.log(total))


def test_parts_give_the_whole() -> None:
    scores, values = RNG.standard_normal((2, 3, 4, 10)), RNG.standard_normal((2, 3, 10, 5))
    whole = part(scores, values)
    bounds = [(0, 1), (1, 7), (7, 10)]
    parts = [part(scores[..., a:b], values[..., a:b, :]) for a, b in bounds]
    merged = merge(parts)
    assert set(merged.arrays) == {"output", "lse"}
    reference.assert_close(merged.output, whole.output, 1e-14)
    reference.assert_close(merged.lse, whole.lse, 1e-14)
    again = merge([merge(parts[:2]), parts[2]])
    reference.assert_close(again.output, whole.output, 1e-14)


def test_rank_2_and_rank_3_outputs() -> None:
    scores, values = RNG.standard_normal((2, 3, 4, 10)), RNG.standard_normal((2, 3, 10, 5))
    whole = part(scores, values)
    parts = [part(scores[..., k], values[..., k, :]) for k in (slice(4), slice(4, 10))]
    matrices = merge([result(each.output[1, 2], each.lse[1, 2]) for each in parts])
    reference.assert_close(matrices.output, whole.output[1, 2], 1e-14)
    assert matrices.lse.shape == (4,)

    def flat(output: np.ndarray) -> np.ndarray:
        return output.swapaxes(1, 2).reshape(2, 4, 15)

    merged = merge([result(flat(each.output), each.lse) for each in parts])
    reference.assert_close(merged.output, flat(whole.output), 1e-14)


def test_pairs_of_arrays() -> None:
    scores, values = RNG.standard_normal((2, 3, 4, 10)), RNG.standard_normal((2, 3, 10, 5))
    whole = part(scores, values)
    parts = [part(scores[..., k], values[..., k, :]) for k in (slice(4), slice(4, 10))]
    output, lse = merge((each.output, each.lse) for each in parts)
    reference.assert_close(output, whole.output, 1e-14)
    reference.assert_close(lse, whole.lse, 1e-14)
    output, lse = merge([([[1.0]], [0.0]), ([[4.0]], [float(np.log(2))])])
    assert (output.dtype, lse.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(output, [[3.0]], rtol=1e-6)


@pytest.mark.parametrize("other", [np.ones((2, 1)), ([[1.0]], [0.0], [0.0]), None])
def test_what_is_neither_a_result_nor_a_pair(other: Any) -> None:
    with pytest.raises(TypeError, match=r"results\[1\]: takes results of attention, or pairs"):
        merge([result([[1.0]], [0.0]), other])


def test_scores_that_no_exponential_can_hold() -> None:
    merged = merge(
        [
            result([[1.0]], [-2000.0]),
            result([[3.0]], [-2000.0 + np.log(3)]),
            result([[9.0]], [-9e9]),
        ]
    )
    np.testing.assert_allclose(merged.output, [[2.5]], rtol=1e-12)
    np.testing.assert_allclose(merged.lse, [-2000.0 + np.log(4)], rtol=1e-15)
    assert merge([result([[1.0]], [5000.0]), result([[2.0]], [0.0])]).output == 1


@pytest.mark.parametrize("hidden", [0.0, np.nan, np.inf])
def test_rows_that_a_part_masks_count_for_nothing(hidden: float) -> None:
    infinite = -np.inf
    merged = merge(
        [
            result([[1.0], [hidden], [hidden]], [0.5, infinite, infinite]),
            result([[hidden], [4.0], [hidden]], [infinite, 2.0, infinite]),
        ]
    )
    assert merged.output.tolist() == [[1.0], [4.0], [0.0]]
    assert merged.lse.tolist() == [0.5, 2.0, infinite]


def test_a_sink_in_one_part_takes_its_share() -> None:
    sink = np.log(2.0)
    with_sink = result([[1 / (1 + 2)]], [np.log(1 + np.exp(sink))])  # one key of score 0, value 1
    without = result([[7.0]], [0.0])
    merged = merge([with_sink, without])
    np.testing.assert_allclose(merged.output, [[(1 + 7) / (2 + 2)]])
    np.testing.assert_allclose(merged.lse, [np.log(4)])


@pytest.mark.parametrize(
    ("output", "lse", "tolerance"),
    [
        (np.float64, np.float64, 1e-14),
        (np.float32, np.float32, 1e-6),
        (np.float16, np.float32, 1e-3),
        (ml_dtypes.bfloat16, np.float32, 8e-3),
    ],
)
def test_dtypes_are_those_of_the_parts(output: Any, lse: Any, tolerance: float) -> None:
    scores, values = RNG.standard_normal((1, 2, 6, 40)), RNG.standard_normal((1, 2, 40, 8))
    parts = [part(scores[..., k], values[..., k, :]) for k in (slice(13), slice(13, 40))]
    merged = merge([result(p.output.astype(output), p.lse.astype(lse)) for p in parts])
    assert (merged.output.dtype, merged.lse.dtype) == (output, lse)
    whole = part(scores, values)
    reference.assert_close(merged.output, whole.output, tolerance)
    reference.assert_close(merged.lse, whole.lse, 1e-6)


def test_empty_results() -> None:
    empty = result(np.zeros((0, 2, 3, 4), np.float32), np.zeros((0, 2, 3), np.float32))
    assert merge([empty, empty]).output.shape == (0, 2, 3, 4)
    no_columns = result(np.zeros((1, 5, 0)), np.zeros((1, 2, 5)))
    assert merge([no_columns, no_columns]).output.shape == (1, 5, 0)


def test_what_is_told_of_the_parts() -> None:
    one = {"request_id": "a", "server_timing": {"queue": 1.0, "compute": 5.0}}
    two = {"request_id": "b", "server_timing": {"compute": 7.0}, "provider": "Other"}
    merged = merge([result([[1.0]], [0.0], **one), result([[1.0]], [0.0], **two)])
    assert merged.request_id == "a, b"
    assert merged.provider == "CPUExecutionProvider, Other"
    assert merged.server_timing == {"compute": 7.0, "queue": 1.0}
    assert not merged.output.flags.writeable
    alone = merge(iter([result([[1.0]], [0.0])]))
    assert (alone.request_id, alone.provider) == (None, "CPUExecutionProvider")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least one"),
        (
            [result([[1.0]], [0.0]), result([[1.0], [2.0]], [0.0, 0.0])],
            r"results\[1\]\.output is float64\[2, 1\] where results\[0\]\.output is float64",
        ),
        (
            [result([[1.0]], [0.0]), result([[1.0]], np.zeros(1, np.float32))],
            r"results\[1\]\.lse is float32\[1\] where",
        ),
        ([result([[1.0]], [0.0, 1.0])], r"float64\[1, 1\].* does not fit the lse's float64\[2\]"),
        ([result([1.0], 0.0)], "does not fit"),
        ([result(np.ones((1, 5, 3)), np.ones((1, 2, 5)))], "does not fit"),
        ([result(np.ones((1, 5, 4)), np.ones((1, 2, 4)))], "does not fit"),
        ([result([[1.0]], [np.nan])], "NaN"),
        ([result([[1.0]], [np.inf])], "infinity"),
    ],
)
def test_what_cannot_be_merged(parts: list[AttentionResult], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge(parts)


@pytest.mark.parametrize(("missing", "there"), [("lse", "output"), ("output", "lse")])
def test_results_that_lack_something(missing: str, there: str) -> None:
    complete = result([[1.0]], [0.0])
    lacking = AttentionResult(
        arrays={there: complete.arrays[there]}, module=None, provider="P", request_id=None
    )
    with pytest.raises(NotReturnedError, match=f"{missing}: not asked for; call with") as caught:
        merge([complete, lacking])
    assert caught.value.__notes__ == [
        "(results[1]: only results with output and lse can be merged)"
    ]
