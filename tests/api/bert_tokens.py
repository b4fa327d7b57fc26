"""The tokenizer of uncased BERT, written for the tests from its description.

"BERT: Pre-training of Deep Bidirectional Transformers" (https://arxiv.org/abs/1810.04805) with
the WordPiece of https://arxiv.org/abs/1609.08144: clean, set CJK characters apart, lower and
strip accents, split at spaces and punctuation, then take the longest known pieces. Every
character carries its place in the original text along, so that offsets come by themselves.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Container, Iterator
from typing import NamedTuple

_LONGEST_WORD = 100
_CJK = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
        (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))  # fmt: skip


class Token(NamedTuple):
    """A piece of the vocabulary, its span in the text, and the number of its word."""

    piece: str
    begin: int
    end: int
    word: int


class Char(NamedTuple):
    """A normalized character, and the place of the one that it comes from."""

    text: str
    place: int


def tokens(text: str, vocabulary: Container[str]) -> list[Token]:
    """The tokens of a text, without special ones."""
    return [
        token
        for index, word in enumerate(_words(_normalized(text)))
        for token in _pieces(word, index, vocabulary)
    ]


def _normalized(text: str) -> Iterator[Char]:
    for place, char in enumerate(text):
        if char in "\t\n\r" or unicodedata.category(char).startswith("Z"):
            yield Char(" ", place)
        elif unicodedata.category(char).startswith("C") or char == "\ufffd":
            continue
        elif any(first <= ord(char) <= last for first, last in _CJK):
            yield from (Char(" ", place), Char(char, place), Char(" ", place))
        else:
            for part in unicodedata.normalize("NFD", char):
                if unicodedata.category(part) != "Mn":
                    yield from (Char(lower, place) for lower in part.lower())


def _is_punctuation(char: str) -> bool:
    is_ascii_sign = 33 <= ord(char) <= 126 and not char.isalnum()
    return is_ascii_sign or unicodedata.category(char).startswith("P")


def _words(chars: Iterator[Char]) -> Iterator[list[Char]]:
    word: list[Char] = []
    for char in chars:
        apart = char.text == " " or _is_punctuation(char.text)
        if apart and word:
            yield word
            word = []
        if not apart:
            word.append(char)
        elif char.text != " ":
            yield [char]
    if word:
        yield word


def _pieces(word: list[Char], index: int, vocabulary: Container[str]) -> list[Token]:
    whole = Token("[UNK]", word[0].place, word[-1].place + 1, index)
    found: list[Token] = []
    begin = 0
    while begin < len(word) <= _LONGEST_WORD:
        prefix = "##" if begin else ""
        for end in range(len(word), begin, -1):
            piece = prefix + "".join(char.text for char in word[begin:end])
            if piece in vocabulary:
                found.append(Token(piece, word[begin].place, word[end - 1].place + 1, index))
                begin = end
                break
        else:
            return [whole]
    return found or [whole]
