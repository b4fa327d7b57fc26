"""Sessions, providers and threads: the only importer of ONNX Runtime."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as status

from attention_service.attention import speed
from attention_service.attention.graphs import Spec, TileSpec, TopKSpec, build
from attention_service.attention.kernels import TILE_BYTES, Target
from attention_service.attention.lanes import Lanes
from attention_service.attention.pages import Pages
from attention_service.attention.patterns import Patterns
from attention_service.attention.underflow import WITH_SUBNORMALS, WITHOUT_SUBNORMALS
from attention_service.priority import step_back
from attention_wire.tensors import Array

logger = logging.getLogger(__name__)

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
# What a provider has to be told to compute float32 as float32: the tensor cores of NVIDIA's GPUs
# round its products' factors to 10 bits (TF32), unless they are asked not to.
_PROVIDER_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}
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
_SPIN_US = 10
_PATTERN_BYTES = 6 * 2**20
# Arrays of a tile's scores that a lane may hold at once, with room between them.
_ARENA_TILES = 8


class EngineError(Exception):
    """A provider is missing, or a model cannot be loaded or run."""


class Session:
    """An ONNX model that is loaded and can be run.

    Args:
        session: ONNX Runtime's.
        keeps_subnormals: whether it computes with them, and not as if they were 0.

    Attributes:
        inputs: names of its inputs.
        outputs: names of its outputs.
        shapes: of each output what ONNX Runtime knows ahead: numbers, names of what differs from
            run to run, and None; empty if it knows nothing.
        provider: the execution provider that runs its matrix products. ONNX Runtime places
            what a provider cannot run on the CPU without a word, so this is read back.
        shares_memory: whether it computes on arrays where they stand, and not on copies.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, *, keeps_subnormals: bool = False
    ) -> None:
        self._session = session
        self.inputs = frozenset(item.name for item in session.get_inputs())
        self.shapes = {item.name: tuple(item.shape) for item in session.get_outputs()}
        self.outputs = frozenset(self.shapes)
        self.provider = _provider_that_runs(session)
        self.shares_memory = self.provider == "CPUExecutionProvider"
        self._underflow = WITH_SUBNORMALS if keeps_subnormals else WITHOUT_SUBNORMALS

    def run(
        self,
        outputs: Sequence[str],
        feeds: Mapping[str, Array],
        into: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """The named outputs for these inputs.

        Args:
            outputs: which outputs.
            feeds: name → contiguous array, for every input.
            into: name → contiguous array that an output is written to.

        Raises:
            EngineError: ONNX Runtime fails on them; the message says why.
        """
        try:
            if into:
                return self._run_bound(outputs, feeds, into)
            with self._underflow:
                results = self._session.run(list(outputs), dict(feeds))
        except _SESSION_ERRORS as error:
            raise EngineError(str(error)) from error
        return dict(zip(outputs, results, strict=True))

    def _run_bound(
        self, outputs: Sequence[str], feeds: Mapping[str, Array], into: Mapping[str, Array]
    ) -> dict[str, Array]:
        binding = self._binding(outputs, feeds, into)
        with self._underflow:
            self._session.run_with_iobinding(binding)
        values = binding.get_outputs()
        return {
            name: into[name] if name in into else value.numpy()
            for name, value in zip(outputs, values, strict=True)
        }

    def repeated(self, feeds: Mapping[str, Array], into: Mapping[str, Array]) -> Callable[[], None]:
        """A run that can be repeated: it reads what these arrays hold then, and writes the others.

        Args:
            feeds: name → contiguous array, for every input.
            into: name → contiguous array, for every output that is wanted. Both are to be kept for
                as long as the run is.
        """
        binding = self._binding(tuple(into), feeds, into)

        def run() -> None:
            try:
                with self._underflow:
                    self._session.run_with_iobinding(binding)
            except _SESSION_ERRORS as error:
                raise EngineError(str(error)) from error

        return run

    def _binding(
        self, outputs: Sequence[str], feeds: Mapping[str, Array], into: Mapping[str, Array]
    ) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name in outputs:
            if name in into:
                place = into[name]
                binding.bind_output(
                    name, "cpu", 0, place.dtype.type, place.shape, place.ctypes.data
                )
            else:
                binding.bind_output(name, "cpu")
        return binding


class _InferenceSession(onnxruntime.InferenceSession):  # type: ignore[misc]  # it has no types
    """A session that does not keep the file that it was made of."""

    def forget_model(self) -> None:
        """Let it go: it is kept to make the session again on other providers."""
        self._model_bytes = None


class Engine:
    """Makes sessions on one provider and keeps those of the attention kernels.

    Args:
        provider: a name of ``PROVIDERS``, or ``auto``.
        threads: tiles of attention that run at once, and intra-op threads of a module.
        tile_bytes: bound of the scores of one tile; None for what suits the provider.

    Attributes:
        provider: ONNX Runtime's name of the provider.
        available: those of its providers that can be chosen here.
        threads: as given.
        lanes: the threads that compute tiles.
        patterns: the biases that calls share.
        pages: the memory that large arrays leave to the next ones.

    Raises:
        EngineError: the provider is not in the installed ONNX Runtime, or does not start.
    """

    def __init__(
        self, provider: str = "auto", threads: int = 1, *, tile_bytes: int | None = None
    ) -> None:
        here = onnxruntime.get_available_providers()
        self.available = [name for name in here if name in PROVIDERS.values()]
        self.threads = threads
        self.provider = self._choose(provider)
        self._target = Target.of(self.provider, threads, tile_bytes)
        self._cpu = Target.of(PROVIDERS["cpu"], threads, tile_bytes)
        self.lanes = Lanes(threads)
        self.patterns = Patterns(_PATTERN_BYTES)
        self.pages = Pages()
        self._sessions: OrderedDict[tuple[Spec, bool], Session] = OrderedDict()
        self._lock = Lock()
        self._speed: speed.Speed | None = None

    def _choose(self, provider: str) -> str:
        """ONNX Runtime's name of a provider that starts here."""
        if provider == "auto":
            found = [PROVIDERS[name] for name in _AUTO if PROVIDERS[name] in self.available]
            return next(filter(self._starts, found))
        name = PROVIDERS[provider]
        if name not in self.available:
            here = ", ".join(name for name, full in PROVIDERS.items() if full in self.available)
            raise EngineError(
                f"the provider {provider!r} is not in the installed ONNX Runtime; it has {here}. "
                "For CUDA install the extra [server-gpu] in place of [server]."
            )
        if not self._starts(name):
            raise EngineError(
                f"the provider {provider!r} is in the installed ONNX Runtime, but does not start "
                "here: its device, its driver or one of its libraries is missing; ONNX Runtime "
                "has said above which. Name another one, or 'auto' for the first that starts."
            )
        return name

    def _starts(self, provider: str) -> bool:
        """Whether sessions run on a provider: ONNX Runtime falls back to the CPU by itself."""
        if provider == PROVIDERS["cpu"]:
            return True
        if provider == PROVIDERS["cuda"]:
            onnxruntime.preload_dlls()  # those of the packages beside it, which nothing else finds
        model = build(TileSpec("float32", ("output",))).SerializeToString()
        try:
            has_it = provider in _session(model, self._options(), provider).get_providers()
        except _SESSION_ERRORS as error:
            logger.warning("%s does not start: %s", provider, error)
            return False
        if not has_it:
            logger.warning("%s does not start.", provider)
        return has_it

    def target(self, dtype: np.dtype[Any]) -> Target:
        """What a call that is computed in a dtype is planned for.

        Float64 is asked for its digits, and ONNX Runtime's other providers lose half of them in
        the softmax (CUDA's: 3e-8), so it stays on the CPU.
        """
        return self._cpu if dtype == np.float64 else self._target

    def load(self, model: Path | bytes, threads: int | None = None) -> Session:
        """A session over an ONNX file, or over the bytes of one.

        Args:
            model: the file or its bytes.
            threads: that it runs in; as many as the engine has by default.

        Raises:
            EngineError: ONNX Runtime refuses the model; the message says why.
        """
        source = model if isinstance(model, bytes) else str(model)
        return self._load_aside(source, self._module_options(threads or self.threads))

    def _load_aside(self, source: str | bytes, options: onnxruntime.SessionOptions) -> Session:
        # Threads of a session inherit the niceness of the one that makes it.
        with ThreadPoolExecutor(1, initializer=step_back) as thread:
            return thread.submit(self._load, source, options, self.provider).result()

    def _module_options(self, threads: int) -> onnxruntime.SessionOptions:
        options = self._options()
        options.intra_op_num_threads = threads
        # From one operator of a run to the next a thread waits less than it takes to wake it; but
        # one that waits longer takes the processor from other runs.
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # What the thread that calls does too: see `underflow`.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        # An arena would keep what the longest text took.
        options.enable_cpu_mem_arena = False
        return options

    def _options(self) -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        # Shapes differ from run to run: a memory pattern for each costs more than it saves.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.log_severity_level = 3
        return options

    @staticmethod
    def _load(
        source: str | bytes,
        options: onnxruntime.SessionOptions,
        provider: str,
        *,
        keeps_subnormals: bool = False,
    ) -> Session:
        try:
            session = _session(source, options, provider)
            return Session(session, keeps_subnormals=keeps_subnormals)
        except _SESSION_ERRORS as error:
            raise EngineError(str(error)) from error

    def session(self, spec: Spec, *, is_wide: bool = False) -> Session:
        """The session of a spec, made once and kept while it is among the last used.

        Args:
            spec: of its graph.
            is_wide: whether it runs in all threads. Otherwise a tile runs in one thread, and
                several tiles beside each other.
        """
        with self._lock:
            session = self._sessions.pop((spec, is_wide), None)
            if session is None:
                session = self._made(spec, is_wide=is_wide)
                if len(self._sessions) >= _MAX_SESSIONS:
                    self._sessions.popitem(last=False)
            self._sessions[spec, is_wide] = session
            return session

    def _made(self, spec: Spec, *, is_wide: bool) -> Session:
        model = build(spec).SerializeToString()
        if is_wide:
            return self._load_aside(model, self._module_options(self.threads))
        provider = self.target(np.dtype(spec.dtype)).provider
        # What looks for the largest must tell them apart, for numpy makes some of heads' means.
        keeps_subnormals = spec.dtype == "float64" or isinstance(spec, TopKSpec)
        return self._load(model, self._tile_options(), provider, keeps_subnormals=keeps_subnormals)

    @property
    def cached_sessions(self) -> int:
        """How many sessions of tiles are kept."""
        return len(self._sessions)

    def _tile_options(self) -> onnxruntime.SessionOptions:
        options = self._options()
        options.intra_op_num_threads = 1
        _share_arena(self.threads)
        options.add_session_config_entry("session.use_env_allocators", "1")
        return options

    def speed(self) -> speed.Speed:
        """What a lane does on this machine, measured when it is first asked for."""
        if self._speed is None:
            self._speed = speed.measure(self._timed_tile)
        return self._speed

    def _timed_tile(self, rows: int, keys: int) -> float:
        size = 64
        shapes = {"query": (1, rows, size), "key": (1, keys, size), "value": (1, keys, size)}
        feeds = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        feeds["scale"] = np.array(1 / 8, np.float32)
        self.session(TileSpec("float32", ("output",))).run(["output"], feeds)
        return float(rows * keys * (4 * size + 5))


@cache
def _share_arena(lanes: int) -> None:
    """Make the arena that sessions with `use_env_allocators` share, once in a process.

    Its first region holds what all lanes need at once: an arena never joins its regions, so
    one that grew from tile to tile, each a little larger than the last, would keep them all.
    Pages that no tile touches take no memory.
    """
    cpu = onnxruntime.OrtMemoryInfo(
        "Cpu",
        onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
        0,
        onnxruntime.OrtMemType.DEFAULT,
    )
    region = lanes * _ARENA_TILES * TILE_BYTES
    growth = onnxruntime.OrtArenaCfg({"initial_chunk_size_bytes": region})
    onnxruntime.create_and_register_allocator(cpu, growth)


def _session(
    source: str | bytes, options: onnxruntime.SessionOptions, provider: str
) -> _InferenceSession:
    providers = list(dict.fromkeys([provider, PROVIDERS["cpu"]]))
    given = [_PROVIDER_OPTIONS.get(name, {}) for name in providers]
    session = _InferenceSession(source, options, providers, given)
    session.forget_model()
    return session


def _provider_that_runs(session: onnxruntime.InferenceSession) -> str:
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        products = sum(node.op_type in _PRODUCTS for node in part.get_nodes())
        counts[part.ep_name] += 1 + 1000 * products
    return counts.most_common(1)[0][0] if counts else str(session.get_providers()[0])
