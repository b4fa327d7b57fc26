"""A text module: raw text in, tokens, hidden states and what heads attend to out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from attention_service.attention.engine import EngineError
from attention_service.attention.lanes import never
from attention_service.modules.layer_attention import FLOAT32
from attention_service.modules.layered import LayeredModel
from attention_service.modules.manifest import Probe
from attention_service.modules.padding import runs
from attention_service.modules.tokens import Tokenizer, Tokens, feeds
from attention_service.modules.whole import WholeModel
from attention_wire.answers import ModuleInfo
from attention_wire.problems import Code, Loc, ProblemError
from attention_wire.schemas import TextRequest
from attention_wire.tensors import Array

# Scores of all heads and layers that one run may form for texts that it pads.
_RUN_BYTES = 6 * 2**20
# What padding may change, of the largest number: kernels round by shape.
_LIKE = 1e-3
INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


class TextModule:
    """A loaded text module.

    Args:
        info: what it is.
        model: its graph, in layers or as a whole.
        tokenizer: turns text into the graph's inputs.

    Attributes:
        takes_padding: whether padding changes nothing, so that texts can run together; known
            once it was probed.
    """

    def __init__(
        self, info: ModuleInfo, model: LayeredModel | WholeModel, tokenizer: Tokenizer
    ) -> None:
        self.info = info
        self.model = model
        self.tokenizer = tokenizer
        self.takes_padding = False

    @property
    def heads_bytes(self) -> int:
        """Bytes of one score of every head."""
        return 4 * self.info.num_layers * self.info.num_heads

    def runs(self, texts: Sequence[Tokens]) -> list[list[int]]:
        """Which texts run together."""
        if not self.takes_padding:
            return [[index] for index in range(len(texts))]
        return runs([len(tokens) for tokens in texts], _RUN_BYTES / self.heads_bytes)

    def run(
        self,
        texts: Sequence[Tokens],
        layers: Sequence[int],
        heads: Sequence[Sequence[int]],
        cancelled: Callable[[], bool] = never,
        *,
        output: bool,
    ) -> list[dict[str, Array]]:
        """Output and whole weights of texts that run together, in arrays of their own.

        Args:
            texts: of a like length.
            layers: whose weights are wanted; none for no weights.
            heads: of each text those whose weights are wanted.
            cancelled: looked at between layers.
            output: whether the last hidden state is wanted.

        Returns:
            For each text ``output`` ``[L,E]`` and ``weights`` ``[layers,heads,L,L]``, those of
            them that are wanted.

        Raises:
            Cancelled: the call is over.
        """
        if isinstance(self.model, WholeModel):
            return self._run_whole(self.model, texts, layers, heads, cancelled, output=output)
        return self._run_layers(self.model, texts, layers, heads, cancelled, output=output)

    def _run_whole(
        self,
        model: WholeModel,
        texts: Sequence[Tokens],
        layers: Sequence[int],
        heads: Sequence[Sequence[int]],
        cancelled: Callable[[], bool],
        *,
        output: bool,
    ) -> list[dict[str, Array]]:
        forward = model.begin(feeds(texts), max(layers, default=-1) + 1, cancelled)
        results = []
        for row, tokens in enumerate(texts):
            length = len(tokens)
            own: dict[str, Array] = {}
            if output:
                own["output"] = forward.output[row, :length].copy()
            if layers:
                of_layers = (forward.weights[layer][row, :, :length, :length] for layer in layers)
                own["weights"] = np.stack([_of_heads(w, heads[row]) for w in of_layers])
            results.append(own)
        return results

    def _run_layers(
        self,
        model: LayeredModel,
        texts: Sequence[Tokens],
        layers: Sequence[int],
        heads: Sequence[Sequence[int]],
        cancelled: Callable[[], bool],
        *,
        output: bool,
    ) -> list[dict[str, Array]]:
        lengths = [len(tokens) for tokens in texts]
        forward = model.begin(feeds(texts), lengths, cancelled)
        results: list[dict[str, Array]] = [{} for _ in texts]
        if layers:
            pages = model.engine.pages
            make = pages.empty if model.sees_all else pages.zeros
            for length, own_heads, own in zip(lengths, heads, results, strict=True):
                shape = len(layers), len(own_heads), length, length
                own["weights"] = make(shape, FLOAT32)
        depth = self.info.num_layers if output else max(layers, default=-1) + 1
        places = {layer: place for place, layer in enumerate(layers)}
        every = list(range(self.info.num_heads))
        is_whole = output and (not layers or list(heads[0]) == every)
        if is_whole and model.is_short(len(texts), lengths[0]):
            (own,) = results
            forward.finish({layer: own["weights"][at : at + 1] for layer, at in places.items()})
            depth = 0
        for layer in range(depth):
            is_end = layer + 1 == depth and not output
            if layer in places:
                into = [own["weights"][places[layer]] for own in results]
                context = forward.attend_all(heads, into, output=not is_end)
            else:
                context = forward.context()
            if not is_end:
                forward.advance(context)
        if output and forward.output is not None:
            for row, (length, own) in enumerate(zip(lengths, results, strict=True)):
                own["output"] = forward.output[row, :length].copy()
        return results

    def probe(self) -> Probe:
        """Run it over a long text: the shapes that it gives, and those that it should.

        Raises:
            EngineError: it does not run.
        """
        self.model.try_text(self.tokenizer.last_tokens(self.info.max_length or 2))
        self.takes_padding = self._takes_padding()
        return self.model.shapes([self.tokenizer.last_tokens(2)], self.info)

    def _takes_padding(self) -> bool:
        texts = [self.tokenizer.last_tokens(length) for length in (3, 2)]
        (alone,) = self.run(texts[1:], [], [], output=True)
        try:
            padded = self.run(texts, [], [], output=True)[1]["output"]
        except EngineError:
            return False  # a graph of one text
        most = _LIKE * np.abs(alone["output"]).max()
        is_whole = padded.shape == alone["output"].shape
        return bool(is_whole and np.abs(padded - alone["output"]).max() <= most)

    def tokens(self, request: TextRequest) -> list[Tokens]:
        """The texts of a request, tokenized.

        Raises:
            ProblemError: a text is too long, or the pair does not fit the texts.
        """
        longest = self.info.max_length
        return [
            self.tokenizer.encode(text, pair, longest, truncate=request.truncate, place=place)
            for text, pair, place in _texts(request)
        ]


def _of_heads(weights: Array, heads: Sequence[int]) -> Array:
    """Those of the heads ``[H,L,L]`` that are asked for, a view where they are all."""
    return weights if list(heads) == list(range(len(weights))) else weights[list(heads)]


def _texts(request: TextRequest) -> list[tuple[str, str | None, Loc]]:
    """Each text, its pair, and the path to it for messages."""
    text, pair = request.text, request.text_pair
    if isinstance(text, str) and not isinstance(pair, list):
        return [(text, pair, ("text",))]
    if isinstance(text, str) or isinstance(pair, str):
        raise ProblemError.of_field(
            "text_pair", "has the form of text: both are strings, or both are lists of strings"
        )
    pairs = [None] * len(text) if pair is None else pair
    if len(pairs) != len(text):
        raise ProblemError.of_field(
            "text_pair",
            f"holds {len(pairs)} texts where text holds {len(text)}; send one for each",
            Code.INVALID_FIELD,
        )
    return [(a, b, ("text", index)) for index, (a, b) in enumerate(zip(text, pairs, strict=True))]
