"""GPT-2 (https://openai.com/index/better-language-models), by the names of ``GPT2Model``.

A decoder: norms before attention and feed-forward network, learned positions, and no token sees
those after it. The output is the last hidden state behind the final norm.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from attention_service.modules.exporters import blocks, configs
from attention_service.modules.exporters.blocks import FLOAT, INT64, Attended, Graph, Linear, Norm
from attention_service.modules.exporters.configs import Config
from attention_service.modules.exporters.errors import ExportError
from attention_service.modules.exporters.family import Built, Family
from attention_service.modules.exporters.source import Source
from attention_service.modules.exporters.weights import Parameter, Weights
from attention_service.modules.manifest import Manifest, Outputs


class _Config(Config):
    vocab_size: int = Field(ge=1)
    n_embd: int = Field(ge=1)
    n_layer: int = Field(ge=1)
    n_head: int = Field(ge=1)
    n_positions: int = Field(ge=1)
    n_inner: int | None = Field(default=None, ge=1)
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = Field(default=1e-5, gt=0)
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False

    @property
    def head_size(self) -> int:
        """The width of one head."""
        return self.n_embd // self.n_head

    @property
    def inner(self) -> int:
        """The width inside of the feed-forward networks."""
        return self.n_inner or 4 * self.n_embd


def _build(source: Source, weights: Weights, num_heads: int | None) -> Built:
    config = configs.read(_Config, source)
    configs.check_heads(("n_embd", config.n_embd), ("n_head", config.n_head), num_heads)
    configs.check_tokenizer(source, config.vocab_size)
    if config.add_cross_attention:
        raise ExportError("config.json: add_cross_attention is true, which is not supported")
    outputs = [f"weights.{layer}" for layer in range(config.n_layer)]
    manifest = Manifest(
        kind="text",
        num_heads=config.n_head,
        num_layers=config.n_layer,
        embed_dim=config.n_embd,
        key_dim=config.n_embd,
        value_dim=config.n_embd,
        head_dim=config.head_size,
        max_length=config.n_positions,
        outputs=Outputs(output="output", weights=outputs),
        files={},
    )
    return Built(_GPT2(config, weights).graph(outputs).model(), manifest)


FAMILY = Family(
    "GPT-2 (model_type gpt2)",
    lambda source, _: configs.is_of(source, "gpt2"),
    _build,
)


class _GPT2:
    """Builds the graph of one model; the methods go from the tokens up."""

    def __init__(self, config: _Config, weights: Weights) -> None:
        self._config = config
        self._weights = weights
        self._prefix = "transformer." if "transformer.wte.weight" in weights else ""
        self._graph = Graph("gpt2")

    def graph(self, weights_names: list[str]) -> Graph:
        """The whole graph: three inputs, the last hidden state, and the weights by layer."""
        graph, config = self._graph, self._config
        ids, _, _ = (
            graph.input(name, INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask", "token_type_ids")
        )
        hidden = self._embeddings(ids)
        bias = blocks.causal_bias(graph, ids, "causal_bias")
        for layer, weights in enumerate(weights_names):
            hidden = self._layer(layer, hidden, bias, weights)
        output = self._norm("ln_f", hidden, "output")
        graph.output(output, FLOAT, ["batch", "length", config.n_embd])
        for weights in weights_names:
            graph.output(weights, FLOAT, ["batch", config.n_head, "length", "keys"])
        return graph

    def _embeddings(self, input_ids: str) -> str:
        """The sum of word and position: ``[B,L,E]``."""
        graph, config = self._graph, self._config
        word = graph.constant("wte", self._take("wte.weight", (config.vocab_size, config.n_embd)))
        table = self._take("wpe.weight", (config.n_positions, config.n_embd))
        words = graph.node("Gather", word, input_ids, name="embeddings.words")
        positions = blocks.positions(graph, graph.constant("wpe", table), input_ids, first=0)
        return graph.node("Add", words, positions, name="embeddings.output")

    def _layer(self, layer: int, x: str, bias: str, weights: str) -> str:
        """One decoder layer: ``[B,L,E]`` → ``[B,L,E]``."""
        graph, config = self._graph, self._config
        theirs, ours, width = f"h.{layer}", f"layer.{layer}", config.n_embd
        normed = self._norm(f"{theirs}.ln_1", x, f"{ours}.attention.normed")
        context = self._attention(layer, normed, bias, weights)
        merged = self._linear(f"{theirs}.attn.c_proj", context, (width, width))
        middle = graph.node("Add", merged, x, name=f"{ours}.middle")

        normed = self._norm(f"{theirs}.ln_2", middle, f"{ours}.normed")
        wide = self._linear(f"{theirs}.mlp.c_fc", normed, (width, config.inner))
        active = blocks.activation(graph, wide, config.activation_function, f"{ours}.active")
        narrow = self._linear(f"{theirs}.mlp.c_proj", active, (config.inner, width))
        return graph.node("Add", narrow, middle, name=f"{ours}.output")

    def _attention(self, layer: int, x: str, bias: str, weights: str) -> str:
        """Self-attention: ``[B,L,E]`` → the merged context ``[B,L,E]``."""
        graph, config = self._graph, self._config
        ours, width = f"layer.{layer}.attention", config.n_embd
        all_parts = self._linear_of(f"h.{layer}.attn.c_attn", (width, 3 * width))
        heads = []
        for index, part in enumerate(("query", "key", "value")):
            columns = slice(index * width, (index + 1) * width)
            bias_part = None if all_parts.bias is None else all_parts.bias[columns]
            own = Linear(all_parts.weight[columns], bias_part)
            projected = blocks.linear(graph, x, own, f"{ours}.{part}")
            split = f"{ours}.{part}_heads"
            heads.append(
                blocks.split_heads(graph, projected, config.n_head, config.head_size, split)
            )
        attended = blocks.attention(
            graph,
            (heads[0], heads[1], heads[2]),
            scale=graph.constant(f"{ours}.scale", np.array(self._scale(layer), np.float32)),
            bias=bias,
            name=f"{ours}.",
            names=Attended(f"{ours}.context", weights),
        )
        return blocks.merge_heads(graph, attended.context, width, f"{ours}.merged")

    def _scale(self, layer: int) -> float:
        config = self._config
        scale = 1 / math.sqrt(config.head_size) if config.scale_attn_weights else 1.0
        return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale

    # --- Parameters by the names of transformers ---

    def _take(self, name: str, shape: tuple[int, ...]) -> Parameter:
        return self._weights.take(f"{self._prefix}{name}", shape)

    def _linear_of(self, name: str, sizes: tuple[int, int]) -> Linear:
        # Stored as [in,out], the other way round than torch.nn.Linear has it.
        weight = self._take(f"{name}.weight", sizes)
        return Linear(weight.T, self._take(f"{name}.bias", sizes[1:]))

    def _linear(self, name: str, x: str, sizes: tuple[int, int]) -> str:
        ours = name.replace("h.", "layer.", 1)
        return blocks.linear(self._graph, x, self._linear_of(name, sizes), ours)

    def _norm(self, theirs: str, x: str, name: str) -> str:
        width = (self._config.n_embd,)
        norm = Norm(self._take(f"{theirs}.weight", width), self._take(f"{theirs}.bias", width))
        return blocks.layer_norm(self._graph, x, norm, self._config.layer_norm_epsilon, name)
