"""What xarray, BertViz and CircuitsVis themselves make of the client's results.

Runs in the environment of requirements.txt, from the root of the checkout, and asks no service:
python -m tests.parity.libraries. Draws a text and a pair with each library and reads the values
back out of what it gives. Ends with an AssertionError where one differs.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import xarray
from bertviz import head_view, model_view
from circuitsvis.attention import attention_heads, attention_patterns

from attention_client import TextAttention
from attention_wire.tensors import Array

LAYERS, HEADS = [7, 2, 4], [5, 0]


def made(tokens: list[str], words: list[int | None], segments: list[int | None]) -> TextAttention:
    """A result over these tokens; the texts are their characters one after the other."""
    length = len(tokens)
    weights = np.random.default_rng(5).random((len(LAYERS), len(HEADS), length, length), np.float32)
    weights /= weights.sum(-1, keepdims=True)
    weights.flags.writeable = False  # as in answers
    texts, offsets = {0: "", 1: ""}, []
    for token, segment in zip(tokens, segments, strict=True):
        if segment is None:
            offsets.append((0, 0))
            continue
        start = len(texts[segment])
        texts[segment] += token.removeprefix("##")
        offsets.append((start, len(texts[segment])))
    return TextAttention(
        arrays={"weights": weights},
        module="m",
        provider="p",
        request_id=None,
        text=texts[0],
        text_pair=texts[1] or None,
        tokens=tokens,
        token_ids=list(range(length)),
        offsets=offsets,
        word_ids=words,
        special_tokens_mask=[int(segment is None) for segment in segments],
        segments=segments,
        layers=LAYERS,
        heads=HEADS,
    )


ONE = made(["[CLS]", "un", "##real", "cats", "[SEP]"], [None, 0, 0, 1, None], [None, 0, 0, 0, None])
PAIR = made(
    ["[CLS]", "cats", "[SEP]", "un", "##real", "[SEP]"],
    [None, 0, None, 0, 0, None],
    [None, 0, None, 1, 1, None],
)
# The token and the word that the second text begins with.
RESULTS = [(ONE, None), (ONE.words(), None), (PAIR, 3), (PAIR.words(), 3)]


def check_xarray(result: TextAttention) -> None:
    """Numbers of layers, heads and tokens select what they name."""
    array = result.to_xarray()
    assert isinstance(array, xarray.DataArray)
    assert array.dims == ("layer", "head", "query", "key")
    assert array.shape == result.weights.shape
    for i, layer in enumerate(LAYERS):
        for j, head in enumerate(HEADS):
            np.testing.assert_array_equal(array.sel(layer=layer, head=head), result.head(i, j))
    for name in ("query", "key"):
        assert array[f"{name}_token"].to_numpy().tolist() == result.labels
        assert array[name].to_numpy().tolist() == list(range(len(result.labels)))
    cats = array.where(array.key_token == "cats", drop=True)
    at = result.labels.index("cats")
    np.testing.assert_array_equal(cats[..., 0], result.weights[..., at])
    assert array.attrs == {"unit": result.unit, "module": "m"}
    assert array.name == "weights"


def check_bertviz(result: TextAttention, second: int | None) -> None:
    """Both views hold the weights and the tokens, and for a pair its four blocks."""
    arguments = result.to_bertviz()
    assert arguments.get("sentence_b_start") == second
    assert all(isinstance(layer, torch.Tensor) for layer in arguments["attention"])
    for view in (head_view, model_view):
        page = view(**arguments, html_action="return").data
        shown = {part["name"]: part for part in _with_key(page, "attention")["attention"]}
        whole = shown[None if second is None else "All"]
        assert whole["left_text"] == whole["right_text"] == result.labels
        np.testing.assert_array_equal(np.float32(whole["attn"]), result.weights)
        if second is None:
            continue
        across = shown["Sentence B -> Sentence A"]
        assert across["left_text"] == result.labels[second:]
        assert across["right_text"] == result.labels[:second]
        block: Array = result.weights[..., second:, :second]
        np.testing.assert_array_equal(np.float32(across["attn"]), block)


def check_circuitsvis(result: TextAttention) -> None:
    """Both views hold the weights of one layer, and the tokens."""
    for layer in range(len(LAYERS)):
        arguments = result.to_circuitsvis(layer)
        for view in (attention_heads, attention_patterns):
            shown = _with_key(view(**arguments).show_code(), "attention")
            assert shown["tokens"] == result.labels
            np.testing.assert_array_equal(np.float32(shown["attention"]), result.weights[layer])


def _with_key(page: str, key: str) -> dict[str, Any]:
    """The first JSON object in a page that has this key."""
    return next(value for value in _objects(page) if key in value)


def _objects(page: str) -> Iterator[dict[str, Any]]:
    decoder, at = json.JSONDecoder(), page.find("{")
    while at >= 0:
        with contextlib.suppress(json.JSONDecodeError):  # what is JavaScript or CSS
            yield decoder.raw_decode(page, at)[0]
        at = page.find("{", at + 1)


def main() -> None:
    """Check every library with every result."""
    for result, second in RESULTS:
        check_xarray(result)
        check_bertviz(result, second)
        check_circuitsvis(result)
    print(f"xarray, bertviz and circuitsvis show what they were given, of {len(RESULTS)} results")


if __name__ == "__main__":
    main()
