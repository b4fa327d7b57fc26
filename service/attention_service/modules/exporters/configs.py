"""What is checked of a model's configuration and tokenizer before its graph is built."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attention_service.modules.exporters.errors import ExportError
from attention_service.modules.exporters.source import Source

# What ``layer_types`` says of a layer.
FULL = "full_attention"
SLIDING = "sliding_attention"


class Config(BaseModel):
    """What is needed of ``config.json``; its other fields do not change what is computed."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class TextConfig(Config):
    """The fields that most families have kept from BERT."""

    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=1)


Read = TypeVar("Read", bound=Config)


def is_of(source: Source, *model_types: str) -> bool:
    """Whether a source has a configuration of one of these types."""
    return source.config is not None and source.config.get("model_type") in model_types


def read(kind: type[Read], source: Source) -> Read:
    """The configuration of a source.

    Raises:
        ExportError: a field is missing or wrong.
    """
    try:
        return kind.model_validate(source.config or {})
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ExportError(f"config.json: {'; '.join(faults)}") from None


def check_heads(width: tuple[str, int], heads: tuple[str, int], asked: int | None) -> None:
    """Refuse heads that do not divide the width, or are not as many as was asked for.

    Args:
        width: the field's name and value.
        heads: as above.
        asked: how many heads the caller says there are, if any.

    Raises:
        ExportError: as said.
    """
    if asked not in (None, heads[1]):
        raise ExportError(
            f"num_heads {asked} contradicts config.json, which says {heads[1]}: leave it out"
        )
    if width[1] % heads[1]:
        raise ExportError(
            f"config.json: {width[0]} {width[1]} cannot be divided among {heads[0]} {heads[1]}"
        )


def check_layer_types(layer_types: list[str] | None, layers: int) -> None:
    """Refuse a list of layers' attention that is too short or long, or names another kind.

    Raises:
        ExportError: as said.
    """
    if layer_types is None:
        return
    if len(layer_types) != layers:
        raise ExportError(
            f"config.json: layer_types names {len(layer_types)} layers, num_hidden_layers says "
            f"{layers}"
        )
    if unknown := set(layer_types) - {FULL, SLIDING}:
        raise ExportError(f"config.json: layers of type {min(unknown)!r} are not supported")


def check_tokenizer(source: Source, vocabulary: int) -> None:
    """Refuse a tokenizer whose ids the word embeddings do not hold: it is another model's.

    Raises:
        ExportError: as said, or there is none, or it cannot be read.
    """
    if source.tokenizer_file is None:
        raise ExportError(
            "there is no tokenizer.json beside the weights; transformers writes it: "
            "AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained(FOLDER)"
        )
    try:
        tokenizer = json.loads(source.tokenizer_file.read_bytes())
        highest = max(_ids(tokenizer), default=-1)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ExportError(
            f"{source.tokenizer_file} is no WordPiece, BPE or Unigram tokenizer"
        ) from None
    if highest >= vocabulary:
        raise ExportError(
            f"tokenizer.json gives ids up to {highest}, but config.json says vocab_size "
            f"{vocabulary}: they belong to different models"
        )


def _ids(tokenizer: dict[str, Any]) -> list[int]:
    model = tokenizer["model"]
    # Unigram's vocabulary is a list of pieces with their scores, in the order of their ids.
    is_unigram = model.get("type") == "Unigram"
    ids = [*range(len(model["vocab"]))] if is_unigram else [*map(int, model["vocab"].values())]
    return ids + [int(token["id"]) for token in tokenizer.get("added_tokens") or ()]
