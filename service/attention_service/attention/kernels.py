"""The kernels that can compute attention: what each takes, in which tiles, in how much memory.

A kernel is one entry in ``KERNELS``, its graph in :mod:`graphs` and its run in :mod:`tiles`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from attention_service.attention.call import AttentionCall

# Scores of one tile: large enough for fast products, small enough for the caches and for
# a tile to end within milliseconds.
TILE_BYTES = 4 * 2**20
# The same on a GPU, where keys and values are sent for each tile.
_GPU_TILE_BYTES = 64 * 2**20
# Heads share a tile up to these scores: what a run costs beside its work is then a few percent.
_SHARED_BYTES = 2**21
# A step of fewer operations runs as one tile, in the thread that asks.
SMALL_FLOPS = 2**23
_MOST_ROWS, _FEWEST_ROWS = 256, 64
_GPU_ROWS = 4096
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
        shared_bytes: the same, of a tile that heads share.
        most_rows: of a tile, at most.
    """

    provider: str
    lanes: int
    tile_bytes: int
    shared_bytes: int
    most_rows: int

    @property
    def is_gpu(self) -> bool:
        """Whether what a tile needs has to be sent there."""
        return self.provider != "CPUExecutionProvider"

    @classmethod
    def of(cls, provider: str, lanes: int, tile_bytes: int | None = None) -> Target:
        """What suits a provider, in tiles of other bytes where they are given."""
        target = cls(provider, lanes, tile_bytes or TILE_BYTES, _SHARED_BYTES, _MOST_ROWS)
        if not target.is_gpu:
            return target
        size = tile_bytes or _GPU_TILE_BYTES
        return cls(provider, lanes, size, size, _GPU_ROWS)


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


def _flash_takes(call: AttentionCall, outputs: frozenset[str], target: Target) -> bool:
    masking = call.masking
    sees_all = masking.band is None and not masking.has_bias
    return (
        target.provider == "CPUExecutionProvider"
        and outputs == {"output"}
        and sees_all
        and call.is_plain
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
    row_bytes = _most_keys(call, step, target.most_rows) * call.compute_dtype.itemsize
    fits = max(1, target.tile_bytes // row_bytes)
    if is_reduced(call, step):
        # The rows of all heads meet in one tile; they come one head after the other.
        return len(step.heads), min(_FEWEST_ROWS, fits, len(step.rows))
    scores = sizes.batch * len(step.heads) * len(step.rows) * sizes.kv_length
    flops = 2 * scores * (sizes.head_size + sizes.v_head_size)
    fits_one = scores * call.compute_dtype.itemsize <= target.tile_bytes
    if flops <= SMALL_FLOPS and fits_one and _is_every_head(call, step):
        return len(step.heads), len(step.rows)
    rows = min(target.most_rows, fits)
    if _writes_weights(call, step):
        # As many rows as may be of one head, so that its weights lie in one piece.
        rows = max(rows, min(fits, target.shared_bytes // row_bytes))
    if target.tile_bytes >= TILE_BYTES:
        rows = max(rows, _FEWEST_ROWS)
    if target.is_gpu and (call.masking.has_bias or call.masking.band is not None):
        # A bias is made here and sent: once for all heads that see the same.
        rows = min(rows, max(_FEWEST_ROWS, fits // len(step.heads)))
    elif call.masking.band is not None:
        rows = min(rows, target.most_rows // 2)  # a tile computes the whole edge of its band
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
    if is_reduced(call, step):
        scores //= len(step.heads)
        arrays += 2
    scratch = arrays * scores * itemsize + _RUN_BUFFER
    if masking.has_bias:
        # Of each key head, once for all of its query heads; but one head alone needs one.
        groups = call.sizes.groups if step.tile_heads > 1 else 1
        is_of_one = masking.bias_has_heads or is_reduced(call, step)
        shared = 1 if is_of_one else step.tile_heads // groups
        scratch += scores // shared * (2 * itemsize + 2)  # the last, a new one, and two masks
    elif masking.band is not None and "scores" in outputs:
        scratch += scores * itemsize
    return scratch


def _writes_weights(call: AttentionCall, step: Step) -> bool:
    """Whether the weights that a graph gives are the answer's, as they are."""
    is_whole = "weights" in step.outputs and call.wants.top_k is None
    return is_whole and call.dtype == call.compute_dtype and call.masking.band is None


def _is_every_head(call: AttentionCall, step: Step) -> bool:
    return step.heads == tuple(range(call.sizes.q_num_heads))


def is_reduced(call: AttentionCall, step: Step) -> bool:
    """Whether a step makes the weights of several heads one."""
    return call.wants.reduce is not None and "weights" in step.outputs


def _most_keys(call: AttentionCall, step: Step, rows: int) -> int:
    """At least the keys that some rows in a row see together."""
    band, total = call.masking.band, call.sizes.kv_length
    if band is None or "scores" in step.outputs or not isinstance(step.rows, range):
        return total
    # From one row to the next, a band moves on by one key.
    return min(total, max(1, int((band.high - band.low).max(initial=0)) + rows))


def _heads_of_tile(call: AttentionCall, step: Step, rows: int, target: Target) -> int:
    """How many consecutive heads a tile takes: whole groups of one key head, or one head."""
    count, groups = len(step.heads), call.sizes.groups
    if not _is_every_head(call, step):
        return 1  # heads in the order asked need not follow each other
    head_bytes = rows * _most_keys(call, step, rows) * call.compute_dtype.itemsize
    most = max(1, min(target.tile_bytes, target.shared_bytes) // head_bytes)
    if not target.is_gpu:
        # Each lane gets a tile, if there are heads enough.
        most = min(most, math.ceil(count * call.sizes.batch / target.lanes))
    if most < groups:
        return 1
    return next(heads for heads in range(most - most % groups, 0, -groups) if count % heads == 0)


KERNELS = (
    # Forms no scores: nothing to give but the output, and nothing to mask.
    Kernel("flash", _flash_takes, _flash_tile, _flash_scratch),
    # Takes every call.
    Kernel("composed", lambda *_: True, _composed_tile, _composed_scratch),
)
