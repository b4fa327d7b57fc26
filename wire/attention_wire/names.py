"""Names of fields: which one a caller means who writes another.

Callers know the names that ONNX, PyTorch, JAX and FlashAttention have for the same things
(docs/attention.md lists them), or a name of ours that belongs to another level or route.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from attention_wire.problems import Loc, dotted
from attention_wire.schemas import AttentionRequest, ModuleRequest, TextRequest

ROUTES: Mapping[type[BaseModel], str] = {
    AttentionRequest: "/v1/attention",
    ModuleRequest: "/v1/modules/{name}/attention",
    TextRequest: "/v1/text/attention",
}

_WINDOWS = ("left_window_size", "right_window_size")
# In lower case; where a name may mean several of ours, those that are known at its place.
_ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "q": ("query",),
    "k": ("key", "top_k"),
    "v": ("value",),
    "mask": ("attn_mask",),
    "attention_mask": ("attn_mask",),
    "key_padding_mask": ("attn_mask",),
    "mask_mod": ("attn_mask", *_WINDOWS, "query_document_ids", "key_document_ids"),
    "bias": ("attn_mask", "alibi_slopes"),
    "score_mod": ("attn_mask", "softcap", "alibi_slopes"),
    "softmax_scale": ("scale",),
    "causal": ("is_causal",),
    "window_size": _WINDOWS,
    "local_window_size": _WINDOWS,
    "sliding_window": _WINDOWS,
    "learnable_sink": ("sinks",),
    "s_aux": ("sinks",),
    "cache_seqlens": ("nonpad_kv_seqlen",),
    "key_value_seq_lengths": ("nonpad_kv_seqlen",),
    "k_cache": ("past_key",),
    "v_cache": ("past_value",),
    "cu_seqlens_q": ("query_document_ids",),
    "cu_seqlens_k": ("key_document_ids",),
    "y": ("output",),
    "out": ("output",),
    "need_weights": ("weights",),
    "output_attentions": ("weights",),
    "qk_matmul_output": ("scores", "weights"),
    "qk_matmul_output_mode": ("scores", "weights"),
    "softmax_lse": ("lse",),
    "return_residual": ("lse",),
    "present_key": ("present",),
    "present_value": ("present",),
    "layer": ("layers",),
    "head": ("heads",),
    "pair": ("text_pair",),
    "model": ("module",),
}
_NEEDLESS: Mapping[str, str] = {
    "enable_gqa": "heads are grouped by their numbers",
    "dropout_p": "there is no dropout",
    "dtype": 'each tensor says its own, as {"dtype": …, "shape": …, "data": …}',
}
# Of letters in common: what differs by more than a slip of the fingers is another word.
_LEAST_ALIKE = 0.8
# No name that is known is longer.
_LONGEST = 100


def meant(model: type[BaseModel], name: str, at: Loc = ()) -> str | None:
    """What to do about a name that a request does not have, as words; None if nothing is near.

    Args:
        model: the request.
        name: that was given.
        at: the path to the object that it was given in.
    """
    word = name.casefold()
    if word in _NEEDLESS:
        return f"leave it out: {_NEEDLESS[word]}"
    here, places = fields_at(model, at), _places(model)
    ours = _ELSEWHERE.get(word, (word,))
    found = [repr(known) for known in ours if known in here]
    found = found or [_elsewhere(places[known], at) for known in ours if known in places]
    if found:
        return f"did you mean {' or '.join(found)}?"
    for other, route in ROUTES.items():
        theirs = [dotted(path) for known, path in _places(other).items() if known in ours]
        if theirs:
            return f"{theirs[0]!r} is a field of POST {route}"
    if near := nearest(word, here):
        return f"did you mean {near!r}?"
    if near := nearest(word, places):
        return f"did you mean {_elsewhere(places[near], at)}?"
    return None


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of these names that differs by a slip or by case, if there is one."""
    folded = {one.casefold(): one for one in known}
    near = difflib.get_close_matches(name[:_LONGEST].casefold(), folded, 1, _LEAST_ALIKE)
    return folded[near[0]] if near else None


def fields_at(model: type[BaseModel], at: Loc = ()) -> dict[str, FieldInfo]:
    """The fields that the object at a path of a model has, by the names that they go by."""
    known = _fields(model)
    for part in at:
        if part in known:
            known = _inside(known[str(part)])
    return known


@cache
def _places(model: type[BaseModel]) -> dict[str, Loc]:
    """The paths of all fields of a model, by their last names; the outermost of a name."""
    places: dict[str, Loc] = {}
    level: dict[Loc, FieldInfo] = {(name,): info for name, info in _fields(model).items()}
    while level:
        places = {str(path[-1]): path for path in level} | places
        level = {
            (*path, name): inner
            for path, info in level.items()
            for name, inner in _inside(info).items()
        }
    return places


def _elsewhere(path: Loc, at: Loc) -> str:
    beside = f", beside {str(at[0])!r}" if at and len(path) == 1 else ""
    return repr(dotted(path)) + beside


def _inside(info: FieldInfo) -> dict[str, FieldInfo]:
    return {
        name: inner for model in _models(info.annotation) for name, inner in _fields(model).items()
    }


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation names, be it in a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
