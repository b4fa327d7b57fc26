"""The manifest of a learned module: what `module.json` says about the files beside it.

A module is a folder::

    <name>/
        module.json      this manifest
        model.onnx       the graph, with the input and output names given below
        tokenizer.json   for text modules
        LICENSE          the licence of the weights, where their source has one

Any ONNX file that keeps those names can be put there, whoever exported it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

# What /v2 calls plain attention; no module can have this name.
RESERVED_NAME = "sdpa"
MANIFEST_FILE = "module.json"
MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"


# Name → the shape that an output has, and the one that it should have.
Probe: TypeAlias = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


class Outputs(BaseModel):
    """Names of the graph's outputs.

    Attributes:
        output: the rows of the last layer, ``[B,L,E]``.
        weights: one name a layer, from the first: its attention weights ``[B,H,L,S]``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str = "output"
    weights: list[str] = Field(min_length=1)


class Layer(BaseModel):
    """Where a text graph can be cut around the attention of a layer, and how that attends.

    Graphs that can be cut run layer by layer, with the attention computed by the engine: only
    what is asked for, by tiles, of any length. Options are named as in POST /v1/attention.

    Attributes:
        hidden: the value that the layer adds to, ``[B,L,E]``.
        query: ``[B,H,L,D]``, ready for the product: positions and norms are in it.
        key: ``[B,Hkv,L,D]``.
        value: ``[B,Hkv,L,Dv]``.
        context: what attention gives, ``[B,H,L,Dv]``; nothing after it reads the three above.
        projection: the constant ``[H·Dv,E]`` that the merged context is multiplied by.
        scale: factor on the scores.
        is_causal: whether no token sees those after it.
        left_window_size: keys before a token that it sees; −1: all.
        right_window_size: keys after a token that it sees; −1: all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden: str
    query: str
    key: str
    value: str
    context: str
    projection: str
    scale: float
    is_causal: bool = False
    left_window_size: int = Field(default=-1, ge=-1)
    right_window_size: int = Field(default=-1, ge=-1)

    @property
    def sees_all(self) -> bool:
        """Whether every token of a text sees every other."""
        return not self.is_causal and max(self.left_window_size, self.right_window_size) < 0


class Manifest(BaseModel):
    """What a module is: read from and written to ``module.json``.

    A ``text`` module's graph takes the int64 inputs ``input_ids``, ``attention_mask`` and
    ``token_type_ids``, all ``[B,L]``. A ``multi_head`` module's graph takes ``query``
    ``[B,L,E]``, ``key`` ``[B,S,key_dim]``, ``value`` ``[B,S,value_dim]``, ``attn_bias``
    (added to the scores, broadcast to ``[B,H,L,S]``) and ``scale`` (a scalar), in ``dtype``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    kind: Literal["multi_head", "text"]
    num_heads: int = Field(ge=1)
    num_layers: int = Field(ge=1)
    embed_dim: int = Field(ge=1)
    key_dim: int = Field(ge=1)
    value_dim: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    max_length: int | None = Field(default=None, ge=1, description="Tokens, special ones included")
    dtype: Literal["float32"] = "float32"
    outputs: Outputs
    layers: list[Layer] | None = Field(
        default=None, description="Of a text graph that can be cut at each layer's attention"
    )
    license: str | None = Field(default=None, description="SPDX identifier")
    source: str | None = None
    source_sha256: str | None = Field(default=None, description="Checksum of the weights' file")
    files: dict[str, str] = Field(description="File name → SHA-256, for every file beside this one")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
