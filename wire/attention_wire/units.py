"""What the rows and columns of a text's attention are: its tokens, or its words.

A word attends as its tokens do on average, and draws what its tokens draw together, as in
Clark et al. 2019 (https://arxiv.org/abs/1906.04341). So rows sum to what they did.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from attention_wire.answers import Words
from attention_wire.tensors import Array

_NO_SEGMENT = -1
# What vocabularies write for characters that they lack: [UNK], <unk>, <0xE2>.
_STAND_IN = re.compile(r"\[.+\]|<.+>")


@dataclass(frozen=True, slots=True)
class Units:
    """The U units of a text of L tokens; each is a run of tokens, and together they are all.

    Attributes:
        starts: int64 ``[U]``, the first token of each.
        stops: int64 ``[U]``, the token after its last.
        ids: int64 ``[U]``, equal where units are the same text.
        special: bool ``[U]``, whether it stands in no text.
        segments: int64 ``[U]``, which of a pair of texts it is of; −1: of none.
    """

    starts: Array
    stops: Array
    ids: Array
    special: Array
    segments: Array

    @classmethod
    def of_tokens(
        cls,
        token_ids: Sequence[int],
        special_tokens_mask: Sequence[int],
        segments: Sequence[int | None],
    ) -> Units:
        """Every token for itself.

        Args:
            token_ids: L of them.
            special_tokens_mask: 1 for tokens that stand in no text.
            segments: 0 or 1, the text of a pair; None for special tokens.
        """
        starts = np.arange(len(token_ids), dtype=np.int64)
        return cls(
            starts=starts,
            stops=starts + 1,
            ids=np.array(token_ids, np.int64),
            special=np.array(special_tokens_mask, np.bool_),
            segments=_numbers(segments),
        )

    @classmethod
    def of_words(
        cls,
        token_ids: Sequence[int],
        word_ids: Sequence[int | None],
        special_tokens_mask: Sequence[int],
        segments: Sequence[int | None],
    ) -> Units:
        """Consecutive tokens of one word of one text together.

        Args:
            token_ids: L of them.
            word_ids: the word of each token, counted in each text of a pair; a token without
                one, such as ``[CLS]``, is a unit of its own.
            special_tokens_mask: 1 for tokens that stand in no text.
            segments: 0 or 1, the text of a pair; None for special tokens.
        """
        words = list(zip(word_ids, segments, strict=True))
        begins = [
            at == 0 or words[at] != words[at - 1] or words[at][0] is None
            for at in range(len(words))
        ]
        starts = np.flatnonzero(np.array(begins, np.bool_)).astype(np.int64)
        stops = np.append(starts[1:], len(words)).astype(np.int64)[: len(starts)]
        numbers: dict[tuple[int, ...], int] = {}
        ids = [
            numbers.setdefault(tuple(token_ids[start:stop]), len(numbers))
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
        ]
        return cls(
            starts=starts,
            stops=stops,
            ids=np.array(ids, np.int64),
            special=np.array(special_tokens_mask, np.bool_)[starts],
            segments=_numbers(segments)[starts],
        )

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def is_whole(self) -> bool:
        """Whether every unit is one token, so that nothing is merged."""
        return bool((self.stops - self.starts == 1).all())

    def blocks(self, most_tokens: int) -> Iterator[tuple[slice, slice]]:
        """Cut the units into consecutive blocks that cover them all.

        Args:
            most_tokens: tokens of a block at most, unless one unit alone has more.

        Yields:
            The units of a block, and its tokens.
        """
        first = 0
        while first < len(self):
            start = int(self.starts[first])
            fitting = int(np.searchsorted(self.stops, start + most_tokens, side="right"))
            last = max(fitting, first + 1)
            yield slice(first, last), slice(start, int(self.stops[last - 1]))
            first = last

    def merge(self, weights: Array, units: slice) -> Array:
        """From the weights of tokens to those of units: rows averaged, columns summed.

        Args:
            weights: floating point ``[..., tokens of these units, L]``.
            units: which units' tokens the rows are, without a step.

        Returns:
            ``[..., units, U]`` in the weights' dtype, which they are added up in; ``weights``
            itself where every unit is one token.
        """
        if self.is_whole:
            return weights
        starts, stops = self.starts[units], self.stops[units]
        rows = np.add.reduceat(weights, starts - starts[0], axis=-2)
        rows /= (stops - starts).astype(weights.dtype)[:, None]
        merged: Array = np.add.reduceat(rows, self.starts, axis=-1)
        return merged

    def words(
        self, tokens: Sequence[str], offsets: Sequence[tuple[int, int]], texts: Sequence[str]
    ) -> Words:
        """The units, as an answer describes words.

        Args:
            tokens: L of them, as the vocabulary writes them.
            offsets: the characters of each in its text.
            texts: the text, or the two of a pair.
        """
        spans = list(zip(self.starts.tolist(), self.stops.tolist(), strict=True))
        characters = [(offsets[start][0], offsets[stop - 1][1]) for start, stop in spans]
        segments = [None if number == _NO_SEGMENT else number for number in self.segments.tolist()]
        return Words(
            text=[
                tokens[start] if segment is None else texts[segment][begin:end]
                for (start, _), (begin, end), segment in zip(
                    spans, characters, segments, strict=True
                )
            ],
            offsets=characters,
            tokens=spans,
            segments=segments,
            special_mask=self.special.astype(int).tolist(),
        )


def as_written(
    tokens: Sequence[str],
    offsets: Sequence[tuple[int, int]],
    segments: Sequence[int | None],
    texts: Sequence[str],
) -> list[str]:
    """The tokens as they are shown: what only stands in for characters, by these characters.

    Args:
        tokens: L of them, as the vocabulary writes them.
        offsets: the characters of each in its text.
        segments: 0 or 1, the text of a pair; None for special tokens.
        texts: the text, or the two of a pair.
    """
    return [
        (segment is not None and _STAND_IN.fullmatch(token) and texts[segment][begin:end]) or token
        for token, (begin, end), segment in zip(tokens, offsets, segments, strict=True)
    ]


def _numbers(segments: Sequence[int | None]) -> Array:
    return np.array([_NO_SEGMENT if number is None else number for number in segments], np.int64)
