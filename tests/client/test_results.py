"""What results hold, how they show themselves, and the maps that they draw."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from attention_client import (
    AttentionClient,
    AttentionError,
    AttentionResult,
    NotReturnedError,
    TextAttention,
    attention_map,
)

SENTENCE = "The animal didn't cross the street because it was too tired."
RNG = np.random.default_rng(3)


def text_result(tokens: list[str], **changes: Any) -> TextAttention:
    """A result of two layers and three heads over these tokens, the outer ones special."""
    length = len(tokens)
    weights = RNG.random((2, 3, length, length)).astype(np.float32)
    fields: dict[str, Any] = {
        "arrays": {"weights": weights / weights.sum(-1, keepdims=True)},
        "module": "m",
        "provider": "CPUExecutionProvider",
        "request_id": "r",
        "text": " ".join(tokens[1:-1]),
        "text_pair": None,
        "tokens": tokens,
        "token_ids": list(range(length)),
        "offsets": [(0, 0)] * length,
        "word_ids": [None] * length,
        "special_tokens_mask": [1] + [0] * (length - 2) + [1],
        "segments": [0] * length,
        "layers": [4, 1],
        "heads": [0, 2, 9],
    }
    return TextAttention(**fields | changes)


# --- Results ---------------------------------------------------------------------------


def test_a_repr_shows_shapes_not_numbers() -> None:
    arrays = {"output": np.ones((2, 3), np.float16), "weights": np.ones((2, 4), np.float16)}
    result = AttentionResult(arrays=arrays, module=None, provider="P", request_id="r")
    assert repr(result) == (
        "AttentionResult(output=float16[2, 3], weights=float16[2, 4], provider='P', request_id='r')"
    )
    assert repr(text_result(["[CLS]", "a", "[SEP]"])) == (
        "TextAttention(tokens=3, weights=float32[2, 3, 3, 3], module='m', "
        "provider='CPUExecutionProvider', request_id='r')"
    )


def test_results_are_frozen() -> None:
    result = AttentionResult(arrays={}, module=None, provider="P", request_id=None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.provider = "other"  # type: ignore[misc]


def test_what_was_not_asked_for_says_so() -> None:
    arrays = {"output": np.ones((2, 3), np.float32)}
    result = AttentionResult(arrays=arrays, module=None, provider="P", request_id="r")
    with pytest.raises(
        NotReturnedError, match=r"weights: not asked for.*\(there: output\)"
    ) as caught:
        _ = result.weights
    assert isinstance(caught.value, AttentionError)
    assert not hasattr(result, "weights")
    assert hasattr(result, "output")


def test_one_head() -> None:
    result = text_result(["[CLS]", "a", "[SEP]"])
    np.testing.assert_array_equal(result.head(1, 2), result.weights[1, 2])
    np.testing.assert_array_equal(result.head(-2, -1), result.weights[0, 2])


@pytest.mark.parametrize(
    ("layer", "head", "message"),
    [
        (2, 0, r"layer 2: 2 were returned, 0 to 1; in the model they are \[4, 1\]$"),
        (4, 0, r"layer 4: .* in the model they are \[4, 1\]: give 0 for layer 4"),
        (0, 9, r"head 9: .* in the model they are \[0, 2, 9\]: give 2 for head 9"),
        (-3, 0, "layer -3: 2 were returned, 0 to 1"),
        (0, 3, "head 3: 3 were returned, 0 to 2"),
    ],
)
def test_a_head_that_was_not_returned(layer: int, head: int, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        text_result(["[CLS]", "a", "[SEP]"]).head(layer, head)


def test_a_map_draws_the_mean_and_names_what_it_draws() -> None:
    tokens = ["[CLS]", "a", "cat", "[SEP]"]
    result = text_result(tokens)
    special = result.special_tokens_mask

    def drawn(weights: np.ndarray, caption: str) -> str:
        return attention_map(tokens, weights, special=special, caption=caption)

    weights = result.weights.astype(np.float64)
    assert result.map() == drawn(weights.mean((0, 1)), "mean of 2 layers, mean of 3 heads")
    assert result.map(layer=0) == drawn(weights[0].mean(0), "layer 4, mean of 3 heads")
    assert result.map(head=-1) == drawn(weights[:, 2].mean(0), "mean of 2 layers, head 9")
    assert result.map(1, 2) == drawn(weights[1, 2], "layer 1, head 9")
    assert str(result) == result.map()
    with pytest.raises(IndexError, match="layer 2"):
        result.map(2)


def test_a_result_without_weights_is_still_shown() -> None:
    result = text_result(["[CLS]", "[SEP]"], arrays={})
    assert str(result) == repr(result)
    with pytest.raises(NotReturnedError):
        result.map()


# --- Maps ------------------------------------------------------------------------------


def test_a_small_map_whole() -> None:
    weights = [[0.9, 0.1, 0, 0], [0.5, 0.35, 0.15, 0], [0.2, 0.3, 0.25, 0.25], [0, 0, 0, 0]]
    assert attention_map(["the", "cat", "sat", "down"], weights) == (
        "rows: queries, columns: keys\n"
        "           d\n"
        "     t c s o\n"
        "     h a a w\n"
        "     e t t n\n"
        "the  ██··     → the 0.90\n"
        "cat  ▒▒░░··   → the 0.50\n"
        "sat  ░░░░░░░░ → cat 0.30\n"
        "down\n"
        "·· ≥ 0.072  ░░ ≥ 0.18  ▒▒ ≥ 0.36  ▓▓ ≥ 0.54  ██ ≥ 0.72"
    )


def test_wide_and_combining_characters_keep_their_columns() -> None:
    tokens = ["注意", "cafe\u0301", "e\u0301e\u0301e\u0301", "ﾊﾛ", "a\u200db"]
    assert attention_map(tokens, np.eye(5)) == (
        "rows: queries, columns: keys\n"
        "       c\n"
        "       a e\u0301\n"
        "     注f e\u0301 ﾊ a\n"
        "     意e\u0301 e\u0301 ﾛ b\n"
        "注意 ██         → 注意 1.00\n"
        "cafe\u0301   ██       → cafe\u0301 1.00\n"
        "e\u0301e\u0301e\u0301      ██     → e\u0301e\u0301e\u0301 1.00\n"
        "ﾊﾛ         ██   → ﾊﾛ 1.00\n"
        "ab           ██ → ab 1.00\n"
        "·· ≥ 0.08  ░░ ≥ 0.2  ▒▒ ≥ 0.4  ▓▓ ≥ 0.6  ██ ≥ 0.8"
    )


def test_long_and_unprintable_labels() -> None:
    drawing = attention_map(["internationalization", "tab\tnew\nend\x1b[31m"], np.eye(2))
    lines = drawing.splitlines()
    assert lines[-3].startswith("international… ██")
    assert lines[-2].startswith("tab␣new␣end�[…")
    assert "\x1b" not in drawing
    assert len(lines) == 1 + 10 + 2 + 1


def test_labels_are_shortened_by_their_width() -> None:
    drawing = attention_map(["注意力机制的可视化图", "ok"], np.eye(2))
    assert drawing.splitlines()[-3] == "注意力机制的… ██   → 注意力机制… 1.00"


def test_special_keys_set_neither_shades_nor_notes() -> None:
    weights = [[0.8, 0.2], [0.9, 0.1]]
    rows = attention_map(["[CLS]", "cat"], weights, special=[1, 0]).splitlines()
    assert rows[-3:] == [
        "[CLS] ████ → cat 0.20",
        "cat   ██▒▒ → cat 0.10",
        "·· ≥ 0.016  ░░ ≥ 0.04  ▒▒ ≥ 0.08  ▓▓ ≥ 0.12  ██ ≥ 0.16",
    ]


def test_what_is_faint_stays_faint_beside_special_keys() -> None:
    drawing = attention_map(["[CLS]", "cat"], [[0.999, 0.001]] * 2, special=[1, 0])
    assert drawing.splitlines()[-2] == "cat   ██"


def test_keys_of_their_own() -> None:
    drawing = attention_map(["a"], [[0.25, 0.75]], key_tokens=["x", "y"], caption="head 3")
    assert drawing.splitlines()[:3] == [
        "head 3; rows: queries, columns: keys",
        "  x y",
        "a ░░██ → y 0.75",
    ]


def test_weights_that_are_no_numbers_are_marked() -> None:
    weights = [[np.nan, 1.0], [0.0, 1.0]]
    assert attention_map(["a", "b"], weights).splitlines()[2:4] == [
        "a ? ██ → b 1.00",
        "b   ██ → b 1.00",
    ]


@pytest.mark.parametrize("tokens", [[], ["a"], ["a", "b"]])
def test_no_weight_at_all(tokens: list[str]) -> None:
    size = len(tokens)
    assert attention_map(tokens, np.zeros((size, size))).endswith("(no weight above 0)")


@pytest.mark.parametrize("shape", [(2,), (2, 3), (3, 2), (1, 2, 2)])
def test_shapes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2 queries"):
        attention_map(["a", "b"], np.zeros(shape))


@pytest.mark.parametrize("length", [1, 30, 31, 40, 41, 42, 43, 100, 512])
def test_maps_stay_within_their_width(length: int) -> None:
    tokens = [f"token{index}" for index in range(length)]
    weights = RNG.random((length, length))
    drawing = attention_map(tokens, weights / weights.sum(-1, keepdims=True))
    lines = drawing.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) < 70
    cropped = f"of {length} queries" in drawing
    assert cropped == (length > 45)
    assert ("→" in drawing) == (length < 39)


def test_a_real_sentence_fits_a_terminal(client: AttentionClient) -> None:
    drawing = str(client.text_attention(SENTENCE))
    lines = drawing.splitlines()
    assert max(map(len, lines)) <= 80
    it = next(line for line in lines if line.startswith("it "))
    assert it.split(" → ")[1].startswith("tired ")
    assert "\x1b" not in drawing


def test_maps_go_through_a_pipe() -> None:
    code = "from attention_client import attention_map; print(attention_map(['a'], [[1.0]]))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert "██ → a 1.00" in run.stdout.decode()
