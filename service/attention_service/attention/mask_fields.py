"""A request's masks, windows, lengths, slopes and documents, as a :class:`Masking`."""

from __future__ import annotations

import numpy as np

from attention_service.attention.masking import Band, Masking
from attention_service.attention.shapes import Sizes, check_shape, invalid
from attention_wire.problems import Code, ProblemError
from attention_wire.schemas import AttentionRequest
from attention_wire.tensors import Array


def plain_masking(attn_mask: Array | None, sizes: Sizes, *, is_causal: bool) -> Masking:
    """A mask and causality alone.

    Raises:
        ProblemError: ``invalid_tensor``.
    """
    mask = None if attn_mask is None else fit_mask(attn_mask, sizes.scores)
    positions = np.arange(sizes.q_length)[None]
    high = np.full_like(positions, sizes.kv_length if mask is None else mask.shape[3])
    if is_causal:
        high = np.minimum(high, positions + 1)
    return Masking(
        sizes=sizes,
        band=Band(np.zeros_like(high), high),
        mask=mask,
        slopes=None,
        query_positions=positions,
        key_positions=np.arange(sizes.kv_length),
        query_documents=None,
        key_documents=None,
    )


def masking(request: AttentionRequest, sizes: Sizes, past_length: int) -> Masking:
    """What masks and biases a request's scores.

    Raises:
        ProblemError: ``invalid_tensor``, ``invalid_field`` or ``missing_field``.
    """
    mask = None if request.attn_mask is None else fit_mask(request.attn_mask, sizes.scores)
    nonpad = _nonpad(request, sizes)
    _check_documents(request, sizes)
    check_shape("alibi_slopes", request.alibi_slopes, [sizes.q_num_heads], "[Hq]")
    slopes = request.alibi_slopes
    if request.query_offset is not None:
        offset = np.array([request.query_offset], np.int64)
    elif nonpad is not None:
        offset = nonpad - sizes.q_length
    else:
        offset = np.array([past_length], np.int64)
    query_positions = np.arange(sizes.q_length) + offset[:, None]
    key_positions = np.arange(sizes.kv_length) + request.key_offset
    return Masking(
        sizes=sizes,
        band=_band(request, sizes, query_positions, nonpad, mask),
        mask=mask,
        slopes=None if slopes is None else slopes.astype(np.float64),
        query_positions=query_positions,
        key_positions=key_positions,
        query_documents=request.query_document_ids,
        key_documents=request.key_document_ids,
    )


def _band(
    request: AttentionRequest,
    sizes: Sizes,
    positions: Array,
    nonpad: Array | None,
    mask: Array | None,
) -> Band | None:
    total = sizes.kv_length
    index = positions - request.key_offset  # of the key at each query's own position
    low = np.zeros((1, sizes.q_length), np.int64)
    high = np.full((1, sizes.q_length), total)
    if mask is not None:
        high = np.minimum(high, mask.shape[3])
    if nonpad is not None:
        high = np.minimum(high, nonpad[:, None])
    if request.is_causal:
        high = np.minimum(high, index + 1)
    if request.left_window_size >= 0:
        low = np.maximum(low, index - request.left_window_size)
    if request.right_window_size >= 0:
        high = np.minimum(high, index + request.right_window_size + 1)
    low = np.minimum(low, total)
    high = np.maximum(high, low)
    low, high = np.broadcast_arrays(low, high)
    if not low.any() and (high == total).all():
        return None
    return Band(low, high)


def _nonpad(request: AttentionRequest, sizes: Sizes) -> Array | None:
    nonpad = request.nonpad_kv_seqlen
    if nonpad is None:
        return None
    check_shape("nonpad_kv_seqlen", nonpad, [sizes.batch], "[B]")
    if request.return_.present:
        raise ProblemError.of_field(
            "nonpad_kv_seqlen", 'does not go with {"return": {"present": true}}; leave one out'
        )
    if nonpad.size and (nonpad.min() < 0 or nonpad.max() > sizes.kv_length):
        raise ProblemError.of_field(
            "nonpad_kv_seqlen",
            f"holds {int(nonpad.min())} to {int(nonpad.max())}, where there are 0 to "
            f"{sizes.kv_length} keys",
        )
    return nonpad.astype(np.int64)


def _check_documents(request: AttentionRequest, sizes: Sizes) -> None:
    names = ("query_document_ids", "key_document_ids")
    query, key = (getattr(request, name) for name in names)
    if (query is None) != (key is None):
        raise ProblemError.of_field(
            names[0] if query is None else names[1],
            "is missing: query_document_ids and key_document_ids go together",
            Code.MISSING_FIELD,
        )
    check_shape(names[0], query, [sizes.batch, sizes.q_length], "[B,L]")
    check_shape(names[1], key, [sizes.batch, sizes.kv_length], "[B,T]")


def fit_mask(mask: Array, scores: tuple[int, int, int, int]) -> Array:
    """A mask as rank 4, each of its first three dimensions 1 or that of the scores.

    Args:
        mask: bool or float, of rank 1 to 4. Its last dimension may be shorter than T: the
            rest is masked.
        scores: ``[B,Hq,L,T]``.

    Raises:
        ProblemError: the shapes do not fit.
    """
    given = list(mask.shape)
    if not 1 <= mask.ndim <= 4:
        raise invalid("attn_mask", f"has rank {mask.ndim} (shape {given}); send rank 1 to 4")
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    fits = all(size in (1, full) for size, full in zip(mask.shape[:3], scores[:3], strict=True))
    if not fits or mask.shape[3] > scores[3]:
        raise invalid(
            "attn_mask",
            f"has shape {given}, which does not broadcast from the right to [B,Hq,L,T] = "
            f"{list(scores)}",
        )
    return mask
