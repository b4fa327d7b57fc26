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
    ends = sizes.kv_length if mask is None else mask.shape[3]
    return Masking(
        sizes,
        Band.by_position(positions, ends, sizes.kv_length, is_causal=is_causal),
        query_positions=positions,
        key_positions=np.arange(sizes.kv_length),
        mask=mask,
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
    ends = sizes.kv_length if mask is None else mask.shape[3]
    band = Band.by_position(
        query_positions - request.key_offset,
        ends if nonpad is None else np.minimum(nonpad, ends)[:, None],
        sizes.kv_length,
        is_causal=request.is_causal,
        left_window_size=request.left_window_size,
        right_window_size=request.right_window_size,
    )
    return Masking(
        sizes,
        band,
        query_positions=query_positions,
        key_positions=np.arange(sizes.kv_length) + request.key_offset,
        mask=mask,
        slopes=None if slopes is None else slopes.astype(np.float64),
        query_documents=request.query_document_ids,
        key_documents=request.key_document_ids,
    )


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
    given = mask.shape
    if not 1 <= mask.ndim <= 4:
        raise invalid("attn_mask", f"has rank {mask.ndim} (shape {list(given)}); send rank 1 to 4")
    missing = (1,) * (4 - mask.ndim)
    if _fits(missing + given, scores):
        return mask.reshape(missing + given)
    for_each = given[:1] + missing + given[1:]
    cure = f"; for a mask of each batch element send {list(for_each)}"
    raise invalid(
        "attn_mask",
        f"has shape {list(given)}, which does not broadcast from the right to [B,Hq,L,T] = "
        f"{list(scores)}{cure if _fits(for_each, scores) else ''}",
    )


def _fits(shape: tuple[int, ...], scores: tuple[int, int, int, int]) -> bool:
    """Whether a mask of rank 4 broadcasts to the scores, its last dimension but for its length."""
    broadcasts = all(size in (1, full) for size, full in zip(shape[:3], scores[:3], strict=True))
    return broadcasts and shape[3] <= scores[3]
