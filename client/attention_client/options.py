"""The options of attention over tensors, each once, for both clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, TypedDict

import numpy.typing as npt

from attention_wire.schemas import Return, SoftmaxPrecision, TextReturn

ReturnSpec: TypeAlias = Mapping[str, Any] | Return
TextReturnSpec: TypeAlias = Mapping[str, Any] | TextReturn


class AttentionOptions(TypedDict, total=False):
    """Keyword arguments of :meth:`AttentionClient.attention`; None means not given.

    B is the batch size, Hq and Hkv are the numbers of query and key heads, L and S the lengths
    of query and key, P that of the past, T = P + S, D the head size. A tensor is anything that
    numpy makes an array of. Formulas are in the project's ``docs/attention.md``.

    Attributes:
        attn_mask: bool (true = may attend) or any float dtype (added to the scores), broadcast from
            the right to [B, Hq, L, T]. Where its last dimension is shorter than T, the rest is
            masked.
        is_causal: a query sees the keys at its own position and before it.
        scale: factor on the scores; 1/√D by default.
        softcap: c > 0 bounds the scores before any mask: c·tanh(score / c). 0, the default, does
            not.
        left_window_size: keys before a query's position that it sees; −1, the default, for all.
        right_window_size: keys after a query's position that it sees; −1, the default, for all.
        q_num_heads: Hq, for tensors of rank 3 only.
        kv_num_heads: Hkv, for tensors of rank 3 only.
        nonpad_kv_seqlen: [B] integers: how many keys of each batch element are no padding. Not with
            a past.
        softmax_precision: least precision of the softmax: the name of a float dtype, or ONNX's
            number of it (1, 10, 11, 16). It is computed in float32 or better anyway.
        past_key: [B, Hkv, P, D], the keys before ``key``. Goes with ``past_value``.
        past_value: [B, Hkv, P, Dv], the values before ``value``.
        sinks: [Hq] floats: one logit a head that only takes its part of the softmax's denominator.
        alibi_slopes: [Hq] floats: adds −slope·|query position − key position| to the scores.
        query_document_ids: [B, L] integers: a query sees the keys of its own document only. Goes
            with ``key_document_ids``.
        key_document_ids: [B, T] integers.
        query_offset: position of the first query. By default P, with ``nonpad_kv_seqlen`` that
            minus L, else 0. Positions count for causal masks, windows and ALiBi.
        key_offset: position of the first key; 0 by default.
        return_: what to compute, such as ``{"weights": False, "lse": True}``; what is not asked for
            costs nothing. By default the output and all weights; see
            :class:`attention_client.Return`.

    Example:
        >>> from attention_client import AttentionOptions
        >>> options: AttentionOptions = {"is_causal": True, "left_window_size": 1}
        >>> client.attention([[1.0]] * 3, [[1.0]] * 3, [[1.0]] * 3, **options).weights
        array([[1. , 0. , 0. ],
               [0.5, 0.5, 0. ],
               [0. , 0.5, 0.5]], dtype=float32)
    """

    attn_mask: npt.ArrayLike | None
    is_causal: bool | None
    scale: float | None
    softcap: float | None
    left_window_size: int | None
    right_window_size: int | None
    q_num_heads: int | None
    kv_num_heads: int | None
    nonpad_kv_seqlen: npt.ArrayLike | None
    softmax_precision: SoftmaxPrecision | None
    past_key: npt.ArrayLike | None
    past_value: npt.ArrayLike | None
    sinks: npt.ArrayLike | None
    alibi_slopes: npt.ArrayLike | None
    query_document_ids: npt.ArrayLike | None
    key_document_ids: npt.ArrayLike | None
    query_offset: int | None
    key_offset: int | None
    return_: ReturnSpec | None
