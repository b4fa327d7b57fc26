"""Text of all scripts: tokens, spans and words as an independent tokenizer has them.

Spans count characters (Unicode code points) of the text that was sent, whatever the tokenizer
made of it: taken as slices they give back what each token stands for.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from tests.api import bert_tokens
from tests.api.support import (
    SAFETENSORS,
    TEXT,
    Caller,
    body_of,
)
from tests.conftest import ROOT, TEXT_MODULE

VOCABULARY: dict[str, int] = json.loads(
    (ROOT / ".modules" / TEXT_MODULE / "tokenizer.json").read_text(encoding="utf-8")
)["model"]["vocab"]

TEXTS = {
    "ascii": "The animal didn't cross the street, because it was too tired.",
    "zero_width_space": "zero\u200bwidth \u200b\u200b space",
    "zero_width_joiners": "\u200cno\u200djoin\u200cer\u200d",
    "byte_order_mark": "\ufeffmarked \ufeff text\ufeff",
    "soft_hyphen": "hy\u00adphen\u00adated words",
    "direction_marks": "\u200fleft \u202eright\u202c to\u2066 left\u2069",
    "arabic": "مرحبا بالعالم، كيف حالك؟",
    "arabic_with_vowels": "اَلسَّلَامُ عَلَيْكُمْ",
    "hebrew": "שלום עולם",
    "hebrew_with_points": "בְּרֵאשִׁית בָּרָא",
    "mixed_directions": "The word שלום means peace; سلام too.",
    "emoji": "I \U0001f600 love \U0001f408 cats\U0001f431!",
    "emoji_family": "a \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family",
    "emoji_skin_tone": "thumbs \U0001f44d\U0001f3fd up",
    "emoji_flag": "from \U0001f1f3\U0001f1f1, with \u2764\ufe0f",
    "keycap": "press 1\ufe0f\u20e3 now",
    "composed": "café naïve Ångström",
    "decomposed": unicodedata.normalize("NFD", "café naïve Ångström"),
    "stacked_marks": "Z\u0351\u036b\u0343a\u0322\u0328l\u0334\u0321go\u0489 text",
    "marks_alone": "\u0301 a \u0301\u0302",
    "vietnamese": "Tiếng Việt là ngôn ngữ",
    "hangul": "한국어 텍스트",
    "hangul_jamo": unicodedata.normalize("NFD", "한국어"),
    "cjk": "我爱北京天安门。I love 北京!",
    "cjk_beyond_the_bmp": "a\U00020000b \U0002f800 c",
    "kana": "ひらがなとカタカナ",
    "devanagari": "नमस्ते दुनिया",
    "thai": "สวัสดีชาวโลก",
    "dotted_capital_i": "İstanbul and Iğdır",
    "sharp_s": "Straße GROẞ",
    "ligature": "ﬁne oﬃce",
    "astral_letters": "\U0001d400\U0001d401 bold \U0001d4d0",
    "no_break_space": "no\u00a0break\u2009thin\u3000wide",
    "line_separators": "one\u2028two\u2029three\x0bfour",
    "controls": "bell\x07 and \x00null\x1b[0m",
    "replacement": "a \ufffd b\ufffdc",
    "private_use": "a\ue000b \uf8ff c",
    "long_word": "a" * 101 + " b",
    "unknown_word": "\u2603\u2603x snow",
}


NO_TENSORS = {"return": {"output": False, "weights": False}}


def asked(caller: Caller, **fields: Any) -> list[dict[str, Any]]:
    answer = caller.post(TEXT, fields)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_tokens_and_spans_are_those_of_the_text(caller: Caller, text: str) -> None:
    (result,) = asked(caller, text=text, layers=[0], heads=[0])
    expected = bert_tokens.tokens(text, VOCABULARY)
    assert result["tokens"] == ["[CLS]", *[token.piece for token in expected], "[SEP]"]
    spans = [[token.begin, token.end] for token in expected]
    assert result["offsets"] == [[0, 0], *spans, [0, 0]]
    assert result["word_ids"] == [None, *[token.word for token in expected], None]
    assert result["token_ids"] == [VOCABULARY[token] for token in result["tokens"]]
    assert result["segments"] == [None, *[0] * len(expected), None]
    assert result["special_tokens_mask"] == [1, *[0] * len(expected), 1]
    length = len(expected) + 2
    weights = np.array(result["weights"])
    assert weights.shape == (1, 1, length, length)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    assert np.array(result["output"]).shape == (length, 384)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_span_cut_out_of_the_text_is_its_token_again(caller: Caller, text: str) -> None:
    """Tokenized by itself, what a span of a word holds gives that word's tokens."""
    (result,) = asked(caller, text=text, **NO_TENSORS)
    words: dict[int, list[int]] = {}
    for index, word in enumerate(result["word_ids"]):
        if word is not None:
            words.setdefault(word, []).append(index)
    parts = [
        text[result["offsets"][tokens[0]][0] : result["offsets"][tokens[-1]][1]]
        for tokens in words.values()
    ]
    assert parts
    assert all(parts)
    for again, tokens in zip(asked(caller, text=parts, **NO_TENSORS), words.values(), strict=True):
        assert again["tokens"][1:-1] == [result["tokens"][index] for index in tokens]


def test_spans_of_a_pair_are_in_the_text_that_the_segment_names(caller: Caller) -> None:
    pair = ("Where is the \U0001f408 cat?", "שלום: the \u200bcat sat \U0001f600 here.")
    (result,) = asked(caller, text=pair[0], text_pair=pair[1], **NO_TENSORS)
    expected = [bert_tokens.tokens(text, VOCABULARY) for text in pair]
    assert result["segments"] == [
        None, *[0] * len(expected[0]), None, *[1] * len(expected[1]), None
    ]  # fmt: skip
    for segment in (0, 1):
        here = [index for index, other in enumerate(result["segments"]) if other == segment]
        assert [result["tokens"][i] for i in here] == [t.piece for t in expected[segment]]
        assert [result["offsets"][i] for i in here] == [[t.begin, t.end] for t in expected[segment]]


def test_a_list_of_texts_gives_each_what_it_gives_alone(caller: Caller) -> None:
    texts = list(TEXTS.values())
    several = asked(caller, text=texts, layers=[5], heads=[7])
    assert len(several) == len(texts)
    for text, result in zip(texts[::7], several[::7], strict=True):
        assert asked(caller, text=text, layers=[5], heads=[7]) == [result]


@pytest.mark.parametrize("ascii_only", [True, False], ids=["escaped", "utf8"])
def test_both_forms_of_a_request_and_of_an_answer_carry_every_character(
    caller: Caller, ascii_only: bool
) -> None:
    text = " ".join(TEXTS.values())[:700]
    fields = {"text": text, "layers": [0], "heads": [0], "truncate": True}
    request = json.dumps(fields, ensure_ascii=ascii_only)
    body = body_of(json.dumps({"__metadata__": {"request": request}}, ensure_ascii=False).encode())
    answer = caller.post(TEXT, body, Content_Type=SAFETENSORS)
    assert answer.status_code == 200, answer.text
    length = int.from_bytes(answer.content[:8], "little")
    header = json.loads(answer.content[8 : 8 + length])
    (binary,) = json.loads(header["__metadata__"]["response"])["results"]
    (listed,) = caller.post(TEXT, request.encode()).json()["results"]
    for name, array in load(answer.content).items():
        assert name.startswith("results.0.")
        np.testing.assert_array_equal(array, np.array(listed.pop(name[10:]), np.float32))
    assert binary == listed
