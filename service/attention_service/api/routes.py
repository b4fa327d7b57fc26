"""The light routes: what the service is, what it serves, and whether it is well."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter, Response

from attention_service.api.metrics import CONTENT_TYPE, Metrics
from attention_service.api.page_files import page_routes
from attention_service.attention.engine import Engine
from attention_service.modules.folder import ModuleFolder
from attention_service.serving.lifecycle import Lifecycle
from attention_service.settings import Settings
from attention_wire.answers import Health, Limits, ModuleInfo, ModuleList, ServiceInfo
from attention_wire.documents import MAX_DEPTH
from attention_wire.problems import Code, ProblemError

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def light_routes(
    settings: Settings,
    engine: Engine,
    folder: ModuleFolder,
    lifecycle: Lifecycle,
    metrics: Metrics,
) -> APIRouter:
    """A router over the parts of a running service."""
    router = APIRouter()

    @router.get("/v1/info", tags=["service"], summary="Version, providers, limits")
    async def info() -> ServiceInfo:
        """Version, execution providers, limits and warnings."""
        return ServiceInfo(
            name="attention-service",
            version=version("attention-service"),
            provider=engine.provider,
            available_providers=engine.available,
            threads=engine.threads,
            workers=settings.workers,
            limits=Limits(
                body_bytes=settings.max_body_bytes,
                answer_bytes=settings.max_answer_bytes,
                memory_bytes=settings.memory_budget_bytes,
                json_depth=MAX_DEPTH,
                running_calls=settings.max_running,
                waiting_calls=settings.max_waiting,
                timeout_seconds=settings.max_timeout,
            ),
            keys_required=settings.api_keys_file is not None,
            warnings=warnings(settings),
        )

    @router.get("/v1/modules", tags=["modules"], summary="Modules that serve")
    async def modules() -> ModuleList:
        """The modules that serve, and the folders that were refused with the reason."""
        return ModuleList(modules=folder.current.infos(), refused=folder.current.refused)

    @router.get("/v1/modules/{name}", tags=["modules"], summary="One module")
    async def module(name: str) -> ModuleInfo:
        """One module: its kind, heads, sizes, licence, source and checksum."""
        return folder.current.get(name).info

    @router.get("/healthz", tags=["service"], summary="Whether the process lives")
    async def healthz() -> Health:
        """Whether the process lives. Always 200 from a process that can answer."""
        return Health(status="ok")

    @router.get("/readyz", tags=["service"], summary="Whether to send calls here")
    async def readyz() -> Health:
        """Whether calls should be sent here: 503 while starting or draining."""
        if not lifecycle.is_ready:
            detail = f"The service is {lifecycle.status}."
            raise ProblemError(Code.NOT_READY, detail, retry_after=1)
        return Health(status="ok")

    @router.get(
        "/metrics",
        tags=["service"],
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    router.include_router(page_routes())
    return router


def warnings(settings: Settings) -> list[str]:
    """What an operator should look at."""
    if settings.host in _LOOPBACK or settings.api_keys_file is not None:
        return []
    return [f"serving {settings.host}, an address other than loopback, without keys"]
