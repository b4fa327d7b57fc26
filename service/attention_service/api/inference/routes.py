"""The routes of `/v2` beside `infer`: what is served, and whether it is well."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request

from attention_service.api.inference.models import SDPA, Model, Tensor, find
from attention_service.api.inference.operation import VERSION, check_version
from attention_service.api.metrics import Metrics, Statistics
from attention_service.attention.engine import Engine
from attention_service.modules.folder import ModuleFolder
from attention_service.serving.lifecycle import Lifecycle
from attention_wire import documents
from attention_wire.problems import Code, ProblemError

PLATFORM = "onnxruntime_onnx"
_TYPES = {"BYTES": "TYPE_STRING"}
# Path → why it is refused.
_REFUSED = {
    "/v2/repository/models/{name}/load": "Modules are taken up once their folder is there",
    "/v2/repository/models/{name}/unload": "Modules go once their folder is gone",
    "/v2/trace/setting": "Traces are set up when the service is started, with --traces",
    "/v2/models/{name}/trace/setting": "Traces are set up when the service is started",
    "/v2/logging": "The log is set up when the service is started, with --log-level",
    "/v2/systemsharedmemory/{path:path}": "Shared memory is not offered: send tensors in the body",
    "/v2/cudasharedmemory/{path:path}": "Shared memory is not offered: send tensors in the body",
}


def inference_routes(
    engine: Engine, folder: ModuleFolder, lifecycle: Lifecycle, metrics: Metrics
) -> APIRouter:
    """A router over the parts of a running service."""
    router = APIRouter()
    for path, why in _REFUSED.items():  # first, for some stand where a model's name would
        router.add_api_route(path, _refusal(why), methods=["GET", "POST"], include_in_schema=False)
    router.include_router(_server_routes(folder, lifecycle), tags=["inference"])
    router.include_router(_model_routes(engine, folder, lifecycle, metrics), tags=["inference"])
    return router


def _server_routes(folder: ModuleFolder, lifecycle: Lifecycle) -> APIRouter:
    router = APIRouter(prefix="/v2")

    @router.get("", summary="What the server is")
    async def server() -> dict[str, Any]:
        """The server's name and version, and the protocol's extensions that it has."""
        extensions = ["binary_tensor_data", "model_configuration", "statistics"]
        name = "attention-service"
        return {"name": name, "version": version(name), "extensions": extensions}

    @router.get("/health/live", summary="Whether the process lives")
    async def live() -> dict[str, bool]:
        """Whether the process lives."""
        return {"live": True}

    @router.get("/health/ready", summary="Whether to send calls here")
    async def ready() -> dict[str, bool]:
        """Whether calls should be sent here: 503 while starting or draining."""
        _check_ready(lifecycle)
        return {"ready": True}

    @router.post("/repository/index", summary="Models, and folders that were refused")
    async def index(request: Request) -> list[dict[str, str]]:
        """The models that serve, and the folders that were refused."""
        body = await request.body()
        asked = documents.parse(body).value if body else {}
        only_ready = isinstance(asked, dict) and asked.get("ready") is True
        names = _names(folder)
        ready = [{"name": name, "version": VERSION, "state": "READY"} for name in names]
        refused = [
            {"name": module.name, "state": "UNAVAILABLE", "reason": module.reason}
            for module in folder.current.refused
            if module.name not in names
        ]
        return ready if only_ready else ready + refused

    return router


def _model_routes(
    engine: Engine, folder: ModuleFolder, lifecycle: Lifecycle, metrics: Metrics
) -> APIRouter:
    router = APIRouter(prefix="/v2/models")

    def model_of(name: str, version: str) -> Model:
        model = find(name, folder.current, engine)
        check_version(name, version)
        return model

    @router.get("/stats", summary="Counts and times of all models")
    async def statistics_of_all() -> dict[str, Any]:
        """Counts and times of every model."""
        return _statistics(_names(folder), metrics)

    @router.get("/{name}", summary="A model's inputs and outputs")
    @router.get("/{name}/versions/{version}", summary="A model's inputs and outputs")
    async def metadata(name: str, version: str = VERSION) -> dict[str, Any]:
        """A model's inputs and outputs."""
        model = model_of(name, version)
        return {
            "name": model.name,
            "versions": [VERSION],
            "platform": PLATFORM,
            "inputs": [_metadata(tensor) for tensor in model.inputs],
            "outputs": [_metadata(tensor) for tensor in model.outputs],
        }

    @router.get("/{name}/ready", summary="Whether a model can be called")
    @router.get("/{name}/versions/{version}/ready", summary="Whether a model can be called")
    async def model_ready(name: str, version: str = VERSION) -> dict[str, Any]:
        """Whether a model can be called."""
        model_of(name, version)
        _check_ready(lifecycle)
        return {"name": name, "ready": True}

    @router.get("/{name}/config", summary="A model as Triton's configuration")
    @router.get("/{name}/versions/{version}/config", summary="A model as Triton's configuration")
    async def config(name: str, version: str = VERSION) -> dict[str, Any]:
        """A model's inputs and outputs, as Triton's configuration names them."""
        model = model_of(name, version)
        return {
            "name": model.name,
            "platform": PLATFORM,
            "backend": "onnxruntime",
            "max_batch_size": 0,
            "input": [_config(tensor) | _optional(tensor) for tensor in model.inputs],
            "output": [_config(tensor) for tensor in model.outputs],
        }

    @router.get("/{name}/stats", summary="Counts and times of a model")
    @router.get("/{name}/versions/{version}/stats", summary="Counts and times of a model")
    async def statistics(name: str, version: str = VERSION) -> dict[str, Any]:
        """Counts and times of a model."""
        return _statistics([model_of(name, version).name], metrics)

    return router


def _names(folder: ModuleFolder) -> list[str]:
    return [SDPA, *(info.name for info in folder.current.infos())]


def _check_ready(lifecycle: Lifecycle) -> None:
    if not lifecycle.is_ready:
        detail = f"The service is {lifecycle.status}."
        raise ProblemError(Code.NOT_READY, detail, retry_after=1)


def _refusal(why: str) -> Any:
    async def refuse() -> None:
        raise ProblemError(Code.NOT_FOUND, f"{why}.")

    return refuse


def _metadata(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _config(tensor: Tensor) -> dict[str, Any]:
    datatype = _TYPES.get(tensor.datatype, f"TYPE_{tensor.datatype}")
    return {"name": tensor.name, "data_type": datatype, "dims": list(tensor.shape)}


def _optional(tensor: Tensor) -> dict[str, bool]:
    return {"optional": True} if tensor.is_optional else {}


def _statistics(names: list[str], metrics: Metrics) -> dict[str, Any]:
    found = metrics.statistics()
    return {"model_stats": [_of_model(name, found.get(name, Statistics())) for name in names]}


def _of_model(name: str, seen: Statistics) -> dict[str, Any]:
    """Counts and nanoseconds, as Triton's statistics extension names them."""

    def duration(*phases: str) -> dict[str, int]:
        seconds = sum(seen.seconds.get(phase, 0.0) for phase in phases)
        return {"count": seen.calls, "ns": round(1e9 * seconds)}

    return {
        "name": name,
        "version": VERSION,
        "inference_count": seen.calls,
        "inference_stats": {
            "success": duration(*seen.seconds),
            "queue": duration("queue"),
            "compute_input": duration("parse"),
            "compute_infer": duration("compute"),
            "compute_output": duration("serialize"),
        },
    }
