"""A self-check: known cases on this machine's providers against numpy in float64.

The formula is written out densely here, from its definition and with none of the engine's
code, so that a port to another provider or runtime can be trusted where it agrees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from attention_service.attention.engine import Engine
from attention_service.attention.sdpa import AttentionJob
from attention_wire.answers import PlanInfo
from attention_wire.schemas import AttentionRequest
from attention_wire.tensors import FLOAT_DTYPES, Array

ALLOWED = {"float16": 1e-2, "bfloat16": 1e-2, "float32": 1e-5, "float64": 1e-12}
_TENSORS = ("past_key", "past_value")
_BATCH, _Q_HEADS, _KV_HEADS, _LENGTH, _KEYS, _SIZE, _V_SIZE = 2, 4, 2, 70, 90, 64, 48
_PAST = 5


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One case in one dtype: its largest error over output, weights, lse and entropy."""

    options: str
    dtype: str
    error: float

    @property
    def ok(self) -> bool:
        """Whether the error is within what the dtype allows."""
        return self.error <= ALLOWED[self.dtype]


def check_provider(engine: Engine) -> Iterator[CheckResult]:
    """Run each case in each dtype."""
    rng = np.random.default_rng(0)
    names = ("query", "key", "value")
    shapes = (
        (_BATCH, _Q_HEADS, _LENGTH, _SIZE),
        (_BATCH, _KV_HEADS, _KEYS, _SIZE),
        (_BATCH, _KV_HEADS, _KEYS, _V_SIZE),
    )
    tensors = {name: rng.standard_normal(shape) for name, shape in zip(names, shapes, strict=True)}
    for options, fields in _cases(rng).items():
        for dtype, numpy_dtype in FLOAT_DTYPES.items():
            given = tensors | {name: fields[name] for name in _TENSORS if name in fields}
            typed = {name: tensor.astype(numpy_dtype) for name, tensor in given.items()}
            yield CheckResult(options, dtype, _largest_error(engine, typed, fields))


def _cases(rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Each option alone, then many together."""
    offset = _KEYS - _LENGTH
    documents = {
        "query_document_ids": np.sort(rng.integers(0, 3, (_BATCH, _LENGTH))),
        "key_document_ids": np.sort(rng.integers(0, 3, (_BATCH, _KEYS))),
    }
    bias = rng.standard_normal((_Q_HEADS, _LENGTH, _KEYS))
    bias[:, 3] = -np.inf
    past = {
        "past_key": rng.standard_normal((_BATCH, _KV_HEADS, _PAST, _SIZE)),
        "past_value": rng.standard_normal((_BATCH, _KV_HEADS, _PAST, _V_SIZE)),
    }
    slopes, sinks = 2.0 ** -np.arange(1, _Q_HEADS + 1), rng.standard_normal(_Q_HEADS)
    return {
        "plain, grouped heads": {},
        "scale": {"scale": -0.3},
        "softcap": {"softcap": 0.7},
        "causal": {"is_causal": True},
        "causal, query offset": {"is_causal": True, "query_offset": offset},
        "causal, key offset": {"is_causal": True, "key_offset": -offset},
        "causal, past": {**past, "is_causal": True},
        "window": {"left_window_size": 9, "right_window_size": 4, "query_offset": offset},
        "padding": {"nonpad_kv_seqlen": np.array([_KEYS, 33]), "is_causal": True},
        "bool mask": {"attn_mask": rng.random((_LENGTH, _KEYS)) < 0.5},
        "short mask": {"attn_mask": rng.random((_BATCH, 1, 1, _KEYS - 20)) < 0.5},
        "float mask, masked row": {"attn_mask": bias},
        "ALiBi": {"alibi_slopes": slopes, "is_causal": True, "query_offset": offset},
        "documents": documents,
        "sinks": {"sinks": sinks},
        "all together": {
            **documents,
            "attn_mask": bias,
            "alibi_slopes": slopes,
            "sinks": sinks,
            "softcap": 2.0,
            "is_causal": True,
            "left_window_size": 50,
            "query_offset": offset,
        },
    }


def _largest_error(engine: Engine, tensors: Mapping[str, Array], fields: dict[str, Any]) -> float:
    wanted = {"lse": True, "entropy": True}
    request = AttentionRequest.model_validate({**fields, **tensors, "return": wanted})
    answer = AttentionJob.of(request, engine).run()
    expected = _reference({n: t.astype(np.float64) for n, t in tensors.items()}, fields)
    errors = []
    for name, right in expected.items():
        given = answer[name].astype(np.float64)
        with np.errstate(invalid="ignore"):  # −∞ − −∞ where both say that no key is seen
            difference = np.where(given == right, 0, np.abs(given - right))
        errors.append(float(difference.max()) / max(1.0, float(np.abs(right[right > -1e30]).max())))
    return max(errors)


def _reference(tensors: Mapping[str, Array], fields: dict[str, Any]) -> dict[str, Array]:
    """softmax(softcap(scale·QKᵀ) + bias)·V in float64, with all weights formed."""
    groups = _Q_HEADS // _KV_HEADS
    whole = {
        name: np.concatenate(
            [tensors.get(f"past_{name}", tensors[name][:, :, :0]), tensors[name]], 2
        )
        for name in ("key", "value")
    }
    key, value = (np.repeat(tensor, groups, axis=1) for tensor in whole.values())
    scores = tensors["query"] @ key.swapaxes(-1, -2) * fields.get("scale", _SIZE**-0.5)
    cap = fields.get("softcap", 0.0)
    scores = (cap * np.tanh(scores / cap) if cap else scores) + _bias(fields, key.shape[2])
    sinks = np.asarray(fields.get("sinks", np.full(_Q_HEADS, -np.inf)))[:, None]
    largest = np.maximum(scores.max(axis=-1), sinks)
    shift = np.where(np.isneginf(largest), 0, largest)[..., None]
    exponentials = np.exp(scores - shift)
    total = exponentials.sum(axis=-1) + np.exp(sinks - shift[..., 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(total[..., None] > 0, exponentials / total[..., None], 0)
        lse = np.log(total) + shift[..., 0]
        surprise = np.where(weights > 0, -weights * np.log(weights), 0)
    entropy = surprise.sum(axis=-1)
    return {"output": weights @ value, "weights": weights, "lse": lse, "entropy": entropy}


def _bias(fields: dict[str, Any], keys: int) -> Array:
    """Masks and ALiBi as one float64 array ``[B,Hq,L,T]``."""
    rows, index = np.arange(_LENGTH)[:, None], np.arange(keys)
    full = (_BATCH, _Q_HEADS, _LENGTH, keys)
    nonpad = np.asarray(fields.get("nonpad_kv_seqlen", [keys] * _BATCH))[:, None, None, None]
    default = nonpad - _LENGTH if "nonpad_kv_seqlen" in fields else keys - _KEYS
    place = rows + fields.get("query_offset", default)
    columns = index + fields.get("key_offset", 0)
    seen = np.broadcast_to(index < nonpad, full).copy()
    if fields.get("is_causal"):
        seen &= columns <= place
    left, right = fields.get("left_window_size", -1), fields.get("right_window_size", -1)
    if left >= 0:
        seen &= columns >= place - left
    if right >= 0:
        seen &= columns <= place + right
    if "query_document_ids" in fields:
        theirs = fields["key_document_ids"][:, None, None, :]
        seen &= fields["query_document_ids"][:, None, :, None] == theirs
    bias = np.zeros(full)
    if "alibi_slopes" in fields:
        bias -= fields["alibi_slopes"][:, None, None] * np.abs(place - columns)
    mask = fields.get("attn_mask")
    if mask is not None:
        part = bias[..., : mask.shape[-1]]
        part += np.where(mask, 0, -np.inf) if mask.dtype == bool else mask
        bias[..., mask.shape[-1] :] = -np.inf
    return np.where(seen, bias, -np.inf)


# --- What calls would cost -----------------------------------------------------------------

_SHAPES: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "decode, 8192 keys": ({"return": {"weights": False}}, (8, 1, 8192)),
    "output, 1024": ({"return": {"weights": False}}, (8, 1024, 1024)),
    "output, 8192": ({"return": {"weights": False}}, (8, 8192, 8192)),
    "causal, 8192": ({"return": {"weights": False}, "is_causal": True}, (8, 8192, 8192)),
    "causal window of 256, 8192": (
        {"return": {"weights": False}, "is_causal": True, "left_window_size": 255},
        (8, 8192, 8192),
    ),
    "output and all weights, 1024": ({}, (8, 1024, 1024)),
    "output and top 8, 8192": ({"return": {"weights": {"top_k": 8}}}, (8, 8192, 8192)),
    "output, lse, entropy, 8192": (
        {"return": {"weights": False, "lse": True, "entropy": True}},
        (8, 8192, 8192),
    ),
    "64 rows of one head, 32768": (
        {
            "return": {
                "output": False,
                "weights": {"heads": [0], "queries": {"start": 0, "stop": 64}},
            }
        },
        (8, 32768, 32768),
    ),
}


def explain(engine: Engine) -> Iterator[tuple[str, PlanInfo]]:
    """How calls of common shapes (float32, head size 64) would be run, and what they cost."""
    for name, (fields, (heads, rows, keys)) in _SHAPES.items():
        # Planning looks at shapes alone, so these pages are never touched.
        query, key = (np.empty((1, heads, length, 64), np.float32) for length in (rows, keys))
        tensors = {"query": query, "key": key, "value": key}
        request = AttentionRequest.model_validate({**tensors, **fields})
        yield name, AttentionJob.of(request, engine).explain()
