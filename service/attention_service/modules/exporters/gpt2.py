"""GPT-2 (https://openai.com/index/better-language-models), by the names of ``GPT2Model``.

A decoder: norms before attention and feed-forward network, learned positions, and no token sees
those after it. The output is the last hidden state behind the final norm.
"""

from __future__ import annotations

import math

from pydantic import Field
from typing_extensions import override

from attention_service.modules.exporters import blocks, configs
from attention_service.modules.exporters.attention import causal_bias
from attention_service.modules.exporters.blocks import Linear
from attention_service.modules.exporters.configs import Config
from attention_service.modules.exporters.errors import ExportError
from attention_service.modules.exporters.family import Built, Family
from attention_service.modules.exporters.source import Source
from attention_service.modules.exporters.text_graph import Inputs, TextGraph, TextSizes
from attention_service.modules.exporters.weights import Weights
from attention_service.modules.manifest import Layer


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
    return _GPT2(config, weights).built()


FAMILY = Family(
    "GPT-2 (model_type gpt2)",
    lambda source, _: configs.is_of(source, "gpt2"),
    _build,
)


class _GPT2(TextGraph):
    """Builds the graph of one model; the methods go from the tokens up."""

    def __init__(self, config: _Config, weights: Weights) -> None:
        sizes = TextSizes(
            width=config.n_embd,
            layers=config.n_layer,
            heads=config.n_head,
            kv_heads=config.n_head,
            head_size=config.head_size,
            longest=config.n_positions,
        )
        super().__init__("gpt2", sizes, weights, prefix="transformer.", first="wte.weight")
        self._config = config

    @override
    def _output(self, inputs: Inputs) -> str:
        hidden = self._embeddings(inputs.input_ids)
        bias = causal_bias(self._graph, inputs.input_ids, "causal_bias")
        for layer in range(self._config.n_layer):
            hidden = self._layer(layer, hidden, bias)
        return self._norm("ln_f", hidden, "output")

    def _embeddings(self, input_ids: str) -> str:
        """The sum of word and position: ``[B,L,E]``."""
        graph, config = self._graph, self._config
        word = graph.constant("wte", self._take("wte.weight", (config.vocab_size, config.n_embd)))
        table = self._take("wpe.weight", (config.n_positions, config.n_embd))
        words = graph.node("Gather", word, input_ids, name="embeddings.words")
        positions = blocks.positions(graph, graph.constant("wpe", table), input_ids, first=0)
        return graph.node("Add", words, positions, name="embeddings.output")

    def _layer(self, layer: int, x: str, bias: str) -> str:
        """One decoder layer: ``[B,L,E]`` → ``[B,L,E]``."""
        graph, config = self._graph, self._config
        theirs, ours, width = f"h.{layer}", f"layer.{layer}", config.n_embd
        merged = self._attended(layer, x, bias)
        middle = graph.node("Add", merged, x, name=f"{ours}.middle")

        normed = self._norm(f"{theirs}.ln_2", middle, f"{ours}.normed")
        wide = self._linear(f"{theirs}.mlp.c_fc", normed, (width, config.inner))
        active = blocks.activation(graph, wide, config.activation_function, f"{ours}.active")
        narrow = self._linear(f"{theirs}.mlp.c_proj", active, (config.inner, width))
        return graph.node("Add", narrow, middle, name=f"{ours}.output")

    def _attended(self, layer: int, x: str, bias: str) -> str:
        """Norm, self-attention and its projection: ``[B,L,E]`` → ``[B,L,E]``."""
        ours, width = self._ours, self._config.n_embd
        normed = self._norm(f"h.{layer}.ln_1", x, f"{ours}.normed")
        joined = self._transposed(f"h.{layer}.attn.c_attn", (width, 3 * width))
        query, key, value = self._joined_heads(normed, joined)
        made = Layer(
            hidden=x,
            query=query,
            key=key,
            value=value,
            context=f"{ours}.context",
            projection=f"layer.{layer}.attn.c_proj.weight",
            scale=self._scale(layer),
            is_causal=True,
        )
        context = self._attention(made, bias)
        return self._linear(f"h.{layer}.attn.c_proj", context, (width, width))

    def _scale(self, layer: int) -> float:
        config = self._config
        scale = 1 / math.sqrt(config.head_size) if config.scale_attn_weights else 1.0
        return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale

    # --- Parameters by the names of transformers ---

    def _transposed(self, name: str, sizes: tuple[int, int]) -> Linear:
        # Stored as [in,out], the other way round than torch.nn.Linear has it.
        weight = self._take(f"{name}.weight", sizes)
        return Linear(weight.T, self._take(f"{name}.bias", sizes[1:]))

    def _linear(self, name: str, x: str, sizes: tuple[int, int]) -> str:
        ours = name.replace("h.", "layer.", 1)
        return blocks.linear(self._graph, x, self._transposed(name, sizes), ours)

    def _norm(self, theirs: str, x: str, name: str) -> str:
        epsilon = self._config.layer_norm_epsilon
        return blocks.layer_norm(self._graph, x, self._norm_of(theirs), epsilon, name)
