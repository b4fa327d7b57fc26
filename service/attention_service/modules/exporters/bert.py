"""BERT (https://arxiv.org/abs/1810.04805), by the names of transformers' ``BertModel``."""

from __future__ import annotations

from pydantic import Field

from attention_service.modules.exporters import configs, encoder
from attention_service.modules.exporters.configs import TextConfig
from attention_service.modules.exporters.errors import ExportError
from attention_service.modules.exporters.family import Built, Family
from attention_service.modules.exporters.source import Source
from attention_service.modules.exporters.weights import Weights


class BertConfig(TextConfig):
    """A configuration of BERT's fields, which families after it have kept."""

    type_vocab_size: int = Field(default=2, ge=1)
    hidden_act: str = "gelu"
    layer_norm_eps: float = Field(default=1e-12, gt=0)
    position_embedding_type: str = "absolute"
    is_decoder: bool = False

    def sizes(self, first_position: int) -> encoder.Sizes:
        """As an encoder has them, whose first token has this row of the positions."""
        return encoder.Sizes(
            vocabulary=self.vocab_size,
            width=self.hidden_size,
            layers=self.num_hidden_layers,
            heads=self.num_attention_heads,
            inner=self.intermediate_size,
            positions=self.max_position_embeddings,
            first_position=first_position,
            segments=self.type_vocab_size,
            activation=self.hidden_act,
            epsilon=self.layer_norm_eps,
        )


def check(config: BertConfig, source: Source, num_heads: int | None) -> None:
    """Refuse what is not built of such a model.

    Raises:
        ExportError: as said.
    """
    if config.position_embedding_type != "absolute":
        raise ExportError(
            f"config.json: position_embedding_type {config.position_embedding_type!r} is not "
            "supported, only 'absolute' is"
        )
    if config.is_decoder:
        raise ExportError("config.json: is_decoder is true; only encoders are supported")
    width = "hidden_size", config.hidden_size
    configs.check_heads(width, ("num_attention_heads", config.num_attention_heads), num_heads)
    configs.check_tokenizer(source, config.vocab_size)


def _build(source: Source, weights: Weights, num_heads: int | None) -> Built:
    config = configs.read(BertConfig, source)
    check(config, source, num_heads)
    return encoder.build("bert", config.sizes(0), encoder.Names("bert."), weights)


FAMILY = Family(
    "BERT (config.json with model_type bert)",
    lambda source, _: configs.is_of(source, "bert"),
    _build,
)
