"""Results over text: what was asked for by its name, words, and what other libraries take."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot

from attention_client import (
    AttentionClient,
    NotReturnedError,
    TextAttention,
    TextReturn,
    TextWeightsSelection,
    _calls,
    attention_map,
)
from attention_client._messages import Answer
from attention_wire import bodies
from tests.client.conftest import Ask
from tests.client.scripted import Reply, ScriptedServer

RNG = np.random.default_rng(11)
TEXT, PAIR = "unbelievable cats", "cats"
TOKENS: dict[str, Any] = {
    "tokens": ["[CLS]", "un", "##bel", "##able", "cats", "[SEP]", "cats", "[SEP]"],
    "token_ids": [101, 7, 8, 9, 10, 102, 10, 102],
    "offsets": [(0, 0), (0, 2), (2, 8), (8, 12), (13, 17), (0, 0), (0, 4), (0, 0)],
    # The pair's first word is word 0 too: only its segment tells it from the text's.
    "word_ids": [None, 0, 0, 0, 1, None, 0, None],
    "special_tokens_mask": [1, 0, 0, 0, 0, 1, 0, 1],
    "segments": [None, 0, 0, 0, 0, None, 1, None],
}
SPANS = [(0, 1), (1, 4), (4, 5), (5, 6), (6, 7), (7, 8)]
WORDS = ["[CLS]", "unbelievable", "cats", "[SEP]", "cats", "[SEP]"]
HEADS = 5
LENGTH = len(TOKENS["tokens"])


def random(*shape: int) -> np.ndarray:
    array = RNG.random(shape, np.float32)
    array /= array.sum(-1, keepdims=True)
    return array


def measures(names: str) -> dict[str, Any]:
    return {name: random(2, HEADS) for name in names.split()}


PARTS: dict[str, Any] = {
    "entropy": random(2, HEADS, LENGTH),
    "statistics": measures("entropy maximum distance first separator itself"),
    "classes": {
        **measures("previous next first separator duplicate induction"),
        "labels": [["first", None, "previous", None, None], [None] * HEADS],
    },
    "rollout": random(2, LENGTH, LENGTH),
    "flow": random(2, LENGTH, LENGTH),
    "blocks": random(2, HEADS, 2, 2),
    "inputs": [
        {
            **{name: random(1, HEADS, LENGTH, 4) for name in ("query", "key", "value")},
            "scale": 0.25,
            "is_causal": True,
            "left_window_size": 3,
            "right_window_size": -1,
        }
        for _ in range(2)
    ],
}


def reply(**parts: Any) -> bytes:
    fields = {"module": "m", "provider": "p", "results": [{**TOKENS, **parts}]}
    return bytes(bodies.write(bodies.SAFETENSORS, fields, "response"))


def result_of(parts: dict[str, Any], **asked: Any) -> TextAttention:
    """What a call of both texts makes of an answer with these parts."""
    options = {"layers": "all", "heads": "all", "return_": None, **asked}
    call = _calls.text_attention(TEXT, PAIR, module=None, truncate=False, timeout=None, **options)
    read = call.parse(Answer(200, {"content-type": bodies.SAFETENSORS}, reply(**parts)))
    assert isinstance(read, TextAttention)
    return read


# --- What was asked for ----------------------------------------------------------------


def test_every_part_stands_under_its_name() -> None:
    result = result_of({**PARTS, "change": random(LENGTH, 3)})
    for name in ("entropy", "rollout", "flow", "blocks"):
        np.testing.assert_array_equal(getattr(result, name), PARTS[name])
    for name in ("statistics", "classes"):
        for measure, expected in PARTS[name].items():
            given = getattr(getattr(result, name), measure)
            if isinstance(expected, list):
                assert given == expected
            else:
                np.testing.assert_array_equal(given, expected)
    assert result.change.shape == (LENGTH, 3)
    assert result.layers == [0, 1]
    assert repr(result) == (
        f"TextAttention(tokens=8, entropy=float32[2, 5, 8], rollout=float32[2, 8, 8], "
        f"flow=float32[2, 8, 8], blocks=float32[2, 5, 2, 2], change=float32[{LENGTH}, 3], "
        "statistics, classes, inputs, module='m', provider='p')"
    )
    assert str(result) == repr(result)


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("output", "{'output': True}"),
        ("weights", "{'weights': True}"),
        ("top_k", "{'weights': {'top_k': 8}}"),
        *((name, f"{{'{name}': True}}") for name in PARTS),
        ("change", "ablate=[(layer, head), ...]"),
        ("word_spans", "unit='word'"),
    ],
)
def test_what_was_not_asked_for_says_how_to_ask(name: str, cure: str) -> None:
    result = result_of({})
    with pytest.raises(NotReturnedError) as caught:
        getattr(result, name)
    assert str(caught.value).startswith(f"{name}: ")
    assert cure in str(caught.value)
    assert "modules give" not in str(caught.value)
    assert not hasattr(result, name)


def test_the_top_k_of_each_row() -> None:
    indices = np.arange(2 * 3 * LENGTH * 2, dtype=np.int32).reshape(2, 3, LENGTH, 2) % LENGTH
    top = {"indices": indices, "values": random(2, 3, LENGTH, 2), "rest": random(2, 3, LENGTH)}
    result = result_of({"weights": top}, heads=[4, 0, 2])
    np.testing.assert_array_equal(result.top_k.indices, indices)
    np.testing.assert_array_equal(result.top_k.values, top["values"])
    np.testing.assert_array_equal(result.top_k.rest, top["rest"])
    assert (result.layers, result.heads) == ([0, 1], [4, 0, 2])
    with pytest.raises(NotReturnedError, match=r"top k of them only; use \.top_k"):
        _ = result.weights


def test_inputs_go_into_a_call_with_tensors() -> None:
    result = result_of({"inputs": PARTS["inputs"]}, layers=[5, 1])
    assert [each.layer for each in result.inputs] == [5, 1]
    arguments = result.inputs[1].arguments()
    assert set(arguments) == set(PARTS["inputs"][1])
    for name, expected in PARTS["inputs"][1].items():
        np.testing.assert_array_equal(arguments[name], expected)
    assert repr(result.inputs[0]) == (
        "LayerInputs(layer=5, query=float32[1, 5, 8, 4], key=float32[1, 5, 8, 4], "
        "value=float32[1, 5, 8, 4])"
    )


def test_inputs_are_computed_with_by_the_service(client: AttentionClient) -> None:
    """Their names and forms are those that ``attention`` takes."""
    inputs = result_of({"inputs": PARTS["inputs"]}).inputs[0]
    weights = client.attention(**inputs.arguments()).weights
    query, key = inputs.query.astype(np.float64), inputs.key.astype(np.float64)
    rows, columns = np.indices((LENGTH, LENGTH))
    seen = (columns <= rows) & (rows - columns <= 3)
    scores = np.where(seen, 0.25 * query @ key.swapaxes(-1, -2), -np.inf)
    expected = np.exp(scores - scores.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(weights, expected, atol=1e-6)


@pytest.mark.parametrize("name", PARTS)
def test_layers_are_counted_by_whatever_there_is(name: str) -> None:
    result = result_of({name: PARTS[name]})
    assert result.layers == [0, 1]
    has_heads = name not in {"rollout", "flow"}
    assert result.heads == (list(range(HEADS)) if has_heads else [])
    chosen = result_of({name: PARTS[name]}, layers=[7, 3], heads=[1])
    assert (chosen.layers, chosen.heads) == ([7, 3], [1])


def test_heads_that_were_reduced_to_one() -> None:
    weights = random(2, 1, LENGTH, LENGTH)
    asked = {"weights": {"reduce": "max"}}
    result = result_of({"weights": weights}, return_=asked)
    assert (result.heads, result.reduced) == ([], "max")
    assert result.map(0).startswith("layer 0, max of all heads; ")
    result = result_of({"weights": weights}, return_=asked, heads=[1, 4])
    assert result.heads == [1, 4]
    assert result.map().startswith("mean of 2 layers, max of 2 heads; ")
    result = result_of({"weights": weights}, return_=asked, heads=[3])
    assert result.map(1).startswith("layer 1, head 3; ")
    result = result_of({"weights": weights, "entropy": PARTS["entropy"]}, return_=asked)
    assert result.heads == [0, 1, 2, 3, 4]
    with pytest.raises(NotReturnedError, match="call with unit='word'"):
        result.words()


@pytest.mark.parametrize("queries", [[6, 1], {"start": 3, "stop": 5}])
def test_rows_that_were_selected_keep_their_tokens(queries: Any) -> None:
    rows = [6, 1] if isinstance(queries, list) else [3, 4]
    weights = random(1, 2, 2, LENGTH)
    result = result_of({"weights": weights}, return_={"weights": {"queries": queries}})
    assert result.queries == rows
    assert result.map() == attention_map(
        [TOKENS["tokens"][row] for row in rows],
        weights.mean((0, 1), dtype=np.float64),
        key_tokens=TOKENS["tokens"],
        special=TOKENS["special_tokens_mask"],
        caption="layer 0, mean of 2 heads",
    )
    for method in (result.words, result.to_bertviz, lambda: result.to_circuitsvis(0)):
        with pytest.raises(NotReturnedError, match="some rows of the weights only"):
            method()


def test_the_service_gives_every_part(client: AttentionClient) -> None:
    asked = dict.fromkeys(PARTS, True)
    options: dict[str, Any] = {"layers": [5, 2], "ablate": [(0, 1)], "return_": asked}
    result = client.text_attention("The cat sat.", "It purred.", **options)
    length = len(result.tokens)
    assert (result.layers, result.heads) == ([5, 2], list(range(12)))
    assert result.entropy.shape == (2, 12, length)
    weights = result.weights.astype(np.float64)
    entropy = -(weights * np.log(weights)).sum(-1)
    np.testing.assert_allclose(result.entropy, entropy, atol=1e-4)
    np.testing.assert_allclose(result.statistics.first, weights[..., 0].mean(-1), atol=1e-5)
    assert [len(labels) for labels in result.classes.labels] == [12, 12]
    assert result.classes.induction.shape == (2, 12)
    assert result.rollout.shape == result.flow.shape == (2, length, length)
    assert result.blocks.shape == (2, 12, 2, 2)
    assert [each.layer for each in result.inputs] == [5, 2]
    assert result.change.shape == result.output.shape
    assert np.abs(result.change).max() > 1e-3


# --- Words -----------------------------------------------------------------------------


def merged(weights: np.ndarray) -> np.ndarray:
    """Written out: rows are averaged, columns added up."""
    out = np.zeros((*weights.shape[:2], len(SPANS), len(SPANS)))
    for row, (top, bottom) in enumerate(SPANS):
        for column, (left, right) in enumerate(SPANS):
            part = weights[:, :, top:bottom, left:right].astype(np.float64)
            out[:, :, row, column] = part.sum((2, 3)) / (bottom - top)
    return out


def test_tokens_become_words() -> None:
    weights, output = random(2, 3, LENGTH, LENGTH), random(LENGTH, 4)
    result = result_of({**PARTS, "weights": weights, "output": output})
    assert (result.unit, result.labels) == ("token", TOKENS["tokens"])
    words = result.words()
    assert (words.unit, words.labels) == ("word", WORDS)
    assert words.word_spans.tokens == SPANS
    assert words.word_spans.offsets == [(0, 0), (0, 12), (13, 17), (0, 0), (0, 4), (0, 0)]
    assert words.word_spans.segments == [None, 0, 0, None, 1, None]
    assert words.word_spans.special_mask == [1, 0, 0, 1, 0, 1]
    np.testing.assert_allclose(words.weights, merged(weights), rtol=1e-6)
    assert words.weights.dtype == np.float32
    np.testing.assert_array_equal(words.output, output)
    np.testing.assert_array_equal(words.head(1, 2), words.weights[1, 2])
    assert words.words() is words
    assert words.map(0, 0) == attention_map(
        WORDS, words.weights[0, 0], special=[1, 0, 0, 1, 0, 1], caption="layer 0, head 0"
    )
    assert repr(words).startswith("TextAttention(tokens=8, words=6, output=float32[8, 4], weights=")
    assert len(words.inputs) == 2
    for name in ("entropy", "statistics", "classes", "rollout"):
        with pytest.raises(NotReturnedError, match=f"unit='word', return_={{'{name}': True}}"):
            getattr(words, name)
    assert (result.unit, result.weights.shape) == ("token", (2, 3, LENGTH, LENGTH))


def test_tokens_that_stand_in_for_characters_are_shown_by_these() -> None:
    """So that three unknown signs are told from each other, wherever a result is drawn."""
    tokens = ["[CLS]", "[UNK]", "<0xE2>", "[x]", "[UNK]", "[SEP]"]
    result = dataclasses.replace(
        result_of({"weights": random(1, 1, 6, 6)}),
        text="❤🍕[x]",
        text_pair="注",
        tokens=tokens,
        offsets=[(0, 0), (0, 1), (1, 2), (2, 5), (0, 1), (0, 0)],
        segments=[None, 0, 0, 0, 1, None],
        special_tokens_mask=[1, 0, 0, 0, 0, 1],
    )
    shown = ["[CLS]", "❤", "🍕", "[x]", "注", "[SEP]"]
    assert result.labels == tokens
    assert result.map().startswith(attention_map(
        shown, result.weights[0, 0], special=[1, 0, 0, 0, 0, 1], caption="layer 0, head 0"
    ))  # fmt: skip
    assert "[UNK]" not in result._repr_html_()
    assert [label.get_text() for label in result.plot().get_xticklabels()] == shown
    pyplot.close()


def test_words_of_the_service_are_taken_as_they_are() -> None:
    words = {
        "text": WORDS,
        "offsets": [(0, 0), (0, 12), (13, 17), (0, 0), (0, 4), (0, 0)],
        "tokens": SPANS,
        "segments": [None, 0, 0, None, 1, None],
        "special_mask": [1, 0, 0, 1, 0, 1],
    }
    result = result_of({"words": words, "weights": random(1, 2, 6, 6)}, unit="word")
    assert (result.unit, result.labels) == ("word", WORDS)
    assert result.words() is result
    assert result.to_circuitsvis(0)["tokens"] == WORDS


def test_the_client_s_words_are_the_service_s(client: AttentionClient) -> None:
    text = "An unbelievably (un)tokenizable café: naïve, 注意 weights!"
    tokens = client.text_attention(text, "A second one, too.")
    words = client.text_attention(text, "A second one, too.", unit="word")
    made = tokens.words()
    assert made.word_spans == words.word_spans
    np.testing.assert_allclose(made.weights, words.weights, atol=1e-6)


# --- Other libraries -------------------------------------------------------------------


def test_circuitsvis_takes_the_heads_of_a_layer() -> None:
    weights = random(2, 3, LENGTH, LENGTH)
    arguments = result_of({"weights": weights}).to_circuitsvis(-1)
    assert set(arguments) == {"tokens", "attention"}
    assert arguments["tokens"] == TOKENS["tokens"]
    np.testing.assert_array_equal(arguments["attention"], weights[1])
    with pytest.raises(IndexError, match="layer 2: 2 were returned"):
        result_of({"weights": weights}).to_circuitsvis(2)


MISSING = """
import sys
sys.modules["{package}"] = None
from tests.client.test_text_results import random, result_of
try:
    result_of({{"weights": random(1, 1, 8, 8)}}).{method}()
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(("method", "package"), [("to_xarray", "xarray"), ("to_bertviz", "torch")])
def test_a_library_that_is_not_there_is_named(method: str, package: str) -> None:
    code = MISSING.format(package=package, method=method)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == f"{method} needs the package '{package}': pip install {package}\n"


# --- Requests --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "return_",
    [
        {"weights": {"top_k": 2, "value_weighted": True}, "entropy": True},
        TextReturn(weights=TextWeightsSelection(top_k=2, value_weighted=True), entropy=True),
    ],
)
def test_what_is_sent(ask: Ask, server: ScriptedServer, return_: Any) -> None:
    server.script.append(Reply(200, reply(), bodies.SAFETENSORS))
    ask(
        server.url,
        "text_attention",
        TEXT,
        PAIR,
        unit="word",
        ablate=[(np.int64(3), 1), (0, 2)],
        return_=return_,
    )
    assert json.loads(server.received[0].body) == {
        "text": TEXT,
        "text_pair": PAIR,
        "unit": "word",
        "ablate": [[3, 1], [0, 2]],
        "return": {"weights": {"top_k": 2, "value_weighted": True}, "entropy": True},
    }
