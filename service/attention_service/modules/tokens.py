"""Text → tokens, with what a person needs to read an attention map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tokenizers

from attention_service.modules.manifest import TOKENIZER_FILE
from attention_wire.problems import Code, Loc, ProblemError
from attention_wire.tensors import Array

# Far more than words have; past it a text is refused before it is tokenized.
_MOST_CHARACTERS_A_TOKEN = 1000


class TokenizerError(Exception):
    """A tokenizer file cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One tokenized text, or pair of texts, of L tokens.

    Attributes:
        ids: int64 ``[L]``.
        type_ids: int64 ``[L]``, which of a pair, as the model wants it.
        fields: the answer's fields about tokens.
        texts: the text, and the second one of a pair.
    """

    ids: Array
    type_ids: Array
    fields: dict[str, Any]
    texts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer:
    """The tokenizer of a text module.

    Truncation and padding that the file carries are switched off: they were chosen for some
    other use, and would silently change which tokens are attended to.
    """

    FILE: ClassVar[str] = TOKENIZER_FILE

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, folder: Path) -> Tokenizer:
        """Read the ``tokenizer.json`` of a module folder.

        Raises:
            TokenizerError: it is not one that the tokenizers library reads.
        """
        try:
            text = (folder / cls.FILE).read_text(encoding="utf-8")
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises Exception itself
            raise TokenizerError(f"{cls.FILE} cannot be read: {error}") from error
        return cls(tokenizer)

    def last_tokens(self, length: int) -> Tokens:
        """So many of the token with the highest id, in the last segment: a model's extreme."""
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        segments = self._tokenizer.encode("a", "a").type_ids
        return Tokens(
            ids=np.full(length, max(ids, default=0), np.int64),
            type_ids=np.full(length, max(segments, default=0), np.int64),
            fields={},
        )

    def encode(
        self, text: str, pair: str | None, max_length: int | None, *, truncate: bool, place: Loc
    ) -> Tokens:
        """Tokenize a text, or a pair of texts, with the special tokens of the model.

        Args:
            text: any text, the empty one included.
            pair: the second text; None for a single text.
            max_length: most tokens that the model takes, special ones included.
            truncate: cut what is too long, the longer text of a pair first.
            place: the path to the text, for messages.

        Raises:
            ProblemError: ``text_too_long``, with both numbers.
        """
        characters = len(text) + len(pair or "")
        if max_length is not None and characters > _MOST_CHARACTERS_A_TOKEN * max_length:
            raise ProblemError.of_field(
                place,
                f"has {characters} characters, too many for the {max_length} tokens that the "
                "module takes; send a shorter text",
                Code.TEXT_TOO_LONG,
            )
        try:
            encoding = self._tokenizer.encode(text, pair)
        except Exception as error:  # the library raises Exception itself
            message = f"the module's tokenizer does not take this text: {error}"
            raise ProblemError.of_field(place, message) from error
        if max_length is not None and truncate and len(encoding) > max_length:
            encoding = self._encode_cut(text, pair, max_length)
        # What was cut, too: the library cuts nothing where the special tokens alone do not fit.
        if max_length is not None and len(encoding) > max_length:
            raise ProblemError.of_field(
                place,
                f"has {len(encoding)} tokens where the module takes {max_length}, special "
                "tokens included; send a shorter text, or set truncate",
                Code.TEXT_TOO_LONG,
            )
        return Tokens(
            ids=np.array(encoding.ids, np.int64),
            type_ids=np.array(encoding.type_ids, np.int64),
            fields={
                "tokens": encoding.tokens,
                "token_ids": encoding.ids,
                "offsets": encoding.offsets,
                "word_ids": encoding.word_ids,
                "special_tokens_mask": encoding.special_tokens_mask,
                "segments": encoding.sequence_ids,
            },
            texts=(text,) if pair is None else (text, pair),
        )

    def _encode_cut(self, text: str, pair: str | None, max_length: int) -> tokenizers.Encoding:
        # A copy, since the setting belongs to the tokenizer and other threads encode too.
        cutter = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        cutter.enable_truncation(max_length)
        return cutter.encode(text, pair)


def feeds(texts: Sequence[Tokens]) -> dict[str, Array]:
    """The inputs of a text graph, int64 ``[B,L]``, each text padded to the longest."""
    shape = len(texts), max(len(tokens) for tokens in texts)
    ids, seen, types = (np.zeros(shape, np.int64) for _ in range(3))
    for row, tokens in enumerate(texts):
        own = row, slice(len(tokens))
        ids[own], seen[own], types[own] = tokens.ids, 1, tokens.type_ids
    return {"input_ids": ids, "attention_mask": seen, "token_type_ids": types}
