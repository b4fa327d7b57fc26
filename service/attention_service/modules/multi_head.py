"""A learned multi-head module: projections, attention, output projection.

As PyTorch's ``nn.MultiheadAttention``: ``MultiHead(Q,K,V) = Concat(head_1, …, head_h)·W^O``
with ``head_i = Attention(Q·W_i^Q, K·W_i^K, V·W_i^V)`` ("Attention Is All You Need",
https://arxiv.org/abs/1706.03762, section 3.2.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from typing_extensions import override

from attention_service.attention import values
from attention_service.attention.engine import Session
from attention_service.attention.job import SMALL_BYTES, SMALL_FLOPS, Fits, Job, Shapes
from attention_service.attention.lanes import Cancelled, never
from attention_service.attention.mask_fields import plain_masking
from attention_service.attention.masking import Masking
from attention_service.attention.shapes import Sent, Sizes, check_empty
from attention_service.modules.manifest import Outputs, Probe
from attention_wire.answers import ModuleInfo
from attention_wire.problems import Code, ProblemError
from attention_wire.schemas import ModuleRequest
from attention_wire.tensors import Array, dtype_name

INPUTS = frozenset({"query", "key", "value", "attn_bias", "scale"})


class MultiHeadModule:
    """A loaded multi-head module.

    Args:
        info: what it is.
        session: its graph.
        outputs: the names of the graph's outputs.
    """

    def __init__(self, info: ModuleInfo, session: Session, outputs: Outputs) -> None:
        self.info = info
        self.session = session
        self.outputs = outputs

    def probe(self) -> Probe:
        """Run it once: the shapes that it gives, and those that it should give."""
        info = self.info
        widths = {name: getattr(info, width) for name, width in _WIDTHS.items()}
        feeds = {name: np.zeros((1, 2, width), np.float32) for name, width in widths.items()}
        feeds["attn_bias"] = np.zeros((1, 1, 1, 1), np.float32)
        feeds["scale"] = np.ones((), np.float32)
        names = [self.outputs.output, *self.outputs.weights]
        expected = [(1, 2, info.embed_dim), (1, info.num_heads, 2, 2)]
        arrays = self.session.run(names, feeds)
        return {n: (arrays[n].shape, e) for n, e in zip(names, expected, strict=True)}


class MultiHeadJob(Job):
    """One call of a multi-head module.

    Raises:
        ProblemError: the request's tensors do not fit the module or each other.
    """

    def __init__(self, module: MultiHeadModule, request: ModuleRequest) -> None:
        self._module = module
        self._wants = request.return_
        key = request.query if request.key is None else request.key
        value = key if request.value is None else request.value
        self._tensors = {"query": request.query, "key": key, "value": value}
        for name, tensor in self._tensors.items():
            _check_tensor(name, tensor, request.query, getattr(module.info, _WIDTHS[name]))
        _check_lengths(request.query, key, value)
        self._scores = (
            request.query.shape[0], module.info.num_heads, request.query.shape[1], key.shape[1]
        )  # fmt: skip
        self._masking = self._masking_of(request)
        names = module.outputs
        wanted = {"output": names.output, "weights": names.weights[0]}
        self._wanted = {name: n for name, n in wanted.items() if getattr(request.return_, name)}
        values.finite_magnitude("query", request.query)
        scale = request.scale
        self._scale = 1 / math.sqrt(module.info.head_dim) if scale is None else scale

    def _masking_of(self, request: ModuleRequest) -> Masking:
        batch, heads, q_length, kv_length = self._scores
        size = self._module.info.head_dim
        sizes = Sizes(batch, heads, heads, q_length, kv_length, size, size)
        mask = request.attn_mask
        if mask is not None and mask.dtype.kind != "b":
            values.check_bias("attn_mask", mask)
        return plain_masking(mask, sizes, is_causal=request.is_causal)

    @property
    @override
    def answer_shapes(self) -> Shapes:
        shapes = {"output": self._tensors["query"].shape, "weights": self._scores}
        dtype = dtype_name(self._tensors["query"])
        return {
            name: (shape, dtype) for name, shape in shapes.items() if getattr(self._wants, name)
        }

    @property
    @override
    def peak_bytes(self) -> int:
        rows = sum(tensor.shape[0] * tensor.shape[1] for tensor in self._tensors.values())
        projected: int = 3 * rows * max(self._module.info.embed_dim, self._module.info.key_dim)
        mask = self._masking.mask
        heads = 1 if mask is None else math.prod(mask.shape[:2])
        bias: int = heads * math.prod(self._scores[2:])
        scores: int = math.prod(self._scores)
        return 4 * (3 * scores + 3 * bias + projected)

    @property
    @override
    def is_small(self) -> bool:
        rows = sum(tensor.shape[0] * tensor.shape[1] for tensor in self._tensors.values())
        width = self._module.info.embed_dim
        flops = 4 * rows * width**2 + 4 * math.prod(self._scores) * self._module.info.head_dim
        return flops <= SMALL_FLOPS and self.peak_bytes <= SMALL_BYTES

    @property
    @override
    def module(self) -> str:
        return self._module.info.name

    @property
    @override
    def batch_key(self) -> Hashable | None:
        query, key, value = self._tensors.values()
        seen = self._masking.alike
        if seen is None or not (query.size and self._wanted and self.is_small):
            return None
        shapes = query.shape, key.shape, value.shape
        options = query.dtype, seen, self._scale
        return self._module, shapes, options, tuple(self._wanted)

    @property
    @override
    def batch_bytes(self) -> int:
        return 4 * math.prod(self._scores)

    @override
    def smaller(self, fits: Fits) -> str:
        without = {n: shape for n, shape in self.answer_shapes.items() if n != "weights"}
        if self._wants.weights and fits(without, self.peak_bytes):
            return '{"return": {"weights": false}} would fit.'
        return "Send shorter sequences."

    @override
    def run(self, cancelled: Callable[[], bool] = never) -> dict[str, Any]:
        if cancelled():
            raise Cancelled
        return self._answer(self._arrays(self._finite_tensors()))

    @classmethod
    @override
    def run_together(
        cls, jobs: Sequence[Self], cancelled: Callable[[], bool] = never
    ) -> list[dict[str, Any]]:
        if cancelled():
            raise Cancelled
        tensors = [job._finite_tensors() for job in jobs]
        names = tensors[0].keys()
        together = {name: np.concatenate([own[name] for own in tensors]) for name in names}
        arrays = jobs[0]._arrays(together)
        parts = {name: np.split(array, len(jobs)) for name, array in arrays.items()}
        return [
            job._answer({name: part[index] for name, part in parts.items()})
            for index, job in enumerate(jobs)
        ]

    def _answer(self, arrays: Mapping[str, Array]) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        for name, array in arrays.items():
            with np.errstate(over="ignore"):  # checked in the next line
                answer[name] = array.astype(self._tensors["query"].dtype, copy=False)
            values.check_result(name, answer[name])
        info, provider = self._module.info, self._module.session.provider
        return {**answer, "module": info.name, "provider": provider}

    def _arrays(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """What is wanted for tensors of this job's shapes, of one batch or several."""
        query = tensors["query"]
        if query.shape[0] * query.shape[1] == 0:
            shapes = {"output": query.shape, "weights": self._scores}
            return {name: np.zeros(shapes[name], np.float32) for name in self._wanted}
        feeds = {name: t.astype(np.float32, copy=False) for name, t in tensors.items()}
        feeds["attn_bias"] = _bias(self._masking)
        with np.errstate(over="ignore"):  # what it leads to is checked
            feeds["scale"] = np.array(self._scale).astype(np.float32)
        arrays = (
            self._module.session.run(list(self._wanted.values()), feeds) if self._wanted else {}
        )
        return {name: arrays[full] for name, full in self._wanted.items()}

    def _finite_tensors(self) -> dict[str, Array]:
        """The tensors, with the rows of key and value zeroed that no query attends."""
        key, value = self._tensors["key"], self._tensors["value"]
        if math.isfinite(values.magnitude(key)) and math.isfinite(values.magnitude(value)):
            return self._tensors
        of_any_head = np.asarray(self._masking.attended().any(axis=1, keepdims=True))
        try:
            zeroed = {
                name: values.zero_unattended(name, rows[:, None], of_any_head, groups=1)[:, 0]
                for name, rows in (("key", key), ("value", value))
            }
        except values.NonFinite as problem:
            shapes = {"key": key.shape, "value": value.shape}
            raise problem.in_what_was(Sent(shapes, dict.fromkeys(shapes, 1))) from None
        return {**self._tensors, **zeroed}


_WIDTHS = {"query": "embed_dim", "key": "key_dim", "value": "value_dim"}


def _check_tensor(name: str, tensor: Array, query: Array, width: int) -> None:
    shape = list(tensor.shape)
    if tensor.ndim != 3 or shape[2] != width:
        raise ProblemError.of_field(
            name,
            f"has shape {shape}, where this module takes [B, length, {width}]"
            + ("" if name == "query" else "; by default it is the tensor before it"),
            Code.INVALID_TENSOR,
        )
    check_empty(name, tensor)
    if tensor.dtype != query.dtype:
        raise ProblemError.of_field(
            name,
            f"is {dtype_name(tensor)} where the query is {dtype_name(query)}; query, key and "
            "value have one dtype",
            Code.INVALID_TENSOR,
        )
    if tensor.dtype == np.float64:
        raise ProblemError.of_field(
            name,
            "is float64 where this module computes in float32; send float32, bfloat16 or float16",
            Code.INVALID_TENSOR,
        )


def _check_lengths(query: Array, key: Array, value: Array) -> None:
    if key.shape[0] != query.shape[0] or value.shape[:2] != key.shape[:2]:
        name = "key" if key.shape[0] != query.shape[0] else "value"
        raise ProblemError.of_field(
            name,
            f"query {list(query.shape)}, key {list(key.shape)} and value {list(value.shape)} do "
            "not fit: they have one batch size, and key and value one length",
            Code.INVALID_TENSOR,
        )


def _bias(masking: Masking) -> Array:
    """The masks as the graph's ``attn_bias``, float32, broadcasting to ``[B,H,L,S]``."""
    sizes = masking.sizes
    everything = (
        slice(0, sizes.batch),
        slice(0, sizes.q_num_heads),
        slice(0, sizes.q_length),
        slice(0, sizes.kv_length),
    )
    bias = masking.bias(*everything, np.dtype(np.float32))
    return np.zeros((1, 1, 1, 1), np.float32) if bias is None else bias
