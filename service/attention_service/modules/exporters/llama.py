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

import numpy as np
from pydantic import Field

from attention_service.modules.exporters import blocks, configs, rotary
from attention_service.modules.exporters.blocks import FLOAT, INT64, Attended, Graph, Linear
from attention_service.modules.exporters.configs import Config
from attention_service.modules.exporters.errors import ExportError
from attention_service.modules.exporters.family import Built, Family
from attention_service.modules.exporters.source import Source
from attention_service.modules.exporters.weights import Parameter, Weights
from attention_service.modules.manifest import Manifest, Outputs

_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


class _Config(Config):
    model_type: str
    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int | None = Field(default=None, ge=1)
    head_dim: int | None = Field(default=None, ge=2)
    max_position_embeddings: int = Field(ge=1)
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

    def window(self, layer: int) -> int | None:
        """How many keys a row of a layer sees, its own included; None for all before it."""
        if self.sliding_window is None or self.use_sliding_window is False:
            return None
        if self.layer_types is not None:
            slides = self.layer_types[layer] == "sliding_attention"
            return self.sliding_window if slides else None
        return self.sliding_window if self.model_type == "mistral" else None


def _build(source: Source, weights: Weights, num_heads: int | None) -> Built:
    config = configs.read(_Config, source)
    _check(config, num_heads)
    configs.check_tokenizer(source, config.vocab_size)
    outputs = [f"weights.{layer}" for layer in range(config.num_hidden_layers)]
    manifest = Manifest(
        kind="text",
        num_heads=config.num_attention_heads,
        num_layers=config.num_hidden_layers,
        embed_dim=config.hidden_size,
        key_dim=config.hidden_size,
        value_dim=config.hidden_size,
        head_dim=config.head_size,
        max_length=config.max_position_embeddings,
        outputs=Outputs(output="output", weights=outputs),
        files={},
    )
    return Built(_Llama(config, weights).graph(outputs).model(), manifest)


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
    layers = config.layer_types
    if layers is not None and len(layers) != config.num_hidden_layers:
        raise ExportError(
            f"config.json: layer_types names {len(layers)} layers, num_hidden_layers says "
            f"{config.num_hidden_layers}"
        )
    if unknown := set(layers or ()) - {"full_attention", "sliding_attention"}:
        raise ExportError(f"config.json: layers of type {min(unknown)!r} are not supported")


FAMILY = Family(
    f"Llama, Mistral, SmolLM, Qwen (model_type {', '.join(_MODEL_TYPES)})",
    lambda source, _: configs.is_of(source, *_MODEL_TYPES),
    _build,
)


class _Llama:
    """Builds the graph of one model; the methods go from the tokens up."""

    def __init__(self, config: _Config, weights: Weights) -> None:
        self._config = config
        self._weights = weights
        self._prefix = "model." if "model.embed_tokens.weight" in weights else ""
        self._graph = Graph("llama")

    def graph(self, weights_names: list[str]) -> Graph:
        """The whole graph: three inputs, the last hidden state, and the weights by layer."""
        graph, config = self._graph, self._config
        ids, _, _ = (
            graph.input(name, INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask", "token_type_ids")
        )
        shape = config.vocab_size, config.hidden_size
        table = graph.constant("embed_tokens", self._take("embed_tokens.weight", shape))
        hidden = graph.node("Gather", table, ids, name="embeddings.output")
        turn = rotary.angles(graph, ids, self._frequencies())
        windows = {config.window(layer) for layer in range(config.num_hidden_layers)}
        biases = {
            window: blocks.causal_bias(graph, ids, f"bias.{window or 'causal'}", window)
            for window in sorted(windows, key=lambda window: window or 0)
        }
        for layer, weights in enumerate(weights_names):
            hidden = self._layer(layer, hidden, turn, biases[config.window(layer)], weights)
        output = self._norm("norm", hidden, "output")
        graph.output(output, FLOAT, ["batch", "length", config.hidden_size])
        for weights in weights_names:
            graph.output(weights, FLOAT, ["batch", config.num_attention_heads, "length", "keys"])
        return graph

    def _frequencies(self) -> rotary.Frequencies:
        config = self._config
        # Older configurations hold the base beside what scales it.
        given = config.rope_parameters or config.rope_scaling or {}
        return rotary.frequencies(given, config.rope_theta, config.head_size)

    def _layer(self, layer: int, x: str, turn: rotary.Angles, bias: str, weights: str) -> str:
        """One decoder layer: ``[B,L,E]`` → ``[B,L,E]``."""
        graph, config = self._graph, self._config
        theirs, ours = f"layers.{layer}", f"layer.{layer}"
        width, inner = config.hidden_size, config.intermediate_size
        normed = self._norm(f"{theirs}.input_layernorm", x, f"{ours}.attention.normed")
        context = self._attention(layer, normed, turn, bias, weights)
        middle = graph.node("Add", context, x, name=f"{ours}.middle")

        normed = self._norm(f"{theirs}.post_attention_layernorm", middle, f"{ours}.normed")
        gate = self._linear(f"{theirs}.mlp.gate_proj", normed, width, inner)
        active = blocks.activation(graph, gate, config.hidden_act, f"{ours}.active")
        wide = self._linear(f"{theirs}.mlp.up_proj", normed, width, inner)
        gated = graph.node("Mul", active, wide, name=f"{ours}.gated")
        narrow = self._linear(f"{theirs}.mlp.down_proj", gated, inner, width)
        return graph.node("Add", narrow, middle, name=f"{ours}.output")

    def _attention(self, layer: int, x: str, turn: rotary.Angles, bias: str, weights: str) -> str:
        """Self-attention and its projection: ``[B,L,E]`` → ``[B,L,E]``."""
        graph, config = self._graph, self._config
        theirs, ours = f"layers.{layer}.self_attn", f"layer.{layer}.attention"
        width, size = config.hidden_size, config.head_size
        counts = {"q": config.num_attention_heads, "k": config.kv_heads, "v": config.kv_heads}
        heads = {}
        for part, count in counts.items():
            projected = self._linear(f"{theirs}.{part}_proj", x, width, count * size)
            split = blocks.split_heads(graph, projected, count, size, f"{ours}.{part}_heads")
            if f"{self._prefix}{theirs}.{part}_norm.weight" in self._weights:
                split = self._norm(f"{theirs}.{part}_norm", split, f"{ours}.{part}_normed", size)
            if part != "v":
                split = rotary.turned(graph, split, turn, f"{ours}.{part}_turned")
            groups = config.num_attention_heads // count
            heads[part] = blocks.repeat_heads(
                graph, split, (count, groups, size), f"{ours}.{part}_repeated"
            )
        attended = blocks.attention(
            graph,
            (heads["q"], heads["k"], heads["v"]),
            scale=graph.constant("scale", np.array(1 / math.sqrt(size), np.float32)),
            bias=bias,
            name=f"{ours}.",
            names=Attended(f"{ours}.context", weights),
        )
        wide = config.num_attention_heads * size
        merged = blocks.merge_heads(graph, attended.context, wide, f"{ours}.merged")
        return self._linear(f"{theirs}.o_proj", merged, wide, width)

    # --- Parameters by the names of transformers ---

    def _take(self, name: str, shape: tuple[int, ...]) -> Parameter:
        return self._weights.take(f"{self._prefix}{name}", shape)

    def _linear(self, name: str, x: str, size_in: int, size_out: int) -> str:
        weight = self._take(f"{name}.weight", (size_out, size_in))
        has_bias = f"{self._prefix}{name}.bias" in self._weights
        bias = self._take(f"{name}.bias", (size_out,)) if has_bias else None
        ours = name.replace("layers.", "layer.", 1)
        return blocks.linear(self._graph, x, Linear(weight, bias), ours)

    def _norm(self, theirs: str, x: str, name: str, size: int | None = None) -> str:
        weight = self._take(f"{theirs}.weight", (size or self._config.hidden_size,))
        return blocks.rms_norm(self._graph, x, weight, self._config.rms_norm_eps, name)
