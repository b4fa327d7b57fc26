"""The app: its parts put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from opentelemetry.trace import TracerProvider
from starlette.routing import Route
from starlette.types import ASGIApp

from attention_service.api import openapi, problems, traces
from attention_service.api.afterwards import Afterwards
from attention_service.api.compute import ComputeEndpoint
from attention_service.api.envelope import Envelope
from attention_service.api.forms import Forms
from attention_service.api.guard import RequireKey
from attention_service.api.inference.models import SDPA, find
from attention_service.api.inference.operation import InferOperation
from attention_service.api.inference.routes import inference_routes
from attention_service.api.metrics import Metrics
from attention_service.api.middleware import CloseUnread, HeadAsGet, RootPath, ShortCut
from attention_service.api.operations import FieldsOperation, Operation
from attention_service.api.routes import light_routes, warnings
from attention_service.api.scopes import is_probe
from attention_service.attention.engine import Engine
from attention_service.attention.sdpa import AttentionJob
from attention_service.modules.folder import ModuleFolder
from attention_service.modules.multi_head import MultiHeadJob
from attention_service.modules.text_job import TextJob
from attention_service.serving.admission import Admission
from attention_service.serving.batching import Batching
from attention_service.serving.keys import Keys
from attention_service.serving.lifecycle import Lifecycle
from attention_service.settings import Settings
from attention_wire.schemas import AttentionRequest, ModuleRequest, TextRequest

logger = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    lifecycle: Lifecycle | None = None,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """The service as an ASGI app.

    Modules are loaded when the app starts up; until then `/readyz` answers 503.

    Args:
        settings: what it is started with.
        lifecycle: its state, handed in by a server that drains it.
        tracer_provider: takes the spans, in place of the collector that the settings may ask for;
            it stays open.

    Raises:
        EngineError: the settings name an execution provider that is not installed.
        KeysError: the file of keys cannot be used.
        TracesError: the settings ask for traces, which cannot be sent.
    """
    keys = None if settings.api_keys_file is None else Keys(settings.api_keys_file)
    engine = Engine(settings.provider, settings.threads)
    lifecycle = lifecycle or Lifecycle()
    exporting = traces.exporting() if settings.traces and tracer_provider is None else None
    tracer_provider = tracer_provider or exporting
    tracer = tracer_provider.get_tracer(traces.SCOPE) if tracer_provider else None
    admission = Admission(
        settings.max_running,
        settings.max_waiting,
        settings.memory_budget_bytes,
        max_small=max(2, settings.threads),
        max_wait=settings.max_wait,
    )
    afterwards = Afterwards()
    folder = ModuleFolder(settings.modules, engine, settings.text_module)
    metrics = Metrics(admission, engine, folder, lifecycle, keys, is_shared=settings.workers > 1)
    batching = Batching(admission, settings.batch_bytes, metrics.computed)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for warning in warnings(settings):
            logger.warning(warning)
        logger.info(
            "attention-service %s on %s: %d threads, %.1f GB for calls; loading what is in %s",
            *(version("attention-service"), engine.provider, engine.threads),
            *(settings.memory_budget_bytes / 1e9, settings.modules),
        )
        await asyncio.to_thread(folder.look)
        lifecycle.ready()
        works = (metrics.keep_fresh(), folder.follow(settings.modules_poll))
        tasks = [asyncio.create_task(work) for work in works]
        yield
        for task in tasks:
            task.cancel()
        admission.close()
        afterwards.finish()
        if exporting is not None:
            await traces.close(exporting)

    app = FastAPIOffline(
        title="Attention service",
        version=version("attention-service"),
        description=openapi.DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,  # it would send the caller wherever its Host header says
        static_url="/docs-assets",
        openapi_tags=openapi.TAGS,
        telemetry=traces.telemetry(tracer_provider, is_probe),
    )
    app.include_router(light_routes(settings, engine, folder, lifecycle, metrics))
    app.include_router(inference_routes(engine, folder, lifecycle, metrics))
    operations: list[Operation] = [
        FieldsOperation(
            openapi.ATTENTION,
            AttentionRequest,
            lambda request, _: AttentionJob.of(request, engine),
            Forms(engine),
        ),
        FieldsOperation(
            openapi.MODULE_ATTENTION,
            ModuleRequest,
            lambda request, path: MultiHeadJob(folder.current.multi_head(path["name"]), request),
        ),
        FieldsOperation(
            openapi.TEXT_ATTENTION,
            TextRequest,
            lambda request, _: TextJob(folder.current.text(request.module), request),
        ),
    ]
    infer = InferOperation(
        openapi.INFER, lambda name: find(name, folder.current, engine), Forms(engine)
    )
    endpoints: dict[str, ASGIApp] = {}
    for operation in (*operations, infer):
        endpoint = ComputeEndpoint(
            operation, settings, admission, batching, lifecycle, metrics, tracer
        )
        app.router.routes.append(Route(operation.route, endpoint, methods=["POST"]))
        endpoints[operation.route] = endpoint
    app.router.routes.append(Route(openapi.INFER_VERSION, endpoint, methods=["POST"]))
    endpoints[openapi.INFER.format(name=SDPA)] = endpoint
    problems.install(app)
    openapi.install(app)
    if tracer is None:  # the framework's routing names the spans
        app.add_middleware(ShortCut, endpoints)
    if keys is not None:
        app.add_middleware(RequireKey, keys)
    app.add_middleware(HeadAsGet)
    app.add_middleware(CloseUnread)
    app.add_middleware(Envelope, lifecycle, afterwards, is_traced=tracer is not None)
    if settings.root_path:
        app.add_middleware(RootPath, settings.root_path)
    return app
