"""Parts of a text's weights, and words in place of tokens, against its whole weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.api.support import Caller
from tests.api.text_models import (
    ASKED,
    SENTENCE,
    Array,
    Asked,
    every_model,
    result,
)
from tests.api.text_numbers import check_numbers, close, rollouts, words_of
from tests.conftest import TEXT_MODULE


@pytest.fixture
def caller(models_caller: Caller) -> Caller:
    return models_caller


def check_top(found: dict[str, Any], weights: Array, k: int) -> None:
    """That these are the k largest of rows in float32, ties to the lower index, and the rest."""
    order = np.argsort(-weights, axis=-1, kind="stable")[..., :k]
    values = np.take_along_axis(weights, order, axis=-1)
    steps = np.diff(found["values"], axis=-1)
    assert (steps <= 0).all()
    assert (np.diff(found["indices"], axis=-1)[steps == 0] > 0).all()
    close(found["values"], values)
    close(np.take_along_axis(weights, found["indices"].astype(np.int64), axis=-1), values)
    close(found["rest"], weights.sum(axis=-1) - values.sum(axis=-1))


@every_model
def test_top_k(caller: Caller, weights_of: Callable[[Asked], Array], asked: Asked) -> None:
    weights = weights_of(asked)
    found = result(caller, asked, return_={"weights": {"top_k": 3}})["weights"]
    assert found["indices"].shape == (*weights.shape[:-1], 3)
    check_top(found, weights, 3)
    more = result(caller, asked, return_={"weights": {"top_k": 1000}})["weights"]
    assert more["indices"].shape == weights.shape
    check_top(more, weights, weights.shape[-1])


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_equal_weights_come_by_rising_index(caller: Caller, name: str) -> None:
    found = result(caller, ASKED[name], return_={"weights": {"top_k": 6}})["weights"]
    # The first row sees itself alone; of the other keys each has 0.
    first = found["indices"][:, :, 0]
    np.testing.assert_array_equal(first, np.broadcast_to(np.arange(6), first.shape))
    np.testing.assert_array_equal(found["values"][:, :, 0, 0], 1)
    np.testing.assert_array_equal(found["values"][:, :, 0, 1:], 0)
    np.testing.assert_array_equal(found["rest"][:, :, 0], 0)


SELECTIONS: dict[str, dict[str, Any]] = {
    "list": {"queries": [4, 0, 2]},
    "range": {"queries": {"start": 2, "stop": 5}},
    "mean": {"reduce": "mean"},
    "max": {"reduce": "max"},
    "all": {"queries": [3, 1], "reduce": "max", "top_k": 2},
}


@pytest.mark.parametrize("beside", [{}, {"statistics": True}], ids=["alone", "beside_statistics"])
@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
@every_model
def test_selections_of_layers_heads_and_rows(
    caller: Caller,
    weights_of: Callable[[Asked], Array],
    asked: Asked,
    selection: dict[str, Any],
    unit: str,
    beside: dict[str, Any],
) -> None:
    returns = {"weights": selection, "output": False, **beside}
    found = result(caller, asked, layers=[2, 0], heads=[2, 0], unit=unit, return_=returns)
    expected = weights_of(asked)
    if unit == "word":
        expected = words_of(expected, found["words"]["tokens"])
    expected = expected[[2, 0]][:, [2, 0]]
    if (queries := selection.get("queries")) is not None:
        rows = queries if isinstance(queries, list) else range(queries["start"], queries["stop"])
        expected = expected[..., list(rows), :]
    if (how := selection.get("reduce")) is not None:
        expected = getattr(expected, how)(axis=1, keepdims=True)
    if "top_k" in selection:
        check_top(found["weights"], expected, selection["top_k"])
    else:
        assert found["weights"].shape == expected.shape
        close(found["weights"], expected)


# --- Words -------------------------------------------------------------------------------------


@every_model
def test_words_and_what_is_computed_of_them(
    caller: Caller, weights_of: Callable[[Asked], Array], asked: Asked
) -> None:
    returns = {"weights": True, "entropy": True, "statistics": True, "classes": True}
    found = result(caller, asked, unit="word", return_=returns | {"rollout": True})
    words = found["words"]
    spans = [tuple(span) for span in words["tokens"]]
    assert [a for a, _ in spans] + [len(found["tokens"])] == [0] + [b for _, b in spans]
    texts = (asked.text, asked.text_pair)
    for text, (start, stop), segment, (a, b), special in zip(
        words["text"], words["offsets"], words["segments"], spans, words["special_mask"],
        strict=True,
    ):  # fmt: skip
        assert {found["special_tokens_mask"][token] for token in range(a, b)} == {special}
        assert {found["segments"][token] for token in range(a, b)} == {segment}
        if segment is None:
            assert (special, [text]) == (1, found["tokens"][a:b])
            continue
        whole = texts[segment]
        assert whole is not None
        assert text == whole[start:stop]
        assert text.isalpha() or text == "."
        assert start == found["offsets"][a][0]
        assert stop == found["offsets"][b - 1][1]
    said = [word for word, segment in zip(words["text"], words["segments"], strict=True)
            if segment == 0]  # fmt: skip
    assert said == [*SENTENCE.removesuffix(".").split(), "."]

    weights = words_of(weights_of(asked), spans)
    assert asked.module == TEXT_MODULE or weights.shape[-1] < len(found["tokens"])
    close(found["weights"], weights)
    close(found["rollout"], rollouts(weights))
    ids = [tuple(found["token_ids"][a:b]) for a, b in spans]
    same = [ids.index(own) for own in ids]
    check_numbers(found, weights, same, words["special_mask"])
