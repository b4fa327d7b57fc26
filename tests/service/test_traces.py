"""`attention-service serve --traces` as a process: what reaches a collector, and when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from tests.service.served import TENSORS, Served, serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Receives spans by OTLP over HTTP, or takes requests and never answers them."""

    def __init__(self) -> None:
        self.received: list[ResourceSpans] = []
        self.arrived = threading.Event()
        self.answering = threading.Event()
        self.answering.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self.answering.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                message = ExportTraceServiceRequest.FromString(body)
                outer.received += message.resource_spans
                outer.arrived.set()
                outer.answering.wait(60)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def environment(tmp_path: Path, collector: Collector) -> dict[str, str]:
    """Variables that send spans to the collector, once the process ends."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("ATTENTION_", "OTEL_"))}
    return kept | {
        "HOME": str(tmp_path),
        "NO_PROXY": "127.0.0.1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
    }


def ask(served: Served) -> None:
    answer = httpx.post(
        f"{served.url()}/v1/attention",
        json=TENSORS,
        headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
    )
    assert answer.status_code == 200


def end(served: Served) -> None:
    served.signal(signal.SIGINT)
    assert served.wait() == 0, served.log


def resource(spans: ResourceSpans) -> dict[str, Any]:
    return {item.key: item.value.string_value for item in spans.resource.attributes}


@pytest.mark.slow
def test_spans_reach_a_collector_before_the_process_ends(
    environment: dict[str, str], collector: Collector, tmp_path: Path
) -> None:
    with serving(environment, tmp_path, "--traces") as served:
        ask(served)
        assert not collector.received
        end(served)
    (received,) = collector.received
    spans = [span for scope in received.scope_spans for span in scope.spans]
    (server,) = (span for span in spans if span.name == "POST /v1/attention")
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, PARENT)
    phases = {span.name for span in spans if span.parent_span_id == server.span_id}
    assert phases == {"parse", "queue", "compute", "serialize"}
    assert len(spans) == 5
    assert resource(received)["service.name"] == "attention-service"
    assert resource(received)["service.version"]


@pytest.mark.slow
def test_the_standard_variables_name_the_service(
    environment: dict[str, str], collector: Collector, tmp_path: Path
) -> None:
    named = {"OTEL_SERVICE_NAME": "maps", "OTEL_RESOURCE_ATTRIBUTES": "deployment.name=blue"}
    with serving(environment | named | {"ATTENTION_TRACES": "true"}, tmp_path) as served:
        ask(served)
        end(served)
    (received,) = collector.received
    assert resource(received)["service.name"] == "maps"
    assert resource(received)["deployment.name"] == "blue"


@pytest.mark.slow
def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(
    environment: dict[str, str], collector: Collector, tmp_path: Path
) -> None:
    collector.answering.clear()
    patient = environment | {"OTEL_EXPORTER_OTLP_TIMEOUT": "600"}
    with serving(patient, tmp_path, "--traces") as served:
        ask(served)
        end(served)  # which waits for 20 s; OpenTelemetry's own limit is 30
    assert collector.arrived.is_set()


@pytest.mark.slow
def test_no_spans_are_sent_unasked(
    environment: dict[str, str], collector: Collector, tmp_path: Path
) -> None:
    """Whatever else the environment tells FastAPI."""
    told = environment | {"FASTAPI_OTEL_AUTO_CONFIGURE": "true"}
    with serving(told, tmp_path) as served:
        ask(served)
        end(served)
    assert not collector.received


# --- What is missing --------------------------------------------------------------------


def without_sdk(environment: dict[str, str], code: str) -> subprocess.CompletedProcess[str]:
    """Python where the extra is not installed."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['opentelemetry.sdk'] = None\n{code}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_the_extra_traces_are_refused_with_the_cure(environment: dict[str, str]) -> None:
    code = """
from attention_service.__main__ import main
sys.argv = ["attention-service", "serve", "--traces", "--port", "0"]
main()
"""
    result = without_sdk(environment, code)
    assert result.returncode == 1
    assert "attention-service[server,otel]" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_the_extra_all_else_works(environment: dict[str, str]) -> None:
    code = f"""
import asyncio, httpx
from attention_service.api.app import create_app
from attention_service.settings import Settings
async def main():
    app = create_app(Settings(provider="cpu", modules="/nonexistent"))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            print((await client.post("/v1/attention", json={TENSORS})).status_code)
asyncio.run(main())
"""
    result = without_sdk(environment, code)
    assert result.stdout == "200\n", result.stderr


def test_a_variable_that_cannot_be_used_is_refused(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment |= {"OTEL_BSP_MAX_QUEUE_SIZE": "0"}
    with serving(environment, tmp_path, "--traces") as served:
        assert served.wait() == 1
    assert "OTEL_" in served.log
    assert "max_queue_size" in served.log
    assert "Traceback" not in served.log
