"""What the client's calls over text give back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from attention_client import _heads, _shown, plots
from attention_client._views import bertviz, data_array
from attention_client.errors import NotReturnedError
from attention_client.maps import attention_map
from attention_client.text_parts import TextParts
from attention_wire.answers import Words
from attention_wire.tensors import Array
from attention_wire.units import Units, as_written

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TextAttention(TextParts):
    """Tokens of a text and what a trained model attends to in it.

    L counts tokens, U units: tokens too, or words where the call asked for them. ``output`` is
    the last hidden state, [L, E]; ``weights`` is [layers, heads, U, U], of the layers and heads
    that were asked for, in the order asked, or the part of it that was asked for. ``labels``
    names its rows and columns: ``tokens`` does so only where these are tokens. Printing a result
    draws a map. Arrays are read-only: ``torch.tensor(array)`` takes a copy.

    Attributes:
        text: the text that was sent.
        text_pair: the second text of a pair, if one was sent.
        tokens: L tokens as the model's vocabulary writes them, of words too.
        token_ids: their numbers in the vocabulary.
        offsets: the span of each token in its text, in characters.
        word_ids: the word that each token belongs to; None for special tokens.
        special_tokens_mask: 1 for tokens that stand in no text, such as ``[CLS]``.
        segments: 0 for a token of the text, 1 of the pair; None for special tokens.
        layers: the number in the model of each layer that was returned.
        heads: the number in the model of each head of ``weights``, or of each that was reduced
            to one; empty where the answer does not tell. Entropies, statistics, classes and
            blocks are of all heads, whichever were asked for.
        reduced: how the heads of ``weights`` were made one, if they were.
        queries: the numbers of the rows of ``weights``, where only some were asked for.

    Example:
        >>> result = client.text_attention("The cat sat.")
        >>> result
        TextAttention(tokens=6, output=float32[6, 384], weights=float32[6, 12, 6, 6], module=...)
        >>> result.tokens
        ['[CLS]', 'the', 'cat', 'sat', '.', '[SEP]']
        >>> result.text[slice(*result.offsets[2])]
        'cat'
    """

    text: str
    text_pair: str | None
    tokens: list[str]
    token_ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]
    special_tokens_mask: list[int]
    segments: list[int | None]
    layers: list[int]
    heads: list[int]
    reduced: Literal["mean", "max"] | None = None
    queries: list[int] | None = None

    # --- What rows and columns are -----------------------------------------------------

    @property
    def labels(self) -> list[str]:
        """The names of the axes: what the U columns of the weights are, tokens or words.

        :meth:`map`, :meth:`plot` and notebooks show a token that stands in for characters which
        the vocabulary lacks, such as ``[UNK]``, by these characters.
        """
        return self.tokens if self._words is None else self._words.text

    @property
    def word_spans(self) -> Words:
        """The words: their texts, and the characters and tokens that each spans.

        Raises:
            NotReturnedError: rows and columns are tokens.
        """
        if self._words is None:
            message = "word_spans: rows are tokens; call with unit='word', or use .words()"
            raise NotReturnedError(message, name="word_spans", obj=self)
        return self._words

    def words(self) -> TextAttention:
        """The same weights between words rather than tokens.

        A word attends as its tokens do on average, and draws what they draw together; a special
        token stays a word of its own. What else was made of weights between tokens, such as
        entropies and rollouts, is not carried over: ask the service for ``unit="word"``.

        Returns:
            A result with ``weights`` [layers, heads, U, U] of U words; output, change and inputs
            stay, if they are there, of tokens. Itself, where its rows are words already.

        Raises:
            NotReturnedError: there are no weights between all tokens.

        Example:
            >>> result = client.text_attention("unbelievable cats", layers=[0])
            >>> words = result.words()
            >>> words.labels
            ['[CLS]', 'unbelievable', 'cats', '[SEP]']
            >>> words.weights.shape
            (1, 12, 4, 4)
        """
        if self._words is not None:
            return self
        if self.reduced == "max":
            message = "words: the largest weights of heads do not add up; call with unit='word'"
            raise NotReturnedError(message, name="words", obj=self)
        weights = self._all_rows("words", "unit='word'")
        units = Units.of_words(
            self.token_ids, self.word_ids, self.special_tokens_mask, self.segments
        )
        words = units.words(self.tokens, self.offsets, (self.text, self.text_pair or ""))
        merged = units.merge(weights.astype(np.float64), slice(0, len(units)))
        kept = {name: self.arrays[name] for name in ("output", "change") if name in self.arrays}
        arrays = {**kept, "weights": merged.astype(weights.dtype)}
        return replace(self, arrays=arrays, _words=words, _statistics=None, _classes=None)

    def head(self, layer: int, head: int) -> Array:
        """The weights of one head, [U, U] or of the rows asked for: queries by keys.

        Args:
            layer: which of the returned layers, from 0, as in ``layers``; negative counts from
                the last.
            head: which of the returned heads, likewise.

        Raises:
            IndexError: not so many were returned; it says which were.
            NotReturnedError: the call asked for no weights.

        Example:
            >>> result = client.text_attention("The cat sat.", layers=[5], heads=[0, 7])
            >>> result.head(0, 1).shape  # layer 5, head 7
            (6, 6)
        """
        one: Array = self._selected(layer, head)[0, 0]
        return one

    # --- How it is shown ---------------------------------------------------------------

    def map(self, layer: int | None = None, head: int | None = None) -> str:
        """An attention map in plain characters: rows are queries, columns are keys.

        Special tokens such as ``[CLS]`` often draw most of the attention. They are drawn,
        but shades are relative to the largest weight on any other token.

        Args:
            layer: which of the returned layers, as in :meth:`head`; the mean of all by default.
            head: which of the returned heads; the mean of all by default.

        Returns:
            Lines of at most 100 columns. Of a text that is too long the first tokens are
            drawn, and the last line says so.

        Raises:
            IndexError: not so many were returned.
            NotReturnedError: the call asked for no weights.

        Example:
            >>> result = client.text_attention("The cat sat.")
            >>> print(result.map(layer=0))
            layer 0, mean of 12 heads; rows: queries, columns: keys
            ...
            [SEP] ...
        """
        weights = self._selected(layer, head)
        return attention_map(
            self._row_labels(),
            weights.mean((0, 1), dtype=np.float64),
            key_tokens=self._shown_labels(),
            special=self._special(),
            caption=self._caption(layer, head),
        )

    def plot(
        self, layer: int | None = None, head: int | None = None, *, ax: Axes | None = None
    ) -> Axes:
        """A heat map, drawn by matplotlib: rows are queries, columns are keys.

        Colours are relative to the largest weight on any token that is not special, as in
        :meth:`map`.

        Args:
            layer: which of the returned layers, as in :meth:`head`; the mean of all by default.
            head: which of the returned heads; the mean of all by default.
            ax: axes of matplotlib to draw on; those of a new figure by default.

        Returns:
            The axes that were drawn on; ``axes.figure.savefig("map.png")`` keeps the picture.

        Raises:
            ImportError: matplotlib is not installed; it comes with the extra ``plot``.
            IndexError: not so many were returned.
            NotReturnedError: the call asked for no weights.

        Example:
            >>> axes = client.text_attention("The cat sat.").plot(layer=3, head=1)
            >>> axes.get_title()
            'layer 3, head 1'
        """
        return plots.heat_map(
            self._selected(layer, head).mean((0, 1), dtype=np.float64),
            self._row_labels(),
            self._shown_labels(),
            words=~np.asarray(self._special(), bool),
            title=self._caption(layer, head),
            ax=ax,
        )

    def to_xarray(self) -> Any:
        """The weights as an ``xarray.DataArray``, which knows its layers, heads and tokens.

        Returns:
            An array with the dimensions ``layer``, ``head``, ``query`` and ``key`` and, beside
            their numbers, the coordinates ``query_token`` and ``key_token``.

        Raises:
            ImportError: xarray is not installed.
            NotReturnedError: the call asked for no weights.

        Example:
            >>> array = client.text_attention("The cat sat.").to_xarray()  # doctest: +SKIP
            >>> array.sel(layer=5, head=7).mean("query").argmax("key")  # doctest: +SKIP
        """
        return data_array(
            self.weights,
            layers=self.layers,
            heads=self.heads,
            queries=self._rows(),
            labels=self.labels,
            attrs={"unit": self.unit, "module": self.module or ""},
        )

    def to_bertviz(self) -> dict[str, Any]:
        """Keyword arguments of BertViz's ``head_view`` and ``model_view``.

        BertViz numbers what it is given from 0: its layer 0 is the first that was returned.

        Returns:
            ``attention``, a torch tensor [1, heads, U, U] for each layer; ``tokens``; and
            ``sentence_b_start`` for a pair.

        Raises:
            ImportError: PyTorch is not installed.
            NotReturnedError: there are no weights of all rows.

        Example:
            >>> from bertviz import head_view  # doctest: +SKIP
            >>> head_view(**client.text_attention("The cat sat.").to_bertviz())  # doctest: +SKIP
        """
        weights = self._all_rows("to_bertviz", "no 'queries'")
        segments = self.segments if self._words is None else self._words.segments
        second = segments.index(1) if 1 in segments else None
        return bertviz(weights, self.labels, second)

    def to_circuitsvis(self, layer: int) -> dict[str, Any]:
        """Keyword arguments of CircuitsVis's ``attention_heads`` and ``attention_patterns``.

        Args:
            layer: which of the returned layers, as in :meth:`head`.

        Returns:
            ``tokens``, and ``attention`` [heads, U, U].

        Raises:
            IndexError: not so many were returned.
            NotReturnedError: there are no weights of all rows.

        Example:
            >>> arguments = client.text_attention("The cat sat.").to_circuitsvis(layer=-1)
            >>> arguments["attention"].shape
            (12, 6, 6)
        """
        self._all_rows("to_circuitsvis", "no 'queries'")
        return {"tokens": list(self.labels), "attention": self._selected(layer, None)[0]}

    def _rows(self) -> list[int]:
        """The number of each row of the weights."""
        return list(range(len(self.labels))) if self.queries is None else self.queries

    def _shown_labels(self) -> list[str]:
        """The labels, but for tokens that stand in for others: the text's own characters."""
        if self._words is not None:
            return self.labels
        texts = (self.text, self.text_pair or "")
        return as_written(self.tokens, self.offsets, self.segments, texts)

    def _row_labels(self) -> list[str]:
        """Those of the rows of the weights."""
        labels = self._shown_labels()
        return [labels[row] for row in self._rows()]

    def _all_rows(self, method: str, cure: str) -> Array:
        """The weights, [layers, heads, U, U], if they are of all rows.

        Args:
            method: what needs them, for the message.
            cure: what to ask for instead.

        Raises:
            NotReturnedError: there are none, or only of some rows.
        """
        weights = self.weights
        if self.queries is not None:
            message = f"{method}: the call asked for some rows of the weights only; ask for {cure}"
            raise NotReturnedError(message, name=method, obj=self)
        return weights

    def _selected(self, layer: int | None, head: int | None) -> Array:
        """The weights of one layer or all, one head or all, [layers, heads, rows, U]."""
        weights = self.weights
        layers, heads = weights.shape[:2]
        selected: Array = weights[
            _heads.place("layer", layer, layers, self.layers),
            _heads.place("head", head, heads, self.heads),
        ]
        return selected

    def _special(self) -> list[int]:
        """1 for each of the U columns that stands in no text."""
        return self.special_tokens_mask if self._words is None else self._words.special_mask

    def _caption(self, layer: int | None, head: int | None) -> str:
        return f"{_heads.named('layer', layer, self.layers)}, {self._chosen_heads(head)}"

    def _chosen_heads(self, head: int | None) -> str:
        if self.reduced is None or len(self.heads) == 1:
            return _heads.named("head", head, self.heads)
        return f"{self.reduced} of {len(self.heads) or 'all'} heads"

    def _repr_html_(self) -> str:
        return _shown.text_html(self)

    def __repr__(self) -> str:
        counts = [f"tokens={len(self.tokens)}"]
        counts += [f"words={len(self.labels)}"] if self.unit == "word" else []
        return f"TextAttention({', '.join([*counts, *self._summary()])})"

    def _summary(self) -> list[str]:
        at = len(self.arrays)
        told = super()._summary()
        return told[:at] + self._others() + told[at:]

    def __str__(self) -> str:
        return self.map() if "weights" in self.arrays else repr(self)
