"""What the service records of a request, read back from memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from safetensors.numpy import save

from attention_client import AsyncAttentionClient, AttentionClient
from attention_client._messages import parse_server_timing
from tests.api.support import ATTENTION, GOOD, SAFETENSORS, TEXT, Caller, head
from tests.conftest import TEXT_MODULE
from tests.spans import Recorder, attribute, is_error, names

PHASES = ["parse", "queue", "compute", "serialize"]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "xylophone"  # the text module's tokens for it are x, ##yl and ##ophone


@pytest.fixture
def traced(traced_url: str, recorder: Recorder) -> Iterator[Caller]:
    """Calls a service whose spans are kept in `recorder`."""
    caller = Caller(traced_url)
    yield caller
    caller.close()


def _ask(url: str) -> None:
    with AttentionClient(url) as client:
        client.attention([[1.0]], [[1.0]], [[5.0]])


def _ask_async(url: str) -> None:
    async def main() -> None:
        async with AsyncAttentionClient(url) as client:
            await client.attention([[1.0]], [[1.0]], [[5.0]])

    asyncio.run(main())


@pytest.mark.parametrize("ask", [_ask, _ask_async], ids=["sync", "async"])
def test_a_call_through_client_and_service_is_one_tree(
    ask: Callable[[str], None], traced_url: str, recorder: Recorder
) -> None:
    with trace.get_tracer("application").start_as_current_span("application"):
        ask(traced_url)
    server = recorder.server()
    (root,) = (span for span in recorder.spans if span.parent is None)
    (call,) = recorder.below(root)
    assert (root.name, call.name, call.kind) == (
        "application", "POST /v1/attention", SpanKind.CLIENT,
    )  # fmt: skip
    assert recorder.below(call) == [server]
    phases = recorder.below(server)
    assert (server.name, names(phases)) == ("POST /v1/attention", PHASES)
    assert len(recorder.spans) == 3 + len(phases)
    assert {span.context.trace_id for span in recorder.spans if span.context} == {
        root.context.trace_id if root.context else None
    }
    assert not any(is_error(span) for span in recorder.spans)
    assert attribute(server, "attention.request_id") == attribute(call, "attention.request_id")


def test_phases_follow_each_other_within_the_request(traced: Caller, recorder: Recorder) -> None:
    traced.post(ATTENTION, GOOD)
    server = recorder.server()
    times = [server.start_time]
    for phase in recorder.below(server):
        times += [phase.start_time, phase.end_time]
    times.append(server.end_time)
    assert len(times) == 10
    # Phases are measured by a clock that only goes forward, and placed by the time of day.
    slack = 1_000_000
    assert all(
        after is not None and before is not None and after >= before - slack
        for before, after in pairwise(times)
    )


def test_a_phase_takes_as_long_as_the_answer_says(traced: Caller, recorder: Recorder) -> None:
    tensors = {name: np.ones((1, 8, 1024, 64), np.float32) for name in ("query", "key", "value")}
    body = save(tensors, metadata={"request": '{"return": {"weights": false}}'})
    answer = traced.post(ATTENTION, body, Content_Type=SAFETENSORS)
    told = parse_server_timing(answer.headers["Server-Timing"])
    for phase in recorder.below(recorder.server()):
        assert phase.start_time is not None
        assert phase.end_time is not None
        took = (phase.end_time - phase.start_time) / 1e6
        assert took > told[phase.name] - 1  # two clocks


def test_a_request_has_the_attributes_of_http_and_of_ours(
    traced: Caller, recorder: Recorder
) -> None:
    answer = traced.post(ATTENTION, GOOD, X_Request_ID="mine")
    server = recorder.server()
    expected = {
        "http.request.method": "POST",
        "http.route": ATTENTION,
        "http.response.status_code": 200,
        "url.path": ATTENTION,
        "url.scheme": "http",
        "attention.request_id": "mine",
    }
    assert expected.items() <= dict(server.attributes or {}).items()
    parse, queue, compute, serialize = recorder.below(server)
    assert attribute(parse, "attention.request_bytes") == len(json.dumps(GOOD))
    assert attribute(queue, "attention.small") is True
    assert attribute(queue, "attention.peak_bytes") > 0
    assert attribute(compute, "attention.provider") == "CPUExecutionProvider"
    assert attribute(compute, "attention.kernels") == ("composed",)
    assert attribute(serialize, "attention.answer_bytes") == len(answer.content)


def test_a_module_is_named_by_its_route_and_in_its_computation(
    traced: Caller, recorder: Recorder
) -> None:
    query = np.ones((1, 3, 8), np.float32)
    body = save({"query": query})
    assert traced.post("/v1/modules/example/attention", body, Content_Type=SAFETENSORS).is_success
    server = recorder.server()
    assert server.name == "POST /v1/modules/{name}/attention"
    assert attribute(server, "url.path") == "/v1/modules/example/attention"
    compute = recorder.below(server)[2]
    assert attribute(compute, "attention.module") == "example"
    assert attribute(compute, "attention.kernels") == ()


def test_nothing_that_a_request_or_its_answer_holds_is_recorded(
    traced: Caller, recorder: Recorder
) -> None:
    key = {"Authorization": f"Bearer {SECRET}", "Cookie": SECRET}
    answer = traced.post(TEXT, {"text": SECRET, "module": TEXT_MODULE}, **key)
    assert SECRET[3:] in answer.text
    wrong = traced.post(TEXT, {"text": "a", SECRET: 1, "heads": [SECRET]}, **key)
    assert wrong.status_code == 422
    assert SECRET in wrong.text
    assert traced.ask("GET", f"{TEXT}?text={SECRET}").status_code == 405
    query = recorder.of(SpanKind.SERVER, 3)[2]
    assert attribute(query, "url.query") == "REDACTED"
    assert TEXT_MODULE in recorder.text()
    assert SECRET[3:] not in recorder.text()


# --- The context that comes in ----------------------------------------------------------


def test_the_callers_context_is_taken_up(traced: Caller, recorder: Recorder) -> None:
    traced.post(ATTENTION, GOOD, traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="a=1,b=2")
    server = recorder.server()
    assert server.parent is not None
    assert server.parent.is_remote
    assert (f"{server.parent.trace_id:032x}", f"{server.parent.span_id:016x}") == (TRACE, PARENT)
    assert server.context is not None
    assert server.context.trace_id == int(TRACE, 16)
    assert server.context.trace_state.to_header() == "a=1,b=2"


def test_what_the_caller_does_not_record_is_not_recorded(
    traced: Caller, recorder: Recorder
) -> None:
    assert traced.post(ATTENTION, GOOD, traceparent=f"00-{TRACE}-{PARENT}-00").is_success
    assert traced.post(ATTENTION, GOOD).is_success
    assert recorder.server().parent is None
    assert TRACE not in recorder.text()


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01" * 100,
        "\xff",
    ],
)
def test_a_malformed_context_is_ignored(
    traceparent: str, traced_url: str, recorder: Recorder
) -> None:
    body = json.dumps(GOOD).encode()
    start = head(ATTENTION, Content_Length=len(body), traceparent=traceparent, tracestate="=,=")
    caller = Caller(traced_url)
    with caller.connection() as connection:
        connection.sendall(start.decode().encode("latin-1") + body)
        assert connection.recv(12) == b"HTTP/1.1 200"
        server = recorder.server()
    caller.close()
    assert server.parent is None
    assert names(recorder.below(server)) == PHASES


def test_calls_at_the_same_time_do_not_mix(traced_url: str, recorder: Recorder) -> None:
    tracer = trace.get_tracer("application")

    async def call(client: AsyncAttentionClient, length: int) -> None:
        rows = np.ones((length, 4), np.float32)
        with tracer.start_as_current_span(f"application {length}"):
            await client.attention(rows, rows, rows)

    async def main() -> None:
        async with AsyncAttentionClient(traced_url) as client:
            # Those of an equal length may be computed together.
            lengths = [1, 8, 16, 32] * 4
            await asyncio.gather(*(call(client, length) for length in lengths))

    asyncio.run(main())
    servers = recorder.of(SpanKind.SERVER, 16)
    assert len({span.context.trace_id for span in servers if span.context}) == 16
    for root in (span for span in recorder.spans if span.parent is None):
        (client,) = recorder.below(root)
        (server,) = recorder.below(client)
        assert attribute(server, "attention.request_id") == attribute(
            client, "attention.request_id"
        )
        phases = recorder.below(server)
        assert names(phases) == PHASES
        # The length tells which call it is: its output has so many rows of 16 bytes.
        length = int(root.name.split()[1])
        weights, output = 4 * length * length, 16 * length
        answer_bytes = attribute(phases[3], "attention.answer_bytes")
        assert 0 < answer_bytes - weights - output < 300


# --- What goes wrong --------------------------------------------------------------------


def test_a_callers_mistake_marks_the_phase_and_not_the_service(
    traced: Caller, recorder: Recorder
) -> None:
    traced.post(ATTENTION, {**GOOD, "key": [[1, 0, 0]]})
    server = recorder.server()
    assert attribute(server, "http.response.status_code") == 422
    assert attribute(server, "attention.problem") == "invalid_tensor"
    assert not is_error(server)  # as OpenTelemetry has it for a status below 500
    (parse,) = recorder.below(server)
    assert (parse.name, is_error(parse)) == ("parse", True)
    assert attribute(parse, "error.type") == "invalid_tensor"


def test_a_path_that_is_not_there(traced: Caller, recorder: Recorder) -> None:
    traced.ask("GET", "/nowhere")
    server = recorder.server()
    assert server.name == "GET"
    assert attribute(server, "attention.problem") == "not_found"
    assert attribute(server, "http.route") is None


def test_a_deadline_marks_the_request_and_its_phase(
    traced: Caller, recorder: Recorder, long_call: bytes
) -> None:
    traced.post(ATTENTION, long_call, Content_Type=SAFETENSORS, X_Request_Timeout="0.5")
    server = recorder.server()
    assert is_error(server)
    assert attribute(server, "error.type") == "504"
    assert attribute(server, "attention.problem") == "deadline"
    last = recorder.below(server)[-1]
    assert (last.name, is_error(last)) == ("compute", True)
    assert attribute(last, "error.type") == "deadline"


def test_a_caller_who_hangs_up_marks_the_request_and_its_phase(
    traced: Caller, recorder: Recorder, long_call: bytes
) -> None:
    with traced.connection() as connection:
        start = head(ATTENTION, Content_Type=SAFETENSORS, Content_Length=len(long_call))
        connection.sendall(start + long_call)
        recorder.wait_for("queue")
    server = recorder.server()
    assert is_error(server)
    assert attribute(server, "error.type") == "ConnectionError"
    assert attribute(server, "http.response.status_code") is None
    compute = recorder.below(server)[-1]
    assert (compute.name, is_error(compute)) == ("compute", True)
    assert attribute(compute, "error.type") == "caller_gone"


# --- What is not recorded ---------------------------------------------------------------


def test_probes_are_not_recorded(traced: Caller, recorder: Recorder) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert traced.ask("GET", path).is_success
    assert traced.ask("GET", "/v1/info").is_success
    assert recorder.server().name == "GET /v1/info"
    assert names(recorder.spans) == ["GET /v1/info"]


def test_a_service_that_was_not_asked_to_records_nothing(
    service_url: str, recorder: Recorder
) -> None:
    """Not even where the process has a global provider, as it has here."""
    _ask(service_url)
    assert [span.kind for span in recorder.spans] == [SpanKind.CLIENT]
