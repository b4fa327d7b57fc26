"""Llama and its kin: Mistral, SmolLM, Qwen2, Qwen3, by the names of transformers.

Decoders with RMS norms before attention and feed-forward network, rotary positions
(https://arxiv.org/abs/2104.09864), key heads that query heads share, and a gated feed-forward
network. What one of them has and another has not is told by the configuration (sliding windows)
or by the tensors that are there (biases, norms of queries and keys). The output is the last
hidden state behind the final norm.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field
from typing_extensions import override

from attention_service.modules.exporters import blocks, configs, rotary
from attention_service.modules.exporters.attention import causal_bias
from attention_service.modules.exporters.configs import TextConfig
from attention_service.modules.exporters.errors import ExportError
from attention_service.modules.exporters.family import Built, Family
from attention_service.modules.exporters.source import Source
from attention_service.modules.exporters.text_graph import Inputs, TextGraph, TextSizes
from attention_service.modules.exporters.weights import Weights
from attention_service.modules.manifest import Layer

_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


class _Config(TextConfig):
    model_type: str
    num_key_value_heads: int | None = Field(default=None, ge=1)
    head_dim: int | None = Field(default=None, ge=2)
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    hidden_act: str = "silu"
    rope_theta: float | None = Field(default=None, gt=0)
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    sliding_window: int | None = Field(default=None, ge=1)
    use_sliding_window: bool | None = None
    layer_types: list[str] | None = None

    @property
    def head_size(self) -> int:
        """The width of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    def left_window_size(self, layer: int) -> int:
        """How many keys before it a row of a layer sees; −1 for all."""
        if self.sliding_window is None or self.use_sliding_window is False:
            return -1
        if self.layer_types is None:
            slides = self.model_type == "mistral"
        else:
            slides = self.layer_types[layer] == configs.SLIDING
        return self.sliding_window - 1 if slides else -1  # its own key is one of the window


def _build(source: Source, weights: Weights, num_heads: int | None) -> Built:
    config = configs.read(_Config, source)
    _check(config, num_heads)
    configs.check_tokenizer(source, config.vocab_size)
    return _Llama(config, weights).built()


def _check(config: _Config, num_heads: int | None) -> None:
    heads = "num_attention_heads", config.num_attention_heads
    # Heads of a size of their own need not fill the hidden state.
    width = config.hidden_size if config.head_dim is None else config.num_attention_heads
    configs.check_heads(("hidden_size", width), heads, num_heads)
    if config.num_attention_heads % config.kv_heads:
        raise ExportError(
            f"config.json: num_attention_heads {config.num_attention_heads} cannot be divided "
            f"among num_key_value_heads {config.kv_heads}"
        )
    configs.check_layer_types(config.layer_types, config.num_hidden_layers)


FAMILY = Family(
    f"Llama, Mistral, SmolLM, Qwen (model_type {', '.join(_MODEL_TYPES)})",
    lambda source, _: configs.is_of(source, *_MODEL_TYPES),
    _build,
)


class _Llama(TextGraph):
    """Builds the graph of one model; the methods go from the tokens up."""

    def __init__(self, config: _Config, weights: Weights) -> None:
        sizes = TextSizes(
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.kv_heads,
            head_size=config.head_size,
            longest=config.max_position_embeddings,
        )
        super().__init__("llama", sizes, weights, prefix="model.", first="embed_tokens.weight")
        self._config = config

    @override
    def _output(self, inputs: Inputs) -> str:
        graph, config, ids = self._graph, self._config, inputs.input_ids
        shape = config.vocab_size, config.hidden_size
        table = graph.constant("embed_tokens", self._take("embed_tokens.weight", shape))
        hidden = graph.node("Gather", table, ids, name="embeddings.output")
        turn = rotary.angles(graph, ids, self._frequencies())
        windows = [config.left_window_size(layer) for layer in range(config.num_hidden_layers)]
        biases = {
            left: causal_bias(graph, ids, f"bias.{left}" if left >= 0 else "bias", left)
            for left in sorted(set(windows))
        }
        for layer, left in enumerate(windows):
            hidden = self._layer(layer, hidden, turn, biases[left])
        return self._norm("norm", hidden, "output")

    def _frequencies(self) -> rotary.Frequencies:
        config = self._config
        # Older configurations hold the base beside what scales it.
        given = config.rope_parameters or config.rope_scaling or {}
        return rotary.frequencies(given, config.rope_theta, config.head_size)

    def _layer(self, layer: int, x: str, turn: rotary.Angles, bias: str) -> str:
        """One decoder layer: ``[B,L,E]`` → ``[B,L,E]``."""
        graph, config = self._graph, self._config
        theirs, ours = f"layers.{layer}", f"layer.{layer}"
        width, inner = config.hidden_size, config.intermediate_size
        attended = self._attended(layer, x, turn, bias)
        middle = graph.node("Add", attended, x, name=f"{ours}.middle")

        normed = self._norm(f"{theirs}.post_attention_layernorm", middle, f"{ours}.normed")
        gate = self._linear(f"{theirs}.mlp.gate_proj", normed, width, inner)
        active = blocks.activation(graph, gate, config.hidden_act, f"{ours}.active")
        wide = self._linear(f"{theirs}.mlp.up_proj", normed, width, inner)
        gated = graph.node("Mul", active, wide, name=f"{ours}.gated")
        narrow = self._linear(f"{theirs}.mlp.down_proj", gated, inner, width)
        return graph.node("Add", narrow, middle, name=f"{ours}.output")

    def _attended(self, layer: int, x: str, turn: rotary.Angles, bias: str) -> str:
        """Norm, self-attention and its projection: ``[B,L,E]`` → ``[B,L,E]``."""
        config, ours = self._config, self._ours
        width, size = config.hidden_size, config.head_size
        theirs, wide = f"layers.{layer}.self_attn", config.num_attention_heads * size
        normed = self._norm(f"layers.{layer}.input_layernorm", x, f"{ours}.normed")
        made = Layer(
            hidden=x,
            query=self._heads(theirs, "q", normed, config.num_attention_heads, turn),
            key=self._heads(theirs, "k", normed, config.kv_heads, turn),
            value=self._heads(theirs, "v", normed, config.kv_heads, None),
            context=f"{ours}.context",
            projection=f"layer.{layer}.self_attn.o_proj.weight",
            scale=1 / math.sqrt(size),
            is_causal=True,
            left_window_size=config.left_window_size(layer),
        )
        return self._linear(f"{theirs}.o_proj", self._attention(made, bias), wide, width)

    def _heads(self, theirs: str, part: str, x: str, count: int, turn: rotary.Angles | None) -> str:
        """A projection's heads ``[B,count,L,D]``, ready for the product."""
        size, ours = self._config.head_size, f"{self._ours}.{part}"
        projected = self._linear(f"{theirs}.{part}_proj", x, self._config.hidden_size, count * size)
        heads = self._split_heads(projected, f"{ours}_heads", count)
        if self._has(f"{theirs}.{part}_norm.weight"):
            heads = self._norm(f"{theirs}.{part}_norm", heads, f"{ours}_normed", size)
        return heads if turn is None else rotary.turned(self._graph, heads, turn, f"{ours}_turned")

    # --- Parameters by the names of transformers ---

    def _linear(self, name: str, x: str, size_in: int, size_out: int) -> str:
        parameters = self._linear_of(name, (size_in, size_out), has_bias=self._has(f"{name}.bias"))
        ours = name.replace("layers.", "layer.", 1)
        return blocks.linear(self._graph, x, parameters, ours)

    def _norm(self, theirs: str, x: str, name: str, size: int | None = None) -> str:
        weight = self._take(f"{theirs}.weight", (size or self._config.hidden_size,))
        return blocks.rms_norm(self._graph, x, weight, self._config.rms_norm_eps, name)
