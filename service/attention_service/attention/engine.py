"""Sessions, providers and threads: the only importer of ONNX Runtime."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as status

from attention_service.attention.call import AttentionCall
from attention_service.attention.graphs import GraphSpec, build
from attention_service.attention.planner import Plan
from attention_wire.tensors import Array

# Name in settings → ONNX Runtime's, fastest first: the order in which `auto` looks.
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
    # Compiled for each new shape or only fast for some models, so by name only.
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
}
_AUTO = ("cuda", "rocm", "migraphx", "directml", "coreml", "cpu")
_SESSION_ERRORS = (
    status.EPFail,
    status.Fail,
    status.InvalidArgument,
    status.InvalidGraph,
    status.InvalidProtobuf,
    status.NoSuchFile,
    status.NotFound,
    status.NotImplemented,
    status.RuntimeException,
)
_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "Attention", "MultiHeadAttention"})
_MAX_SESSIONS = 64


class EngineError(Exception):
    """A provider is missing, or a model cannot be loaded or run."""


class Session:
    """An ONNX model that is loaded and can be run.

    Attributes:
        inputs: names of its inputs.
        outputs: names of its outputs.
        provider: the execution provider that runs its matrix products. ONNX Runtime places
            what a provider cannot run on the CPU without a word, so this is read back.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.inputs = frozenset(item.name for item in session.get_inputs())
        self.outputs = frozenset(item.name for item in session.get_outputs())
        self.provider = _provider_that_runs(session)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """The named outputs for these inputs.

        Raises:
            EngineError: ONNX Runtime fails on them; the message says why.
        """
        try:
            results: list[Array] = self._session.run(list(outputs), dict(feeds))
        except _SESSION_ERRORS as error:
            raise EngineError(str(error)) from error
        return results


class Engine:
    """Makes sessions on one provider and keeps those of the attention kernels.

    Args:
        provider: a name of ``PROVIDERS``, or ``auto``.
        threads: intra-op threads of each session.

    Raises:
        EngineError: the provider is not in the installed ONNX Runtime.
    """

    def __init__(self, provider: str = "auto", threads: int = 1) -> None:
        self.available = onnxruntime.get_available_providers()
        self.provider = _choose(provider, self.available)
        self.threads = threads
        self._sessions: OrderedDict[GraphSpec, Session] = OrderedDict()
        self._lock = Lock()

    def load(self, model: Path | bytes) -> Session:
        """A session over an ONNX file, or over a serialized model.

        Raises:
            EngineError: ONNX Runtime refuses the model; the message says why.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        # Spinning threads fight the ones that move bytes in and out for the same few cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.log_severity_level = 3
        providers = list(dict.fromkeys([self.provider, PROVIDERS["cpu"]]))
        source = model if isinstance(model, bytes) else str(model)
        try:
            return Session(onnxruntime.InferenceSession(source, options, providers=providers))
        except _SESSION_ERRORS as error:
            raise EngineError(str(error)) from error

    def attend(self, call: AttentionCall, plan: Plan) -> tuple[dict[str, Array], str]:
        """Run a planned call.

        Returns:
            What the plan's graph gives of ``output`` ``[B,Hq,L,Dv]`` and ``weights``
            ``[B,Hq,L,S]``, in the dtype that was computed in; and the provider that ran.
        """
        sizes = call.sizes
        shapes = {"output": sizes.output, "weights": sizes.scores}
        wanted = {name: shapes[name] for name in shapes if getattr(plan.graph, name)}
        session = self._session(plan.graph)
        if 0 in sizes.scores or 0 in sizes.output:
            # Without keys every row is fully masked: output and weights are zero or empty.
            empty = {name: np.zeros(shape, plan.graph.dtype) for name, shape in wanted.items()}
            return empty, session.provider
        if not wanted:
            return {}, session.provider
        results = session.run(tuple(wanted), _feeds(call, plan.graph))
        arrays = zip(wanted, results, strict=True)
        return {name: array.reshape(wanted[name]) for name, array in arrays}, session.provider

    def _session(self, spec: GraphSpec) -> Session:
        with self._lock:
            session = self._sessions.pop(spec, None)
            if session is None:
                session = self.load(build(spec).SerializeToString())
                if len(self._sessions) >= _MAX_SESSIONS:
                    self._sessions.popitem(last=False)
            self._sessions[spec] = session
            return session


def _feeds(call: AttentionCall, spec: GraphSpec) -> dict[str, Array]:
    """The graph's inputs: the call's tensors as five dimensions, views where they can be."""
    sizes = call.sizes
    heads = (sizes.kv_num_heads, sizes.q_num_heads // sizes.kv_num_heads)

    def grouped(tensor: Array) -> Array:
        """``[B or 1, Hq or 1, …]`` as ``[B or 1, Hkv or 1, G or 1, …]``."""
        split = heads if tensor.shape[1] == sizes.q_num_heads else (1, 1)
        return tensor.reshape(tensor.shape[0], *split, *tensor.shape[2:])

    feeds = {
        "query": grouped(call.query),
        "key": call.key[:, :, None],
        "scale": np.array(call.scale),
    }
    if spec.output:
        feeds["value"] = call.value[:, :, None]
    with np.errstate(over="ignore"):  # a bias past float32's range masks, as −infinity does
        if call.attn_mask is not None:
            feeds["mask"] = grouped(call.attn_mask)
        return {
            name: array if array.dtype.kind == "b" else array.astype(spec.dtype, copy=False)
            for name, array in feeds.items()
        }


def _choose(provider: str, available: Sequence[str]) -> str:
    if provider == "auto":
        return next(PROVIDERS[name] for name in _AUTO if PROVIDERS[name] in available)
    if PROVIDERS[provider] not in available:
        here = ", ".join(name for name, full in PROVIDERS.items() if full in available)
        raise EngineError(
            f"the provider {provider!r} is not in the installed ONNX Runtime; it has {here}. "
            "For CUDA install the extra [server-gpu] in place of [server]."
        )
    return PROVIDERS[provider]


def _provider_that_runs(session: onnxruntime.InferenceSession) -> str:
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        products = sum(node.op_type in _PRODUCTS for node in part.get_nodes())
        counts[part.ep_name] += 1 + 1000 * products
    return counts.most_common(1)[0][0] if counts else str(session.get_providers()[0])
