"""A learned multi-head module: projections, attention, output projection.

As PyTorch's ``nn.MultiheadAttention``: ``MultiHead(Q,K,V) = Concat(head_1, …, head_h)·W^O``
with ``head_i = Attention(Q·W_i^Q, K·W_i^K, V·W_i^V)`` ("Attention Is All You Need",
https://arxiv.org/abs/1706.03762, section 3.2.2).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from typing_extensions import override

from attention_service.attention import values
from attention_service.attention.call import fit_mask
from attention_service.attention.engine import Session
from attention_service.attention.job import Job, Shapes
from attention_service.modules.manifest import Outputs, Probe
from attention_wire.problems import Code, ProblemError
from attention_wire.schemas import ModuleInfo, ModuleRequest
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
        return {n: (a.shape, e) for n, a, e in zip(names, arrays, expected, strict=True)}

    def job(self, request: ModuleRequest) -> MultiHeadJob:
        """A request to this module as a job.

        Raises:
            ProblemError: the request's tensors do not fit the module or each other.
        """
        return MultiHeadJob(self, request)


class MultiHeadJob(Job):
    """One call of a multi-head module."""

    smaller = 'Ask for {"return": {"weights": false}}, or send shorter sequences.'

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
        mask = request.attn_mask
        self._mask = None if mask is None else fit_mask(mask, self._scores)
        self._is_causal = request.is_causal
        values.finite_magnitude("query", request.query)
        scale = request.scale
        self._scale = 1 / math.sqrt(module.info.head_dim) if scale is None else scale

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
        bias = 1 if self._mask is None else int(self._mask.size)
        if self._is_causal:
            heads = 1 if self._mask is None else math.prod(self._mask.shape[:2])
            bias = heads * math.prod(self._scores[2:])
        return 4 * (3 * math.prod(self._scores) + 3 * bias + projected)

    @override
    def run(self) -> dict[str, Any]:
        names = self._module.outputs
        query = self._tensors["query"]
        wanted = {"output": names.output, "weights": names.weights[0]}
        wanted = {name: full for name, full in wanted.items() if getattr(self._wants, name)}
        tensors = self._finite_tensors()
        if query.shape[0] * query.shape[1] == 0:
            shapes = {"output": query.shape, "weights": self._scores}
            arrays = [np.zeros(shapes[name], np.float32) for name in wanted]
        else:
            arrays = self._arrays(list(wanted.values()), tensors) if wanted else []
        answer: dict[str, Any] = {}
        for name, array in zip(wanted, arrays, strict=True):
            with np.errstate(over="ignore"):  # checked in the next line
                answer[name] = array.astype(query.dtype, copy=False)
            values.check_result(name, answer[name])
        return {
            **answer,
            "module": self._module.info.name,
            "provider": self._module.session.provider,
        }

    def _arrays(self, outputs: list[str], tensors: dict[str, Array]) -> list[Array]:
        feeds = {name: t.astype(np.float32, copy=False) for name, t in tensors.items()}
        feeds["attn_bias"] = _bias(self._mask, self._scores, is_causal=self._is_causal)
        with np.errstate(over="ignore"):  # what it leads to is checked
            feeds["scale"] = np.array(self._scale).astype(np.float32)
        return self._module.session.run(outputs, feeds)

    def _finite_tensors(self) -> dict[str, Array]:
        """The tensors, with the rows of key and value zeroed that no query attends."""
        key, value = self._tensors["key"], self._tensors["value"]
        if math.isfinite(values.magnitude(key)) and math.isfinite(values.magnitude(value)):
            return self._tensors
        attended = values.attended_keys(self._mask, is_causal=self._is_causal, shape=self._scores)
        of_any_head = np.asarray(attended.any(axis=1, keepdims=True))
        zeroed = {
            name: values.zero_unattended(name, rows[:, None], of_any_head, groups=1)[:, 0]
            for name, rows in (("key", key), ("value", value))
        }
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


def _bias(mask: Array | None, scores: tuple[int, int, int, int], *, is_causal: bool) -> Array:
    """The masks as the graph's ``attn_bias``, float32, broadcasting to ``[B,H,L,S]``."""
    bias = np.zeros((1, 1, 1, 1), np.float32)
    if mask is not None and mask.dtype.kind == "b":
        bias = np.where(mask, np.float32(0), np.float32(-np.inf))
    elif mask is not None:
        with np.errstate(over="ignore"):  # past float32's range a bias masks, as −infinity does
            bias = mask.astype(np.float32)
    if is_causal:
        seen = np.tri(*scores[2:], dtype=np.bool_)
        bias = np.where(seen, bias, np.float32(-np.inf))
    return bias
