"""RoBERTa (https://arxiv.org/abs/1907.11692) and XLM-R (https://arxiv.org/abs/1911.02116).

BERT's architecture and, but for the prefix, its names in transformers. Positions are counted from
the row after that of the padding token, so as many fewer tokens have one.
"""

from __future__ import annotations

from pydantic import Field

from attention_service.modules.exporters import configs, encoder
from attention_service.modules.exporters.bert import BertConfig, check
from attention_service.modules.exporters.errors import ExportError
from attention_service.modules.exporters.family import Built, Family
from attention_service.modules.exporters.source import Source
from attention_service.modules.exporters.weights import Weights

_MODEL_TYPES = ("roberta", "xlm-roberta", "camembert")


class _Config(BertConfig):
    type_vocab_size: int = Field(default=1, ge=1)
    pad_token_id: int = Field(default=1, ge=0)


def _build(source: Source, weights: Weights, num_heads: int | None) -> Built:
    config = configs.read(_Config, source)
    check(config, source, num_heads)
    sizes = config.sizes(config.pad_token_id + 1)
    if sizes.longest < 1:
        raise ExportError(
            f"config.json: max_position_embeddings {sizes.positions} leaves no position after "
            f"pad_token_id {config.pad_token_id}"
        )
    return encoder.build("roberta", sizes, encoder.Names("roberta."), weights)


FAMILY = Family(
    f"RoBERTa and XLM-R (model_type {', '.join(_MODEL_TYPES)})",
    lambda source, _: configs.is_of(source, *_MODEL_TYPES),
    _build,
)
