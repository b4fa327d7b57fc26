"""The calls whose memory is measured: long ones, and twenty that vary every option."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attention_wire.tensors import FLOAT_DTYPES

Fields = dict[str, Any]
Tensors = Callable[[np.random.Generator, "Shape"], Fields]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a call, by the letters of the contract; ``past`` keys come before the new."""

    length: int
    keys: int
    batch: int = 1
    heads: int = 8
    kv_heads: int = 8
    size: int = 64
    v_size: int = 64
    past: int = 0
    rank: int = 4

    def small(self) -> Shape:
        """The same call over few rows and keys, for warming up."""
        return Shape(
            min(self.length, 16), min(self.keys, 16), self.batch, self.heads, self.kv_heads,
            self.size, self.v_size, min(self.past, 16), self.rank,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """A call to be measured.

    Attributes:
        shape: its sizes.
        wanted: its ``return``.
        dtype: of query, key and value.
        options: its other scalar fields.
        tensors: makes its other tensors.
    """

    shape: Shape
    wanted: Fields = field(default_factory=dict)
    dtype: str = "float32"
    options: Fields = field(default_factory=dict)
    tensors: Tensors | None = None

    def fields(self, shape: Shape) -> Fields:
        """The fields of a request of this kind over tensors of some shape."""
        rng = np.random.default_rng(0)
        fields: Fields = {"return": _clipped(self.wanted, shape), **self.options}
        for name, heads, length, size in (
            ("query", shape.heads, shape.length, shape.size),
            ("key", shape.kv_heads, shape.keys, shape.size),
            ("value", shape.kv_heads, shape.keys, shape.v_size),
            ("past_key", shape.kv_heads, shape.past, shape.size),
            ("past_value", shape.kv_heads, shape.past, shape.v_size),
        ):
            if length:
                rank_4 = (shape.batch, heads, length, size)
                rank_3 = (shape.batch, length, heads * size)
                fits = rank_3 if shape.rank == 3 and not name.startswith("past") else rank_4
                fields[name] = _normal(rng, fits, self.dtype)
        if shape.rank == 3:
            fields |= {"q_num_heads": shape.heads, "kv_num_heads": shape.kv_heads}
        return fields | (self.tensors(rng, shape) if self.tensors else {})


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "float64":
        return rng.standard_normal(shape)
    return rng.standard_normal(shape, np.float32).astype(FLOAT_DTYPES[dtype], copy=False)


def _clipped(wanted: Fields, shape: Shape) -> Fields:
    """A ``return`` whose rows exist in a smaller call too."""
    weights = wanted.get("weights")
    if not isinstance(weights, dict) or "queries" not in weights:
        return wanted
    queries = weights["queries"]
    if isinstance(queries, dict):
        start = min(queries["start"], shape.length - 1)
        queries = {"start": start, "stop": min(queries["stop"], shape.length)}
    else:
        queries = [row for row in queries if row < shape.length] or [0]
    return {**wanted, "weights": {**weights, "queries": queries}}


# --- Tensors beside query, key and value ------------------------------------------------------


def _bool_mask(rng: np.random.Generator, shape: Shape) -> Fields:
    return {"attn_mask": rng.random((shape.length, shape.keys + shape.past), np.float32) < 0.7}


def _mask_of_heads(rng: np.random.Generator, shape: Shape) -> Fields:
    full = (shape.batch, shape.heads, shape.length, shape.keys)
    return {"attn_mask": rng.standard_normal(full, np.float32)}


def _alibi(_: np.random.Generator, shape: Shape) -> Fields:
    return {"alibi_slopes": (0.5 ** np.arange(1, shape.heads + 1)).astype(np.float32)}


def _documents(rng: np.random.Generator, shape: Shape) -> Fields:
    return {
        "query_document_ids": np.sort(rng.integers(0, 8, (shape.batch, shape.length))),
        "key_document_ids": np.sort(rng.integers(0, 8, (shape.batch, shape.keys))),
    }


def _sinks(rng: np.random.Generator, shape: Shape) -> Fields:
    return {"sinks": rng.standard_normal(shape.heads, np.float32)}


def _padding(_: np.random.Generator, shape: Shape) -> Fields:
    return {"nonpad_kv_seqlen": np.full(shape.batch, shape.keys * 3 // 4)}


# --- Calls ------------------------------------------------------------------------------------

_NO_WEIGHTS: Fields = {"weights": False}
_CAUSAL: Fields = {"is_causal": True}
_LONG = Shape(32768, 32768)
_ROWS: Fields = {"start": 0, "stop": 64}

# Name → call, and the growth in MB that it is to stay under.
LONG: dict[str, tuple[Call, int]] = {
    "output alone": (Call(_LONG, _NO_WEIGHTS), 600),
    "output, top-8 of all heads": (Call(_LONG, {"weights": {"top_k": 8}}), 800),
    "output, entropy, LSE": (Call(_LONG, {**_NO_WEIGHTS, "lse": True, "entropy": True}), 600),
    "output, weights of one head and 64 rows": (
        Call(_LONG, {"weights": {"heads": [0], "queries": _ROWS}}),
        600,
    ),
}

VARIED: dict[str, Call] = {
    "output": Call(Shape(16384, 16384), _NO_WEIGHTS),
    "output, causal": Call(Shape(12288, 12288), _NO_WEIGHTS, options=_CAUSAL),
    "weights": Call(Shape(2048, 2048)),
    "weights, causal": Call(Shape(2048, 2048), options=_CAUSAL),
    "top-8": Call(Shape(4096, 8192), {"weights": {"top_k": 8}}),
    "LSE and entropy": Call(Shape(6144, 6144), {"weights": False, "lse": True, "entropy": True}),
    "mask of each head, 4 heads of the weights": Call(
        Shape(2048, 2048), {"weights": {"heads": [0, 2, 4, 6]}}, tensors=_mask_of_heads
    ),
    "bool mask, softcap, weights": Call(
        Shape(1536, 3000), options={"softcap": 20.0}, tensors=_bool_mask
    ),
    "ALiBi, causal, LSE": Call(
        Shape(6144, 6144), {"weights": False, "lse": True}, options=_CAUSAL, tensors=_alibi
    ),
    "documents, top-4, entropy": Call(
        Shape(4096, 4096), {"weights": {"top_k": 4}, "entropy": True}, tensors=_documents
    ),
    "float16, output": Call(Shape(12288, 12288), _NO_WEIGHTS, "float16"),
    "bfloat16, weights, causal": Call(Shape(2048, 2048), dtype="bfloat16", options=_CAUSAL),
    "float64, weights": Call(Shape(1024, 2048), dtype="float64"),
    "rank 3, output, causal": Call(Shape(8192, 8192, rank=3), _NO_WEIGHTS, options=_CAUSAL),
    "GQA 32:8, window of 512": Call(
        Shape(8192, 8192, heads=32),
        _NO_WEIGHTS,
        options={**_CAUSAL, "left_window_size": 511},
    ),
    "one row after a past of 8192, batch of 2": Call(
        Shape(1, 1, batch=2, past=8192), _NO_WEIGHTS, options=_CAUSAL
    ),
    "float16 past of 4096, 512 rows, weights of 64": Call(
        Shape(512, 512, heads=32, past=4096),
        {"weights": {"queries": _ROWS}},
        "float16",
        _CAUSAL,
    ),
    "mean over heads": Call(Shape(4096, 4096), {"weights": {"reduce": "mean"}}),
    "largest over heads, top-16, causal": Call(
        Shape(4096, 4096, batch=2),
        {"weights": {"reduce": "max", "top_k": 16}},
        options=_CAUSAL,
    ),
    "sinks, window, masked scores, values of 128": Call(
        Shape(2048, 2048, v_size=128),
        {"weights": False, "scores": "masked", "lse": True},
        options={"left_window_size": 255, "right_window_size": 255},
        tensors=_sinks,
    ),
    "many short ones, padded": Call(Shape(64, 128, batch=256), tensors=_padding),
    "chosen rows and heads, raw scores": Call(
        Shape(4096, 16384),
        {
            "output": False,
            "weights": {"heads": [7, 1], "queries": list(range(0, 4096, 16))},
            "scores": "raw",
        },
    ),
}

# Too small for a share to say much: here the difference in MB counts.
SMALL: dict[str, Call] = {
    "tiny": Call(Shape(16, 16, heads=2, kv_heads=2, size=16, v_size=16)),
    "weights of 256": Call(Shape(256, 256)),
    "output of 512, causal": Call(Shape(512, 512), _NO_WEIGHTS, options=_CAUSAL),
    "one row over 8192 keys": Call(Shape(1, 8192), _NO_WEIGHTS),
    "top-8 of 512, softcap, mask": Call(
        Shape(512, 512), {"weights": {"top_k": 8}}, options={"softcap": 5.0}, tensors=_bool_mask
    ),
}
