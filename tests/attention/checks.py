"""Whether an answer is what the reference says, field by field.

Tolerances are relative to the norm of a whole array, or absolute for numbers that may be
near 0, and grow with the largest score that bears on a row, as rounding does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from attention_wire.answers import PlanInfo
from tests import reference
from tests.attention.cases import Case, merged_heads
from tests.attention.forms import DTYPES
from tests.provider import PROVIDER_NAME
from tests.reference import Array, Expected

TOLERANCE = {"float16": 1e-2, "bfloat16": 1e-2, "float32": 1e-5, "float64": 1e-12}


class Answer:
    """The answer to a case, to be compared with what is expected.

    Args:
        case: the case.
        fields: the answer's fields.
        typed: whether its arrays have dtypes and shapes of their own; nested lists have not.
    """

    def __init__(self, case: Case, fields: Mapping[str, Any], *, typed: bool = True) -> None:
        self.case = case
        self.fields = fields
        self.typed = typed
        self.tolerance = TOLERANCE[case.dtype]
        self.precise = "float64" if case.dtype == "float64" else "float32"
        # Below these, numbers have no full digits: as they are answered, as they are computed.
        self.least = max(
            float(ml_dtypes.finfo(DTYPES[case.dtype]).smallest_subnormal),
            float(np.finfo(self.precise).tiny),
        )

    def check(self, expected: Expected) -> None:
        """Compare all of it."""
        assert set(self.fields) == self._asked_for()
        # What needs float64, whatever its dtype, stays on the CPU.
        providers = {"CPUExecutionProvider"}
        if self.case.dtype != "float64":
            providers.add(PROVIDER_NAME)
        assert self.fields["provider"] in providers
        if "plan" in self.fields:
            PlanInfo.model_validate(self.fields["plan"])
        self._check_whole_rows(expected)
        self._check_present(expected)
        heads, queries = self._selection()
        if "scores" in self.fields:
            self._check_scores(expected, heads, queries)
        if "weights" in self.fields:
            self._check_weights(expected, heads, queries)

    def _asked_for(self) -> set[str]:
        asked = self.case.asked
        names = {n for n in ("lse", "entropy", "scores", "plan") if asked.get(n)}
        names |= {n for n in ("output", "weights") if asked.get(n, True) is not False}
        if asked.get("present") or self.case.sizes.past is not None:
            names |= {"present_key", "present_value"}
        return names | {"provider"}

    def _selection(self) -> tuple[Sequence[int] | None, Sequence[int] | None]:
        weights = self.case.asked.get("weights", True)
        chosen = weights if isinstance(weights, dict) else {}
        queries = chosen.get("queries")
        if isinstance(queries, dict):
            queries = range(queries["start"], queries["stop"])
        return chosen.get("heads"), queries

    # --- Fields of all heads and rows ---

    def _check_whole_rows(self, expected: Expected) -> None:
        hidden = np.isneginf(expected.scores["masked"]).all(axis=-1)
        scale = expected.row_scale
        if "output" in self.fields:
            output = expected.output
            scales = np.broadcast_to(scale[..., None], output.shape)
            nothing = np.broadcast_to(hidden[..., None], output.shape)
            if self.case.rank == 3:
                output, scales, nothing = (merged_heads(a) for a in (output, scales, nothing))
            else:
                output, scales, nothing = map(self._in_rank, (output, scales, nothing))
            actual = self._array(self.fields["output"], output.shape, self.case.dtype)
            self._assert_norm("output", actual, output, scales)
            assert not actual[nothing].any(), "output: a row that sees no key is 0"
        exact = TOLERANCE[self.precise]  # computed and answered in at least float32
        for name, values in (("lse", expected.lse), ("entropy", expected.entropy)):
            if name in self.fields:
                wanted = self._in_rank(values)
                actual = self._array(self.fields[name], wanted.shape, self.precise)
                _assert_each(name, actual, wanted, exact * self._in_rank(scale))
                assert name == "lse" or not actual[self._in_rank(hidden)].any(), "entropy: not 0"

    def _check_present(self, expected: Expected) -> None:
        for name in ("present_key", "present_value"):
            if name in self.fields:
                wanted: Array = getattr(expected, name)
                actual = self._array(self.fields[name], wanted.shape, self.case.dtype)
                np.testing.assert_array_equal(
                    actual.astype(np.float64), wanted.astype(np.float64), err_msg=name
                )

    # --- Fields of the selected heads and rows ---

    def _check_scores(
        self,
        expected: Expected,
        heads: Sequence[int] | None,
        queries: Sequence[int] | None,
    ) -> None:
        mode = self.case.asked["scores"]
        wanted = self._in_rank(reference.select(expected.scores[mode], heads, queries))
        actual = self._array(self.fields["scores"], wanted.shape, self.case.dtype)
        with np.errstate(over="ignore"):  # what is past a dtype's range is infinite in it
            rounded = wanted.astype(DTYPES[self.case.dtype]).astype(np.float64)
        scale = np.full(wanted.shape, max(1.0, expected.largest_score))
        _assert_each("scores", actual, rounded, self.tolerance * scale)

    def _check_weights(
        self,
        expected: Expected,
        heads: Sequence[int] | None,
        queries: Sequence[int] | None,
    ) -> None:
        asked = self.case.asked.get("weights", True)
        how = asked.get("reduce") if isinstance(asked, dict) else None
        k = asked.get("top_k") if isinstance(asked, dict) else None
        weights = reference.select(expected.weights, heads, queries)
        scale = reference.select(expected.row_scale, heads, queries)
        if how is not None:
            weights = reference.reduce(weights, how)
            scale = scale.max(axis=1, keepdims=True)
        weights, scale = self._in_rank(weights), self._in_rank(scale)
        if k is not None:
            self._check_top_k(weights, scale, min(k, self.case.sizes.total))
            return
        actual = self._array(self.fields["weights"], weights.shape, self.case.dtype)
        self._assert_norm("weights", actual, weights, scale[..., None])
        assert not actual[self._hidden(expected, heads, queries)].any(), "a hidden key weighs 0"
        rows = actual.astype(np.float64).sum(axis=-1)
        _assert_each("sums", rows, weights.sum(axis=-1), 4 * self.tolerance * scale)

    def _hidden(
        self,
        expected: Expected,
        heads: Sequence[int] | None,
        queries: Sequence[int] | None,
    ) -> Array:
        hidden = np.isneginf(reference.select(expected.scores["masked"], heads, queries))
        asked = self.case.asked.get("weights", True)
        if isinstance(asked, dict) and "reduce" in asked:
            hidden = hidden.all(axis=1, keepdims=True)
        return self._in_rank(hidden)

    def _check_top_k(self, weights: Array, scale: Array, k: int) -> None:
        wanted = reference.top_k(weights, k)
        found: dict[str, Any] = self.fields["weights"]
        assert set(found) == {"indices", "values", "rest"}
        indices = self._array(found["indices"], wanted.indices.shape, "int32").astype(np.int64)
        values = self._array(found["values"], wanted.values.shape, self.case.dtype)
        rest = self._array(found["rest"], wanted.rest.shape, self.precise)
        self._assert_norm("values", values, wanted.values, scale[..., None])
        _assert_each("rest", rest, wanted.rest, self.tolerance * scale)
        assert (rest >= 0).all(), "rest: a mass is not negative"
        if indices.size == 0:
            return
        assert indices.min() >= 0
        assert indices.max() < self.case.sizes.total
        assert (np.diff(np.sort(indices, axis=-1), axis=-1) > 0).all(), "indices: each once"
        theirs = np.take_along_axis(weights, indices, axis=-1)
        self._assert_norm("values at indices", values, theirs, scale[..., None])
        self._check_order(indices, values)

    def _check_order(self, indices: Array, values: Array) -> None:
        wide = values.astype(np.float64)
        fall, rise = np.diff(wide, axis=-1), np.diff(indices, axis=-1)
        assert (fall <= 0).all(), "values: they do not fall"
        assert (rise[fall == 0] > 0).all(), "indices: ties go to the lower index"
        # Nothing weighs less than 0: where a 0 is named, so is every key before it.
        lowest_zero = np.where(wide == 0, indices, -1).max(axis=-1)
        named_before = (indices <= lowest_zero[..., None]).sum(axis=-1)
        assert (named_before == lowest_zero + 1).all(), "indices: of zeros the lowest come in"

    # --- Arrays ---

    def _in_rank(self, array: Array) -> Array:
        return array[0, 0] if self.case.rank == 2 else array

    def _array(self, value: Any, shape: tuple[int, ...], dtype: str) -> Array:
        """An array of the answer, once its shape and dtype are as they must be."""
        assert isinstance(value, np.ndarray)
        array: Array = value
        if self.typed:
            assert array.dtype == DTYPES[dtype], array.dtype
        else:
            if array.size == 0 == math.prod(shape):
                array = array.reshape(shape)
            # The digits of a half are those of the float32 of the same value.
            narrow = array if dtype == "float64" else array.astype(np.float32)
            array = narrow.astype(DTYPES[dtype])
        assert array.shape == shape
        return array

    def _assert_norm(self, name: str, actual: Array, expected: Array, scale: Array) -> None:
        """Normwise, each row's error over the row's scale."""
        error = float(np.linalg.norm((actual.astype(np.float64) - expected) / scale))
        norm = float(np.linalg.norm(expected))
        allowed = self.tolerance * norm + self.least * np.sqrt(expected.size)
        assert error <= allowed, f"{name}: ‖error‖ = {error:.2e}, ‖expected‖ = {norm:.2e}"


def _assert_each(name: str, actual: Array, expected: Array, allowed: Array) -> None:
    """Each number by itself: the same infinities, and else within what is allowed."""
    wide = actual.astype(np.float64)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(wide[~finite], expected[~finite], err_msg=name)
    relative = np.maximum(1, np.abs(expected, where=finite, out=np.ones_like(expected)))
    excess = np.abs(wide[finite] - expected[finite]) - (allowed * relative)[finite]
    assert (excess <= 0).all(), f"{name}: {excess.max():.2e} past the tolerance"
