"""BERT: a Hugging Face directory → a ``text`` module that gives the weights of every layer.

The architecture is that of https://arxiv.org/abs/1810.04805, the names of its tensors those of
transformers' ``BertModel``. What comes after the last hidden state (pooler, heads) is left out.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attention_service.modules.exporters import blocks
from attention_service.modules.exporters.blocks import FLOAT, INT64, Attended, Graph, Linear, Norm
from attention_service.modules.exporters.errors import ExportError
from attention_service.modules.exporters.family import Built, Family
from attention_service.modules.exporters.source import Source
from attention_service.modules.exporters.weights import Parameter, Weights
from attention_service.modules.manifest import Manifest, Outputs


class BertConfig(BaseModel):
    """What is needed of ``config.json``; its other fields do not change what is computed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=1)
    type_vocab_size: int = Field(default=2, ge=1)
    hidden_act: str = "gelu"
    layer_norm_eps: float = Field(default=1e-12, gt=0)
    position_embedding_type: str = "absolute"
    is_decoder: bool = False

    @property
    def head_dim(self) -> int:
        """The size of one head."""
        return self.hidden_size // self.num_attention_heads


def _matches(source: Source, _weights: Weights) -> bool:
    return source.config is not None and source.config.get("model_type") == "bert"


def _build(source: Source, weights: Weights, num_heads: int | None) -> Built:
    config = _config(source.config or {})
    if num_heads not in (None, config.num_attention_heads):
        raise ExportError(
            f"num_heads {num_heads} contradicts config.json, which says "
            f"{config.num_attention_heads}: leave it out"
        )
    _check_tokenizer(source, config)
    names = [f"weights.{layer}" for layer in range(config.num_hidden_layers)]
    manifest = Manifest(
        kind="text",
        num_heads=config.num_attention_heads,
        num_layers=config.num_hidden_layers,
        embed_dim=config.hidden_size,
        key_dim=config.hidden_size,
        value_dim=config.hidden_size,
        head_dim=config.head_dim,
        max_length=config.max_position_embeddings,
        outputs=Outputs(output="output", weights=names),
        files={},
    )
    return Built(_Bert(config, weights).graph(names).model(), manifest)


FAMILY = Family("BERT (config.json with model_type bert)", _matches, _build)


# --- What is checked before anything is built ----------------------------------------------


def _config(fields: dict[str, Any]) -> BertConfig:
    try:
        config = BertConfig.model_validate(fields)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ExportError(f"config.json: {'; '.join(faults)}") from None
    if config.position_embedding_type != "absolute":
        raise ExportError(
            f"config.json: position_embedding_type {config.position_embedding_type!r} is not "
            "supported, only 'absolute' is"
        )
    if config.is_decoder:
        raise ExportError("config.json: is_decoder is true; only BERT encoders are supported")
    if config.hidden_size % config.num_attention_heads:
        raise ExportError(
            f"config.json: hidden_size {config.hidden_size} cannot be divided among "
            f"num_attention_heads {config.num_attention_heads}"
        )
    return config


def _check_tokenizer(source: Source, config: BertConfig) -> None:
    """Refuse a tokenizer whose ids the word embeddings do not hold: it is another model's."""
    if source.tokenizer_file is None:
        raise ExportError(
            "there is no tokenizer.json beside the weights; transformers writes it: "
            "AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained(FOLDER)"
        )
    try:
        tokenizer = json.loads(source.tokenizer_file.read_bytes())
        ids = [*tokenizer["model"]["vocab"].values()]
        ids += [token["id"] for token in tokenizer.get("added_tokens") or ()]
        highest = max(map(int, ids), default=-1)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ExportError(f"{source.tokenizer_file} is no WordPiece or BPE tokenizer") from None
    if highest >= config.vocab_size:
        raise ExportError(
            f"tokenizer.json gives ids up to {highest}, but config.json says vocab_size "
            f"{config.vocab_size}: they belong to different models"
        )


# --- The graph -----------------------------------------------------------------------------


class _Bert:
    """Builds the graph of one model; the methods go from the tokens up."""

    def __init__(self, config: BertConfig, weights: Weights) -> None:
        self._config = config
        self._weights = weights
        # A BertModel alone has bare names; inside BertForMaskedLM and its like it is "bert".
        in_task_model = "bert.embeddings.word_embeddings.weight" in weights
        self._prefix = "bert." if in_task_model else ""
        self._graph = Graph("bert")

    def graph(self, weights_names: list[str]) -> Graph:
        """The whole graph: three inputs, the last hidden state, and the weights by layer."""
        graph, config = self._graph, self._config
        tokens = [
            graph.input(name, INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ]
        hidden = self._embeddings(tokens[0], tokens[2])
        bias = blocks.padding_bias(graph, tokens[1], "padding_bias")
        for layer, weights in enumerate(weights_names):
            last = layer == len(weights_names) - 1
            name = "output" if last else f"layer.{layer}.output"
            hidden = self._layer(layer, hidden, bias, weights, name)
        graph.output(hidden, FLOAT, ["batch", "length", config.hidden_size])
        for weights in weights_names:
            graph.output(weights, FLOAT, ["batch", config.num_attention_heads, "length", "keys"])
        return graph

    def _embeddings(self, input_ids: str, token_type_ids: str) -> str:
        """The layer norm of the sum of word, segment and position: ``[B,L,E]``."""
        graph, config = self._graph, self._config
        word, segment, position = (
            graph.constant(f"embeddings.{kind}", self._embedding(kind, count))
            for kind, count in (
                ("word_embeddings", config.vocab_size),
                ("token_type_embeddings", config.type_vocab_size),
                ("position_embeddings", config.max_position_embeddings),
            )
        )
        words = graph.node("Gather", word, input_ids, name="embeddings.words")
        segments = graph.node("Gather", segment, token_type_ids, name="embeddings.segments")
        length = graph.node("Shape", input_ids, name="embeddings.length", start=1, end=2)
        first = graph.constant("first", np.array([0], np.int64))
        # The slice starts at the first axis: the table is [positions,E].
        positions = graph.node("Slice", position, first, length, first, name="embeddings.positions")
        both = graph.node("Add", words, segments, name="embeddings.words_and_segments")
        total = graph.node("Add", both, positions, name="embeddings.sum")
        return self._norm("embeddings.LayerNorm", total, "embeddings.output")

    def _layer(self, layer: int, x: str, bias: str, weights: str, name: str) -> str:
        """One encoder layer, norms after the residuals: ``[B,L,E]`` → ``[B,L,E]``."""
        graph, config = self._graph, self._config
        theirs, ours = f"encoder.layer.{layer}", f"layer.{layer}"
        width, inner = config.hidden_size, config.intermediate_size
        context = self._attention(f"{theirs}.attention.self", x, bias, weights, f"{ours}.attention")

        attended = self._linear(f"{theirs}.attention.output.dense", context, width, width)
        residual = graph.node("Add", attended, x, name=f"{ours}.attention.residual")
        middle = self._norm(f"{theirs}.attention.output.LayerNorm", residual, f"{ours}.middle")

        wide = self._linear(f"{theirs}.intermediate.dense", middle, width, inner)
        active = blocks.activation(graph, wide, config.hidden_act, f"{ours}.active")
        narrow = self._linear(f"{theirs}.output.dense", active, inner, width)
        residual = graph.node("Add", narrow, middle, name=f"{ours}.residual")
        return self._norm(f"{theirs}.output.LayerNorm", residual, name)

    def _attention(self, theirs: str, x: str, bias: str, weights: str, name: str) -> str:
        """Self-attention: ``[B,L,E]`` → the merged context ``[B,L,E]``."""
        graph, config = self._graph, self._config
        width, heads, size = config.hidden_size, config.num_attention_heads, config.head_dim
        query, key, value = (
            blocks.split_heads(
                graph,
                self._linear(f"{theirs}.{part}", x, width, width),
                heads,
                size,
                f"{name}.{part}_heads",
            )
            for part in ("query", "key", "value")
        )
        attended = blocks.attention(
            graph,
            (query, key, value),
            scale=graph.constant("scale", np.array(1 / math.sqrt(size), np.float32)),
            bias=bias,
            name=f"{name}.",
            names=Attended(f"{name}.context", weights),
        )
        return blocks.merge_heads(graph, attended.context, width, f"{name}.merged")

    # --- Parameters by the names of transformers ---

    def _take(self, name: str, shape: tuple[int, ...]) -> Parameter:
        return self._weights.take(f"{self._prefix}{name}", shape)

    def _embedding(self, kind: str, count: int) -> Parameter:
        return self._take(f"embeddings.{kind}.weight", (count, self._config.hidden_size))

    def _linear(self, name: str, x: str, size_in: int, size_out: int) -> str:
        weight = self._take(f"{name}.weight", (size_out, size_in))
        bias = self._take(f"{name}.bias", (size_out,))
        return blocks.linear(self._graph, x, Linear(weight, bias), name.removeprefix("encoder."))

    def _norm(self, theirs: str, x: str, name: str) -> str:
        # Checkpoints converted from TensorFlow say gamma and beta.
        legacy = f"{self._prefix}{theirs}.gamma" in self._weights
        width = (self._config.hidden_size,)
        scale, shift = ("gamma", "beta") if legacy else ("weight", "bias")
        norm = Norm(self._take(f"{theirs}.{scale}", width), self._take(f"{theirs}.{shift}", width))
        return blocks.layer_norm(self._graph, x, norm, self._config.layer_norm_eps, name)
