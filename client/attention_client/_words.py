"""Tokens → words: what a word is, and the weights between words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attention_wire.answers import Words
from attention_wire.tensors import Array


def words_of(
    text: str,
    text_pair: str | None,
    tokens: Sequence[str],
    offsets: Sequence[tuple[int, int]],
    word_ids: Sequence[int | None],
    special_tokens_mask: Sequence[int],
    segments: Sequence[int | None],
) -> Words:
    """The words that tokens make: runs of tokens of one word of one text.

    A token without a word, such as ``[CLS]``, is a word of its own. Arguments are as in
    :class:`attention_client.TextAttention`.
    """
    starts = [
        at
        for at, word in enumerate(word_ids)
        if at == 0 or word is None or (word, segments[at]) != (word_ids[at - 1], segments[at - 1])
    ]
    stops = [*starts[1:], len(tokens)] if starts else []
    spans = list(zip(starts, stops, strict=True))
    sources = {0: text, 1: text_pair or ""}
    names, characters = [], []
    for start, stop in spans:
        segment = segments[start]
        begin, end = offsets[start][0], offsets[stop - 1][1]
        characters.append((begin, end))
        is_special = segment is None or word_ids[start] is None
        names.append(tokens[start] if is_special else sources[segment or 0][begin:end])
    return Words(
        text=names,
        offsets=characters,
        tokens=spans,
        segments=[segments[start] for start in starts],
        special_mask=[special_tokens_mask[start] for start in starts],
    )


def merged(weights: Array, spans: Sequence[tuple[int, int]]) -> Array:
    """Weights between words, of those between tokens.

    A word attends as its tokens do on average, and draws what its tokens draw together, as in
    Clark et al. 2019 (https://arxiv.org/abs/1906.04341). So rows sum to what they did.

    Args:
        weights: [..., L, L], of any float dtype.
        spans: the first token of each of W words, and the one after its last; they cover all.

    Returns:
        [..., W, W] in the dtype of ``weights``, added up in float64.
    """
    if not spans:  # reduceat needs a start
        return weights
    starts = np.array([start for start, _ in spans], np.intp)
    counts = np.array([stop - start for start, stop in spans], np.float64)
    columns = np.add.reduceat(weights.astype(np.float64), starts, axis=-1)
    rows = np.add.reduceat(columns, starts, axis=-2) / counts[:, None]
    words: Array = rows.astype(weights.dtype)
    return words
