"""ModernBERT (https://arxiv.org/abs/2412.13663), by the names of ``ModernBertModel``.

An encoder with norms before attention and feed-forward network, rotary positions and a gated
feed-forward network. Some layers see all tokens, the others those in a window around each, with
slower or faster turning positions. The output is the last hidden state behind the final norm.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field
from typing_extensions import override

from attention_service.modules.exporters import blocks, configs, rotary
from attention_service.modules.exporters.attention import padding_bias, window_bias
from attention_service.modules.exporters.configs import FULL, SLIDING, TextConfig
from attention_service.modules.exporters.family import Built, Family
from attention_service.modules.exporters.source import Source
from attention_service.modules.exporters.text_graph import Inputs, TextGraph, TextSizes
from attention_service.modules.exporters.weights import Weights
from attention_service.modules.manifest import Layer

_EVERYTHING = (-1, -1)


class _Config(TextConfig):
    hidden_activation: str = "gelu"
    norm_eps: float = Field(default=1e-5, gt=0)
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    local_attention: int = Field(default=128, ge=0)
    layer_types: list[str] | None = None
    global_attn_every_n_layers: int = Field(default=3, ge=1)
    rope_parameters: dict[str, dict[str, Any] | None] | None = None
    rope_scaling: dict[str, Any] | None = None
    global_rope_theta: float = Field(default=160_000.0, gt=0)
    local_rope_theta: float | None = Field(default=10_000.0, gt=0)

    @property
    def head_size(self) -> int:
        """The width of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kinds(self) -> list[str]:
        """The kind of attention of every layer."""
        if self.layer_types is not None:
            return self.layer_types
        every = self.global_attn_every_n_layers
        return [SLIDING if layer % every else FULL for layer in range(self.num_hidden_layers)]

    def sides(self, kind: str) -> tuple[int, int]:
        """How many tokens before and after it a token sees; −1 for all."""
        if kind == FULL:
            return _EVERYTHING
        half = self.local_attention // 2
        return half, half

    def frequencies(self, kind: str) -> rotary.Frequencies:
        """Of the positions of such layers. Older configurations have a base beside the rest."""
        given = (self.rope_parameters or {}).get(kind) or self.rope_scaling or {}
        local = self.local_rope_theta or self.global_rope_theta
        base = self.global_rope_theta if kind == FULL else local
        return rotary.frequencies(given, base, self.head_size)


def _build(source: Source, weights: Weights, num_heads: int | None) -> Built:
    config = configs.read(_Config, source)
    width = "hidden_size", config.hidden_size
    configs.check_heads(width, ("num_attention_heads", config.num_attention_heads), num_heads)
    configs.check_layer_types(config.layer_types, config.num_hidden_layers)
    configs.check_tokenizer(source, config.vocab_size)
    return _ModernBert(config, weights).built()


FAMILY = Family(
    "ModernBERT (model_type modernbert)",
    lambda source, _: configs.is_of(source, "modernbert"),
    _build,
)


class _ModernBert(TextGraph):
    """Builds the graph of one model; the methods go from the tokens up."""

    def __init__(self, config: _Config, weights: Weights) -> None:
        sizes = TextSizes(
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_attention_heads,
            head_size=config.head_size,
            longest=config.max_position_embeddings,
        )
        first = "embeddings.tok_embeddings.weight"
        super().__init__("modernbert", sizes, weights, prefix="model.", first=first)
        self._config = config

    @override
    def _output(self, inputs: Inputs) -> str:
        graph, config = self._graph, self._config
        ids, mask, _ = inputs
        shape = config.vocab_size, config.hidden_size
        table = self._take("embeddings.tok_embeddings.weight", shape)
        words = graph.constant("tok_embeddings", table)
        hidden = graph.node("Gather", words, ids, name="embeddings.words")
        hidden = self._norm("embeddings.norm", hidden, "embeddings.output")
        turns, biases = {}, {}
        for kind in sorted(set(config.kinds)):
            turns[kind] = rotary.angles(graph, ids, config.frequencies(kind), f"rotary.{kind}")
            if config.sides(kind) == _EVERYTHING:
                biases[kind] = padding_bias(graph, mask, f"bias.{kind}")
            else:
                sides = config.sides(kind)
                biases[kind] = window_bias(graph, ids, mask, f"bias.{kind}", sides)
        for layer, kind in enumerate(config.kinds):
            hidden = self._layer(layer, hidden, turns[kind], biases[kind])
        return self._norm("final_norm", hidden, "output")

    def _layer(self, layer: int, x: str, turn: rotary.Angles, bias: str) -> str:
        """One encoder layer: ``[B,L,E]`` → ``[B,L,E]``."""
        graph, config = self._graph, self._config
        theirs, ours = f"layers.{layer}", f"layer.{layer}"
        width, inner = config.hidden_size, config.intermediate_size
        attended = self._attended(layer, x, turn, bias)
        middle = graph.node("Add", attended, x, name=f"{ours}.middle")

        normed = self._norm(f"{theirs}.mlp_norm", middle, f"{ours}.normed")
        both = self._linear_of(f"{theirs}.mlp.Wi", (width, 2 * inner), has_bias=config.mlp_bias)
        wide = blocks.linear(graph, normed, both, f"{ours}.mlp.Wi")
        raw, gate = graph.split(
            wide, (f"{ours}.mlp.raw", f"{ours}.mlp.gate"), axis=-1, name=f"{ours}.mlp.halves"
        )
        active = blocks.activation(graph, raw, config.hidden_activation, f"{ours}.active")
        gated = graph.node("Mul", active, gate, name=f"{ours}.gated")
        out = self._linear_of(f"{theirs}.mlp.Wo", (inner, width), has_bias=config.mlp_bias)
        narrow = blocks.linear(graph, gated, out, f"{ours}.mlp.Wo")
        return graph.node("Add", narrow, middle, name=f"{ours}.output")

    def _attended(self, layer: int, x: str, turn: rotary.Angles, bias: str) -> str:
        """Norm, self-attention and its projection: ``[B,L,E]`` → ``[B,L,E]``."""
        graph, config, ours = self._graph, self._config, self._ours
        theirs, width = f"layers.{layer}", config.hidden_size
        has_bias = config.attention_bias
        # The embeddings have a norm already, so the first layer has none of its own.
        normed = x if layer == 0 else self._norm(f"{theirs}.attn_norm", x, f"{ours}.normed")
        joined = self._linear_of(f"{theirs}.attn.Wqkv", (width, 3 * width), has_bias=has_bias)
        query, key, value = self._joined_heads(normed, joined)
        left, right = config.sides(config.kinds[layer])
        projection = f"layer.{layer}.attn.Wo"
        made = Layer(
            hidden=x,
            query=rotary.turned(graph, query, turn, f"{ours}.query_turned"),
            key=rotary.turned(graph, key, turn, f"{ours}.key_turned"),
            value=value,
            context=f"{ours}.context",
            projection=f"{projection}.weight",
            scale=1 / math.sqrt(config.head_size),
            left_window_size=left,
            right_window_size=right,
        )
        out = self._linear_of(f"{theirs}.attn.Wo", (width, width), has_bias=has_bias)
        return blocks.linear(graph, self._attention(made, bias), out, projection)

    def _norm(self, theirs: str, x: str, name: str) -> str:
        norm = self._norm_of(theirs, has_bias=self._config.norm_bias)
        return blocks.layer_norm(self._graph, x, norm, self._config.norm_eps, name)
