"""Units of a text, tokens or words, against lists and sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from attention_wire.units import Units, as_written

RNG = np.random.default_rng(23)
HEADS = 3
# [CLS] the cat the cat sat [SEP] the cat sat cat cat [SEP]
IDS = [101, 7, 8, 7, 8, 9, 102, 7, 8, 9, 8, 8, 102]
SPECIAL = [1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
SEGMENTS = [None, 0, 0, 0, 0, 0, None, 1, 1, 1, 1, 1, None]
WORDS = [None, 0, 0, 1, 1, 2, None, 0, 0, 1, 2, 2, None]
PAIR = Units.of_tokens(IDS, SPECIAL, SEGMENTS)


def test_tokens_are_units_for_themselves() -> None:
    assert len(PAIR) == len(IDS)
    assert PAIR.is_whole
    assert PAIR.starts.tolist() == list(range(13))
    assert PAIR.stops.tolist() == list(range(1, 14))
    assert PAIR.ids.tolist() == IDS
    assert PAIR.special.tolist() == [bool(mark) for mark in SPECIAL]
    assert PAIR.segments.tolist() == [-1, 0, 0, 0, 0, 0, -1, 1, 1, 1, 1, 1, -1]
    assert {PAIR.starts.dtype, PAIR.ids.dtype, PAIR.segments.dtype} == {np.dtype(np.int64)}


def test_words_are_runs_of_tokens() -> None:
    words = Units.of_words(IDS, WORDS, SPECIAL, SEGMENTS)
    assert words.starts.tolist() == [0, 1, 3, 5, 6, 7, 9, 10, 12]
    assert words.stops.tolist() == [1, 3, 5, 6, 7, 9, 10, 12, 13]
    assert words.special.tolist() == [True, False, False, False, True, False, False, False, True]
    assert words.segments.tolist() == [-1, 0, 0, 0, -1, 1, 1, 1, -1]
    same = [words.ids.tolist().index(number) for number in words.ids.tolist()]
    assert same == [0, 1, 1, 3, 4, 1, 3, 7, 4]
    assert not words.is_whole


def test_what_parts_words() -> None:
    # No word; no word again; the same word number in both texts.
    words = Units.of_words([1, 1, 2, 3], [None, None, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1])
    assert words.starts.tolist() == [0, 1, 2, 3]
    assert words.is_whole


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [(0, 1, 0, 1), (1, 2, 1, 3), (2, 3, 3, 5), (3, 4, 5, 6)]),
        (3, [(0, 2, 0, 3), (2, 4, 3, 6)]),
        (4, [(0, 2, 0, 3), (2, 4, 3, 6)]),
        (100, [(0, 4, 0, 6)]),
    ],
)
def test_blocks_cover_all(most: int, expected: list[tuple[int, int, int, int]]) -> None:
    words = Units.of_words([1, 2, 3, 4, 5, 6], [0, 1, 1, 2, 2, 3], [0] * 6, [0] * 6)
    found = [(a.start, a.stop, b.start, b.stop) for a, b in words.blocks(most)]
    assert found == expected


@pytest.mark.parametrize("most", [1, 4, 100])
def test_rows_of_words_are_means_and_columns_sums(most: int) -> None:
    words = Units.of_words(IDS, WORDS, SPECIAL, SEGMENTS)
    weights = RNG.random((HEADS, len(IDS), len(IDS)), np.float32)
    merged = np.concatenate(
        [words.merge(weights[:, tokens], units) for units, tokens in words.blocks(most)], axis=1
    )
    assert merged.dtype == np.float32
    assert merged.shape == (HEADS, len(words), len(words))
    spans = list(zip(words.starts.tolist(), words.stops.tolist(), strict=True))
    for head in range(HEADS):
        for row, (start, stop) in enumerate(spans):
            for column, (first, last) in enumerate(spans):
                cells = [
                    float(weights[head, token, key])
                    for token in range(start, stop)
                    for key in range(first, last)
                ]
                assert merged[head, row, column] == pytest.approx(
                    math.fsum(cells) / (stop - start), abs=1e-6
                )


def test_tokens_are_not_copied() -> None:
    weights = RNG.random((HEADS, 4, len(IDS)), np.float32)
    assert PAIR.merge(weights, slice(0, 4)) is weights


def test_two_texts_without_a_token_between_share_no_word() -> None:
    words = Units.of_words([5, 6], [0, 0], [0, 0], [0, 1])
    told = words.words(["cats", "dogs"], [(0, 4)] * 2, ("cats", "dogs"))
    assert (told.text, told.tokens) == (["cats", "dogs"], [(0, 1), (1, 2)])


def test_a_token_of_a_text_that_is_in_no_word_is_told_as_the_text_writes_it() -> None:
    words = Units.of_words([101, 9, 9], [None, None, 0], [1, 0, 0], [None, 0, 0])
    told = words.words(["[CLS]", "<mask>", "_dog"], [(0, 0), (0, 6), (6, 10)], ("<MASK> dog",))
    assert told.text == ["[CLS]", "<MASK>", " dog"]
    assert told.special_mask == [1, 0, 0]


def test_what_stands_in_for_characters_is_shown_by_them() -> None:
    tokens = ["[CLS]", "the", "[UNK]", "<0xE2>", "<b>", "[", "[UNK]", "<unk>"]
    offsets = [(0, 0), (0, 3), (4, 5), (5, 6), (6, 9), (9, 10), (0, 1), (1, 1)]
    segments = [None, 0, 0, 0, 0, 0, 1, 1]
    shown = as_written(tokens, offsets, segments, ("The ❤🍕<b>[", "注"))
    assert shown == ["[CLS]", "the", "❤", "🍕", "<b>", "[", "注", "<unk>"]
