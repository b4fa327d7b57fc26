"""Call → plan: which kernels run it, cut into which tiles, and what that costs.

A kernel is one entry in ``KERNELS``: a condition and its costs. The first whose condition
holds is taken, step by step: a call that wants the output of all rows and the weights of a
few takes two steps, so that what is not wanted is not computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from attention_service.attention.call import AttentionCall
from attention_service.attention.masking import Rows

# Scores of one tile: large enough for fast products, small enough for the caches and for
# a tile to end within milliseconds.
TILE_BYTES = 4 * 2**20
# Heads share a tile while their scores stay in a core's own cache.
_SHARED_BYTES = 2**20
# A step of fewer operations runs as one tile, in the thread that asks.
_SMALL_FLOPS = 2**23
_MOST_ROWS, _FEWEST_ROWS = 256, 64
_FLASH_ROWS = 1024
# What ONNX Runtime takes for a run of the fused kernel, and of any graph.
_FLASH_BUFFER = 2**20
_RUN_BUFFER = 2**19


@dataclass(frozen=True, slots=True)
class Target:
    """What a call is planned for.

    Attributes:
        provider: ONNX Runtime's name of the execution provider.
        lanes: tiles that run at once.
        tile_bytes: bound of the scores of one tile.
    """

    provider: str
    lanes: int
    tile_bytes: int = TILE_BYTES


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel over some heads and rows.

    Attributes:
        kernel: its name.
        outputs: of ``output``, ``lse``, ``entropy``, ``weights`` and ``scores``.
        heads: query heads.
        rows: query rows.
        tile_heads: query heads of one tile: consecutive ones.
        tile_rows: query rows of one tile, at most.
    """

    kernel: str
    outputs: frozenset[str]
    heads: tuple[int, ...]
    rows: range | tuple[int, ...]
    tile_heads: int
    tile_rows: int


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


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to compute attention.

    Attributes:
        name: as plans call it.
        takes: whether it can compute these outputs of a call exactly, on this target.
        tile: heads and rows of a tile.
        scratch: bytes that one running tile takes, given the elements of its scores.
    """

    name: str
    takes: Callable[[AttentionCall, frozenset[str], Target], bool]
    tile: Callable[[AttentionCall, Step, Target], tuple[int, int]]
    scratch: Callable[[AttentionCall, Step, int], int]


# --- Kernels -------------------------------------------------------------------------------


def _flash_takes(call: AttentionCall, outputs: frozenset[str], target: Target) -> bool:
    masking = call.masking
    plain = masking.band is None and not masking.has_bias and not call.softcap
    return (
        target.provider == "CPUExecutionProvider"
        and outputs == {"output"}
        and plain
        and call.sinks is None
        and call.compute_dtype == np.float32
        and call.sizes.q_length >= _FEWEST_ROWS
    )


def _flash_tile(call: AttentionCall, step: Step, target: Target) -> tuple[int, int]:
    rows = min(_FLASH_ROWS, call.sizes.q_length)
    return _heads_of_tile(call, step, rows, target), rows


def _flash_scratch(call: AttentionCall, step: Step, _: int) -> int:
    """The kernel's own copies of a tile's tensors, and its output twice."""
    sizes = call.sizes
    kv_heads = math.ceil(step.tile_heads / sizes.groups)
    elements = 2 * step.tile_heads * step.tile_rows + kv_heads * sizes.kv_length
    return 4 * elements * (sizes.head_size + sizes.v_head_size) + _FLASH_BUFFER


def _composed_tile(call: AttentionCall, step: Step, target: Target) -> tuple[int, int]:
    sizes = call.sizes
    row_bytes = sizes.kv_length * call.compute_dtype.itemsize
    fits = max(1, target.tile_bytes // row_bytes)
    if _is_reduced(call, step):
        # The rows of all heads meet in one tile; they come one head after the other.
        return len(step.heads), min(_FEWEST_ROWS, fits, len(step.rows))
    scores = sizes.batch * len(step.heads) * len(step.rows) * sizes.kv_length
    flops = 2 * scores * (sizes.head_size + sizes.v_head_size)
    fits_one = scores * call.compute_dtype.itemsize <= target.tile_bytes
    if flops <= _SMALL_FLOPS and fits_one and _is_every_head(call, step):
        return len(step.heads), len(step.rows)
    rows = min(_MOST_ROWS, fits)
    if target.tile_bytes >= TILE_BYTES:
        rows = max(rows, _FEWEST_ROWS)
    if call.masking.band is not None and len(step.rows) > _MOST_ROWS:
        rows = min(rows, _MOST_ROWS // 2)  # a tile computes the whole edge of its band
    rows = min(rows, len(step.rows))
    return _heads_of_tile(call, step, rows, target), rows


def _composed_scratch(call: AttentionCall, step: Step, scores: int) -> int:
    """What is alive at once in the graph, and a bias with what it is made of.

    The softmax takes the place of the scores, unless something else still reads them. Weights
    and scores are written where they belong, if they lie there in one piece.
    """
    masking, wants = call.masking, call.wants
    outputs, itemsize = step.outputs, call.compute_dtype.itemsize
    is_direct = call.dtype == call.compute_dtype and masking.band is None
    has_more = masking.band is not None or masking.has_bias or call.sinks is not None
    copies_weights = "weights" in outputs and wants.top_k is None and not is_direct
    reads_scores = bool({"lse", "entropy"} & outputs)
    arrays = 2 if has_more or call.softcap or reads_scores or copies_weights else 1
    arrays += "entropy" in outputs
    arrays -= "scores" in outputs and is_direct
    if _is_reduced(call, step):
        scores //= len(step.heads)
        arrays += 2
    scratch = arrays * scores * itemsize + _RUN_BUFFER
    if masking.has_bias:
        scratch += scores * (2 * itemsize + 2)  # the last one, a new one, and two masks
    elif masking.band is not None and "scores" in outputs:
        scratch += scores * itemsize
    return scratch


def _is_every_head(call: AttentionCall, step: Step) -> bool:
    return step.heads == tuple(range(call.sizes.q_num_heads))


def _is_reduced(call: AttentionCall, step: Step) -> bool:
    return call.wants.reduce is not None and "weights" in step.outputs


def _heads_of_tile(call: AttentionCall, step: Step, rows: int, target: Target) -> int:
    """How many consecutive heads a tile takes: whole groups of one key head, or one head."""
    count, groups = len(step.heads), call.sizes.groups
    if not _is_every_head(call, step):
        return 1  # heads in the order asked need not follow each other
    head_bytes = rows * call.sizes.kv_length * call.compute_dtype.itemsize
    most = max(1, min(target.tile_bytes, _SHARED_BYTES) // head_bytes)
    # Each lane gets a tile, if there are heads enough.
    most = min(most, math.ceil(count * call.sizes.batch / target.lanes))
    if most < groups:
        return 1
    return next(heads for heads in range(most - most % groups, 0, -groups) if count % heads == 0)


def _batches_of_tile(call: AttentionCall, step: Step) -> int:
    """A tile of all heads and rows takes the whole batch; any other a single element."""
    whole = step.tile_heads == call.sizes.q_num_heads and step.tile_rows == len(step.rows)
    if not whole or _is_reduced(call, step):
        return 1
    sizes = call.sizes
    flops = 2 * math.prod(sizes.scores) * (sizes.head_size + sizes.v_head_size)
    return sizes.batch if flops <= _SMALL_FLOPS else 1


KERNELS = (
    # Forms no scores: nothing to give but the output, and nothing to mask.
    Kernel("flash", _flash_takes, _flash_tile, _flash_scratch),
    # Takes every call.
    Kernel("composed", lambda *_: True, _composed_tile, _composed_scratch),
)


# --- Plans ---------------------------------------------------------------------------------


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
