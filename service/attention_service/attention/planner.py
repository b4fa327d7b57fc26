"""Call → plan: which kernels run it, cut into which tiles, and what that costs.

The first kernel whose condition holds is taken, step by step: a call that wants the output of
all rows and the weights of a few takes two steps, so that what is not wanted is not computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from attention_service.attention.call import AttentionCall
from attention_service.attention.kernels import KERNELS, SMALL_FLOPS, Step, Target, is_reduced
from attention_service.attention.masking import Rows


@dataclass(frozen=True, slots=True)
class Block:
    """What one tile covers.

    Attributes:
        batch: batch elements.
        heads: query heads, consecutive if several.
        rows: query rows; a slice where they follow each other.
        head_place, row_place: where the first of them stands among those of the step.
    """

    batch: slice
    heads: tuple[int, ...]
    rows: Rows
    head_place: int
    row_place: int

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return self.rows.stop - self.rows.start if isinstance(self.rows, slice) else len(self.rows)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step or a plan costs.

    Attributes:
        flops: floating-point operations of its products and softmax, of keys that are seen.
        bytes: moved at least: its tensors, and the scores of each tile written and read.
        tiles: runs of a graph.
        keys: most keys of a tile.
        peak_bytes: most memory above the tensors that came in.
    """

    flops: int
    bytes: int
    tiles: int
    keys: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How a call is run and what it costs."""

    steps: tuple[Step, ...]
    costs: tuple[Cost, ...]
    peak_bytes: int


def plan(call: AttentionCall, target: Target) -> Plan:
    """Choose kernels and tiles for a call, and say what they cost."""
    steps = tuple(_with_kernel(call, step, target) for step in _steps(call))
    costs = tuple(_cost(call, step, target) for step in steps)
    scratch = max((cost.peak_bytes for cost in costs), default=0)
    return Plan(steps, costs, _held_bytes(call) + scratch)


def _steps(call: AttentionCall) -> Iterator[tuple[frozenset[str], Any, Any]]:
    """What to compute of which heads and rows, nothing twice where it can be had together."""
    wants, sizes = call.wants, call.sizes
    if 0 in sizes.scores:
        return
    of_all = frozenset(n for n in ("output", "lse", "entropy") if getattr(wants, n))
    if sizes.v_head_size == 0:
        of_all -= {"output"}  # it has no elements
    of_some = frozenset({"weights"} if wants.weights else ()) | frozenset(
        {"scores"} if wants.scores else ()
    )
    heads, rows = tuple(range(sizes.q_num_heads)), range(sizes.q_length)
    if not of_some:
        if of_all:
            yield of_all, heads, rows
    elif not of_all:
        yield of_some, wants.heads, wants.rows
    elif wants.rows == rows:
        yield of_all | of_some, wants.heads, rows
        others = tuple(sorted(set(heads) - set(wants.heads)))
        if others:
            yield of_all, others, rows
    else:
        yield of_all, heads, rows
        yield of_some, wants.heads, wants.rows


def _with_kernel(
    call: AttentionCall, what: tuple[frozenset[str], Any, Any], target: Target
) -> Step:
    outputs, heads, rows = what
    kernel = next(kernel for kernel in KERNELS if kernel.takes(call, outputs, target))
    whole = Step(kernel.name, outputs, heads, rows, len(heads), len(rows))
    tile_heads, tile_rows = kernel.tile(call, whole, target)
    return Step(kernel.name, outputs, heads, rows, tile_heads, tile_rows)


def blocks(call: AttentionCall, step: Step) -> list[Block]:
    """The tiles of a step, in the order in which they are run.

    Heads come first, so that a head's keys stay in the cache from one block of rows to the
    next; but where a bias is made that all heads share, its rows do. A head's last rows come
    first: of a causal call they see most, and lanes end together if their last tiles are small.
    """
    several = _batches_of_tile(call, step)
    starts = range(0, len(step.rows), step.tile_rows)
    found = [
        Block(
            slice(batch, batch + several),
            step.heads[head : head + step.tile_heads],
            _rows(step.rows[row : row + step.tile_rows]),
            head,
            row,
        )
        for batch in range(0, call.sizes.batch, several)
        for head in range(0, len(step.heads), step.tile_heads)
        for row in reversed(starts)
    ]
    masking = call.masking
    edge_differs = masking.band is not None and (
        "scores" in step.outputs or not isinstance(step.rows, range)
    )
    if not masking.bias_has_heads and (masking.has_bias or edge_differs):
        found.sort(key=lambda block: (block.batch.start, block.row_place))
    return found


def _batches_of_tile(call: AttentionCall, step: Step) -> int:
    """A tile of all heads and rows takes the whole batch; any other a single element."""
    whole = step.tile_heads == call.sizes.q_num_heads and step.tile_rows == len(step.rows)
    if not whole or is_reduced(call, step):
        return 1
    sizes = call.sizes
    flops = 2 * math.prod(sizes.scores) * (sizes.head_size + sizes.v_head_size)
    return sizes.batch if flops <= SMALL_FLOPS else 1


def _rows(rows: range | tuple[int, ...]) -> Rows:
    return slice(rows.start, rows.stop) if isinstance(rows, range) else np.array(rows)


def _cost(call: AttentionCall, step: Step, target: Target) -> Cost:
    sizes = call.sizes
    kernel = next(kernel for kernel in KERNELS if kernel.name == step.kernel)
    tiles = scores = moved = largest = most_keys = 0
    width = sizes.head_size + sizes.v_head_size * ("output" in step.outputs)
    for block in blocks(call, step):
        start, stop = call.masking.keys(block.batch, block.rows)
        count = (block.batch.stop - block.batch.start) * len(block.heads)
        rows, keys = count * block.num_rows, stop - start
        tiles += 1
        scores += rows * keys
        largest, most_keys = max(largest, rows * keys), max(most_keys, keys)
        moved += (rows + math.ceil(count / sizes.groups) * keys) * width
    if step.kernel != "flash":
        moved += 4 * scores  # written and read by the product and by the softmax
    return Cost(
        flops=scores * (2 * width + 5),
        bytes=moved * call.compute_dtype.itemsize,
        tiles=tiles,
        keys=most_keys,
        peak_bytes=min(target.lanes, tiles) * kernel.scratch(call, step, largest),
    )


def _held_bytes(call: AttentionCall) -> int:
    """Arrays that live as long as the call: the answer's, and the tensors in another form."""
    answer = sum(math.prod(shape) * dtype.itemsize for shape, dtype in answer_arrays(call).values())
    copies = 0
    for tensor in (call.query, call.key, call.value):
        if tensor.dtype != call.compute_dtype or not tensor.flags.c_contiguous:
            copies += tensor.size * call.compute_dtype.itemsize
    return answer + copies


def answer_arrays(call: AttentionCall) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """The arrays of a call's answer, name → shape and dtype, in rank 4."""
    wants, sizes = call.wants, call.sizes
    precise = np.dtype(np.float64 if call.dtype == np.float64 else np.float32)
    rows = (sizes.batch, sizes.q_num_heads, sizes.q_length)
    selected = (sizes.batch, len(wants.heads), len(wants.rows))
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    if wants.output:
        arrays["output"] = ((*rows, sizes.v_head_size), call.dtype)
    if wants.weights:
        first = selected if wants.reduce is None else (sizes.batch, 1, len(wants.rows))
        if wants.top_k is None:
            arrays["weights"] = ((*first, sizes.kv_length), call.dtype)
        else:
            arrays["weights.indices"] = ((*first, wants.top_k), np.dtype(np.int32))
            arrays["weights.values"] = ((*first, wants.top_k), call.dtype)
            arrays["weights.rest"] = (first, precise)
    arrays |= {name: (rows, precise) for name in ("lse", "entropy") if getattr(wants, name)}
    if wants.scores is not None:
        arrays["scores"] = ((*selected, sizes.kv_length), call.dtype)
    if wants.present:
        arrays["present_key"] = (call.key.shape, call.dtype)
        arrays["present_value"] = (call.value.shape, call.dtype)
    return arrays
