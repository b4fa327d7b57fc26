"""DistilBERT (https://arxiv.org/abs/1910.01108): BERT without segments, under other names."""

from __future__ import annotations

from pydantic import Field

from attention_service.modules.exporters import configs, encoder
from attention_service.modules.exporters.configs import Config
from attention_service.modules.exporters.family import Built, Family
from attention_service.modules.exporters.source import Source
from attention_service.modules.exporters.weights import Weights

_EPSILON = 1e-12  # no field of the configuration
_NAMES = encoder.Names(
    "distilbert.",
    layer="transformer.layer.{}",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    merged="attention.out_lin",
    attention_norm="sa_layer_norm",
    widened="ffn.lin1",
    narrowed="ffn.lin2",
    layer_norm="output_layer_norm",
)


class _Config(Config):
    vocab_size: int = Field(ge=1)
    dim: int = Field(ge=1)
    n_layers: int = Field(ge=1)
    n_heads: int = Field(ge=1)
    hidden_dim: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=1)
    activation: str = "gelu"


def _build(source: Source, weights: Weights, num_heads: int | None) -> Built:
    config = configs.read(_Config, source)
    configs.check_heads(("dim", config.dim), ("n_heads", config.n_heads), num_heads)
    configs.check_tokenizer(source, config.vocab_size)
    sizes = encoder.Sizes(
        vocabulary=config.vocab_size,
        width=config.dim,
        layers=config.n_layers,
        heads=config.n_heads,
        inner=config.hidden_dim,
        positions=config.max_position_embeddings,
        first_position=0,
        segments=0,
        activation=config.activation,
        epsilon=_EPSILON,
    )
    return encoder.build("distilbert", sizes, _NAMES, weights)


FAMILY = Family(
    "DistilBERT (model_type distilbert)",
    lambda source, _: configs.is_of(source, "distilbert"),
    _build,
)
