"""One call of attention as calls to several services, each with a part of the keys.

Pure: which calls to make and how to merge their results. The clients make them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from attention_client.merging import combined, merge, merge_entropy, merge_lse
from attention_client.results import AttentionResult
from attention_wire.tensors import Array, dtype_name

_UNMERGED = ("weights", "scores", "plan")
_PAST = ("past_key", "past_value")
_BATCHED = {
    "query", "key", "value", "nonpad_kv_seqlen", "query_document_ids", "key_document_ids",
}  # fmt: skip


@dataclass(frozen=True)
class Sharded:
    """A call that is divided among several services.

    Attributes:
        fields: for each service, the fields of the calls to make there, one for each group.
        groups: the batch elements of each group; None for all of them. There is one group,
            unless the elements' queries stand at different positions: a call has one
            ``query_offset``.
        asked: the `return` of each call.
        sinks: those of the call, which go to the first service.
        present: present_key and present_value, where they were asked for.
    """

    fields: list[list[dict[str, Any]]]
    groups: list[Array | None]
    asked: Mapping[str, bool]
    sinks: Array | None
    present: Mapping[str, Array]

    def merged(self, results: Sequence[Sequence[AttentionResult]]) -> AttentionResult:
        """The result of the whole call.

        Args:
            results: for each service, those of its calls, in the order of ``fields``.
        """
        by_group = [self._of_group(parts) for parts in zip(*results, strict=True)]
        result = by_group[0]
        if len(by_group) > 1:
            names = result.arrays
            arrays = {n: self._placed([each.arrays[n] for each in by_group]) for n in names}
            result = combined(by_group, arrays)
        return dataclasses.replace(result, arrays={**result.arrays, **self.present})

    def _of_group(self, parts: Sequence[AttentionResult]) -> AttentionResult:
        result = merge(parts) if self.asked["output"] else merge_lse(parts)
        if not self.asked["entropy"]:
            return result
        return combined(parts, {**result.arrays, "entropy": merge_entropy(parts, self.sinks)})

    def _placed(self, arrays: Sequence[Array]) -> Array:
        """The groups' batch elements, each at its place."""
        order = np.concatenate([group for group in self.groups if group is not None])
        joined: Array = np.concatenate(arrays)[np.argsort(order)]
        return joined


def check_clients(shards: Sequence[object], kind: type) -> None:
    """Check that a call is divided among clients, which know how to speak to their services.

    Raises:
        TypeError: one of the shards is something else, such as an address.
    """
    for shard in shards:
        if not isinstance(shard, kind):
            name = kind.__name__
            cure = (
                f"{name}({shard!r})" if isinstance(shard, str) else f"give each as {name}(address)"
            )
            raise TypeError(
                f"shards: takes clients of services, not {type(shard).__name__}; {cure}"
            )


def divide(fields: Mapping[str, Any], services: int) -> Sharded:
    """Divide a call among so many services, by contiguous parts of the keys.

    Where there are more services than keys, the last ones get nothing to do.

    Args:
        fields: of the whole call; tensors as arrays.
        services: how many there are.

    Raises:
        ValueError: there is no service; results are asked for that are not merged; or tensors
            do not fit each other, so that they cannot be divided.
    """
    if services < 1:
        raise ValueError("shards: give at least one client")
    asked = _return_of_parts(fields.get("return"))
    whole, present = _with_past_joined(fields)
    whole["return"] = asked
    _check_lengths(whole)
    groups = _groups(whole)
    bounds = _bounds(whole["key"].shape[-2], services)
    return Sharded(
        fields=[
            [_part(_of_batch(offset_fields, batch), *part) for batch, offset_fields in groups]
            for part in bounds
        ],
        groups=[batch for batch, _ in groups],
        asked=asked,
        sinks=whole.get("sinks"),
        present=present,
    )


def _return_of_parts(return_: Any) -> dict[str, bool]:
    """What to ask each service for, once nothing is asked for that is not merged."""
    asked = {} if return_ is None else return_
    if not isinstance(asked, Mapping):
        raise ValueError(f"return_ must be a mapping or a Return; got {asked!r}")
    for name in asked:
        if name not in {"output", "lse", "entropy", "present", *_UNMERGED}:
            raise ValueError(f"return_: there is no {name!r}")
        if name in _UNMERGED and asked[name]:
            raise ValueError(
                f"return_: {name} of shards is not merged, only output, lse and entropy are; "
                "leave it out, or call one service without shards"
            )
    return {
        "output": bool(asked.get("output", True)),
        "weights": False,
        "lse": True,
        "entropy": bool(asked.get("entropy", False)),
    }


# --- The whole call --------------------------------------------------------------------


def _with_past_joined(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    """The call with its past among its keys, and these keys and values as rank 4."""
    whole = dict(fields)
    ranks = {name: whole[name].ndim for name in ("query", "key", "value")}
    if len(set(ranks.values())) > 1 or ranks["key"] not in (2, 3, 4):
        raise ValueError(f"query, key and value have one rank, 2, 3 or 4; got {ranks}")
    pasts = [whole.pop(name, None) for name in _PAST]
    if (pasts[0] is None) != (pasts[1] is None):
        raise ValueError("past_key and past_value go together")
    asked = whole.get("return") or {}
    if "nonpad_kv_seqlen" in whole and (pasts[0] is not None or asked.get("present")):
        raise ValueError("nonpad_kv_seqlen goes without a past and a present")
    present: dict[str, Array] = {}
    heads = whole.get("kv_num_heads")
    for name, past in zip(("key", "value"), pasts, strict=True):
        if past is None and not asked.get("present"):
            continue
        tensor = _to_rank_4(name, whole[name], heads)
        if past is not None:
            tensor = _joined(name, past, tensor)
            whole[name] = _to_rank(tensor, ranks[name])
        present[f"present_{name}"] = tensor
    if pasts[0] is not None:
        whole.setdefault("query_offset", pasts[0].shape[2])
    return whole, present


def _to_rank_4(name: str, tensor: Array, heads: int | None) -> Array:
    if tensor.ndim == 4:
        return tensor
    if tensor.ndim == 2:
        return tensor[None, None]
    batch, length, width = tensor.shape
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ValueError(
            f"{name} has {width} columns (shape {list(tensor.shape)}), which kv_num_heads={heads} "
            "does not divide"
        )
    return tensor.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def _to_rank(tensor: Array, rank: int) -> Array:
    if rank == 4:
        return tensor
    if rank == 2:
        matrix: Array = tensor[0, 0]
        return matrix
    batch, heads, length, size = tensor.shape
    return tensor.swapaxes(1, 2).reshape(batch, length, heads * size)


def _joined(name: str, past: Array, tensor: Array) -> Array:
    fits = past.ndim == 4 and past.shape[:2] == tensor.shape[:2] and past.dtype == tensor.dtype
    if not fits or past.shape[3] != tensor.shape[3]:
        raise ValueError(
            f"past_{name} is {dtype_name(past)}{list(past.shape)}, which does not fit the {name}'s "
            f"{dtype_name(tensor)}{list(tensor.shape)}: they differ in their length only"
        )
    joined: Array = np.concatenate([past, tensor], axis=2)
    return joined


def _check_lengths(fields: Mapping[str, Any]) -> None:
    """What a service cannot see of parts: that the whole tensors have one number of keys."""
    length = fields["key"].shape[-2]
    if fields["value"].shape[-2] != length:
        raise ValueError(f"value has {fields['value'].shape[-2]} rows where key has {length}")
    mask = fields.get("attn_mask")
    if mask is not None and (mask.ndim == 0 or mask.shape[-1] > length):
        raise ValueError(
            f"attn_mask has shape {list(mask.shape)}; its last dimension is at most the {length} "
            "keys, those of the past included"
        )
    ids = fields.get("key_document_ids")
    if ids is not None and (ids.ndim == 0 or ids.shape[-1] != length):
        raise ValueError(
            f"key_document_ids has shape {list(ids.shape)}; its last dimension is the {length} "
            "keys, those of the past included"
        )
    nonpad = fields.get("nonpad_kv_seqlen")
    if nonpad is not None and not ((nonpad >= 0) & (nonpad <= length)).all():
        raise ValueError(f"nonpad_kv_seqlen: each is from 0 to {length}, the number of keys")


def _groups(fields: dict[str, Any]) -> list[tuple[Array | None, dict[str, Any]]]:
    """The call for each group of batch elements with one position of the first query.

    By default that follows from ``nonpad_kv_seqlen``, of which a part knows only its own.
    """
    counts = (
        fields.get("is_causal")
        or "alibi_slopes" in fields
        or any(fields.get(f"{side}_window_size", -1) != -1 for side in ("left", "right"))
    )
    nonpad = fields.get("nonpad_kv_seqlen")
    if not counts or "query_offset" in fields or nonpad is None or nonpad.ndim != 1:
        return [(None, fields)]
    length = fields["query"].shape[-2]
    lengths = np.unique(nonpad)
    if len(lengths) == 1:
        return [(None, {**fields, "query_offset": int(lengths[0]) - length})]
    for name in _BATCHED & fields.keys():
        if len(fields[name]) != len(nonpad):
            raise ValueError(
                f"{name} has shape {list(fields[name].shape)} where nonpad_kv_seqlen has "
                f"{list(nonpad.shape)}: they have one batch size"
            )
    return [
        (np.flatnonzero(nonpad == each), {**fields, "query_offset": int(each) - length})
        for each in lengths
    ]


# --- Its parts -------------------------------------------------------------------------


def _of_batch(fields: dict[str, Any], batch: Array | None) -> dict[str, Any]:
    """The call for some of its batch elements."""
    if batch is None:
        return fields
    some = dict(fields)
    for name in _BATCHED & fields.keys():
        some[name] = fields[name][batch]
    mask = fields.get("attn_mask")
    if mask is not None and mask.ndim == 4 and mask.shape[0] > 1:
        some["attn_mask"] = mask[batch]
    return some


def _bounds(length: int, services: int) -> list[tuple[int, int]]:
    """Where each service's keys start and stop; at least one service gets a part."""
    parts = min(services, max(length, 1))
    edges = [length * part // parts for part in range(parts + 1)]
    return list(pairwise(edges))


def _part(fields: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The call for the keys from start to stop."""
    part = dict(fields)
    for name in ("key", "value"):
        part[name] = fields[name][..., start:stop, :]
    if "attn_mask" in fields:
        part["attn_mask"] = _mask_part(fields["attn_mask"], start, stop)
    if "key_document_ids" in fields:
        part["key_document_ids"] = fields["key_document_ids"][..., start:stop]
    if "nonpad_kv_seqlen" in fields:
        part["nonpad_kv_seqlen"] = np.clip(fields["nonpad_kv_seqlen"] - start, 0, stop - start)
    if start:
        part["key_offset"] = fields.get("key_offset", 0) + start
        part.pop("sinks", None)  # the sink is in one part's denominator only
    return part


def _mask_part(mask: Array, start: int, stop: int) -> Array:
    """A mask's columns, those past its end filled with what masks."""
    columns = mask[..., start:stop]
    missing = stop - start - columns.shape[-1]
    if not missing:
        return columns
    fill: Any = False if mask.dtype.kind == "b" else -np.inf
    widths = [(0, 0)] * (mask.ndim - 1) + [(0, missing)]
    return np.pad(columns, widths, constant_values=fill)
