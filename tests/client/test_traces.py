"""The client's spans: one for each call, over all its attempts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from attention_client import (
    AsyncAttentionClient,
    AttentionClient,
    ConnectionFailedError,
    InvalidAnswerError,
    NotFoundError,
    UnavailableError,
)
from attention_wire import bodies
from tests.client.conftest import Ask
from tests.client.scripted import OUTPUT, Reply, ScriptedServer, attention_reply
from tests.spans import Recorder, attribute, is_error, names

ONE = [[1.0]], [[1.0]], [[5.0]]
DOWN = Reply(503, b"down")


def test_a_call_has_the_attributes_of_http(
    ask: Ask, server: ScriptedServer, recorder: Recorder
) -> None:
    server.script = [attention_reply(headers={"X-Request-ID": "theirs"})]
    ask(server.url.replace("//", "//user:secret@"), "attention", *ONE)
    call = recorder.client()
    assert call.name == "POST /v1/attention"
    assert dict(call.attributes or {}) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": int(server.url.rpartition(":")[2]),
        "url.full": f"{server.url}/v1/attention",
        "url.template": "/v1/attention",
        "attention.request_id": "theirs",
    }
    assert call.instrumentation_scope is not None
    assert call.instrumentation_scope.name == "attention_client"


def test_the_service_is_told_the_span(ask: Ask, server: ScriptedServer, recorder: Recorder) -> None:
    server.script = [attention_reply()]
    ask(server.url, "attention", *ONE)
    context = recorder.client().context
    assert context is not None
    (sent,) = server.received
    version, trace_id, span_id, flags = sent.headers["traceparent"].split("-")
    assert (version, int(trace_id, 16), int(span_id, 16)) == (
        "00", context.trace_id, context.span_id,
    )  # fmt: skip
    assert int(flags, 16) & trace.TraceFlags.SAMPLED


def test_attempts_are_events_of_one_span(
    ask: Ask, server: ScriptedServer, recorder: Recorder
) -> None:
    server.script = [DOWN, Reply(fault="close"), attention_reply()]
    ask(server.url, "attention", *ONE)
    call = recorder.client()
    assert not is_error(call)
    assert attribute(call, "http.request.resend_count") == 2
    assert attribute(call, "http.response.status_code") == 200
    assert [(event.name, dict(event.attributes or {})) for event in call.events] == [
        ("attempt failed", {"attention.attempt": 1, "error.type": "503"}),
        (
            "attempt failed",
            {
                "attention.attempt": 2,
                "error.type": "attention_client.errors.ConnectionFailedError",
            },
        ),
    ]
    assert len({sent.headers["traceparent"] for sent in server.received}) == 1


def test_a_modules_name_is_not_in_the_spans_name(
    ask: Ask, server: ScriptedServer, recorder: Recorder
) -> None:
    server.script = [attention_reply()]
    ask(server.url, "module_attention", "of mine", [[[1.0]]])
    call = recorder.client()
    assert call.name == "POST /v1/modules/{name}/attention"
    assert attribute(call, "url.full") == f"{server.url}/v1/modules/of%20mine/attention"


# --- What goes wrong --------------------------------------------------------------------


def test_an_error_marks_the_span_without_its_message(
    ask: Ask, traced_url: str, recorder: Recorder
) -> None:
    with pytest.raises(NotFoundError, match="xylophone"):
        ask(traced_url, "text_attention", "a", module="xylophone")
    call = recorder.client()
    assert is_error(call)
    assert attribute(call, "error.type") == "404"
    assert attribute(call, "attention.problem") == "unknown_module"
    recorder.server()
    assert "xylophone" not in recorder.text()


def test_no_connection_marks_the_span(ask: Ask, recorder: Recorder) -> None:
    with pytest.raises(ConnectionFailedError):
        ask("http://127.0.0.1:9", "attention", *ONE, settings={"max_retries": 1})
    call = recorder.client()
    assert is_error(call)
    assert attribute(call, "error.type") == "attention_client.errors.ConnectionFailedError"
    assert attribute(call, "http.request.resend_count") == 1
    assert attribute(call, "http.response.status_code") is None


def test_an_answer_that_cannot_be_read_marks_the_span(
    ask: Ask, server: ScriptedServer, recorder: Recorder
) -> None:
    server.script = [Reply(200, b"hello")]
    with pytest.raises(InvalidAnswerError):
        ask(server.url, "attention", *ONE)
    assert is_error(recorder.client())
    expected = "attention_client.errors.InvalidAnswerError"
    assert attribute(recorder.client(), "error.type") == expected


def test_a_failure_that_is_a_result_marks_the_span(
    ask: Ask, server: ScriptedServer, recorder: Recorder
) -> None:
    server.script = [DOWN]
    assert ask(server.url, "ready") is False
    assert is_error(recorder.client())
    assert attribute(recorder.client(), "error.type") == "503"


def test_a_call_that_is_cancelled_marks_the_span(
    server: ScriptedServer, recorder: Recorder
) -> None:
    server.script = [Reply(fault="stall")]

    async def main() -> None:
        async with AsyncAttentionClient(server.url) as client:
            call = asyncio.create_task(client.attention(*ONE))
            await asyncio.to_thread(server.arrived.wait)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(main())
    server.release()
    assert is_error(recorder.client())
    assert attribute(recorder.client(), "error.type") == "asyncio.exceptions.CancelledError"


# --- Shards -----------------------------------------------------------------------------


def _ask_shards(url: str) -> None:
    rows = np.ones((4, 8), np.float32)
    with AttentionClient(url) as client:
        client.attention(rows, rows, rows, shards=[client] * 3)


def _ask_shards_async(url: str) -> None:
    async def main() -> None:
        rows = np.ones((4, 8), np.float32)
        async with AsyncAttentionClient(url) as client:
            await client.attention(rows, rows, rows, shards=[client] * 3)

    asyncio.run(main())


@pytest.mark.parametrize("ask_shards", [_ask_shards, _ask_shards_async], ids=["sync", "async"])
def test_a_call_over_shards_is_one_tree(
    ask_shards: Callable[[str], None], traced_url: str, recorder: Recorder
) -> None:
    with trace.get_tracer("application").start_as_current_span("application"):
        ask_shards(traced_url)
    servers = recorder.of(SpanKind.SERVER, 3)
    (root,) = (span for span in recorder.spans if span.parent is None)
    (whole,) = recorder.below(root)
    assert whole.name == "attention over shards"
    assert attribute(whole, "attention.shards") == 3
    calls = recorder.below(whole)
    assert names(calls) == ["POST /v1/attention"] * 3
    below = [server for call in calls for server in recorder.below(call)]
    assert sorted(map(id, below)) == sorted(map(id, servers))


def test_a_shard_that_fails_marks_the_whole(server: ScriptedServer, recorder: Recorder) -> None:
    server.script = [DOWN]
    with AttentionClient(server.url, max_retries=0) as client, pytest.raises(UnavailableError):
        client.attention(*ONE, shards=[client])
    whole = next(span for span in recorder.spans if span.parent is None)
    assert is_error(whole)
    assert attribute(whole, "error.type") == "attention_client.errors.UnavailableError"


# --- Without ----------------------------------------------------------------------------


def test_an_application_that_does_not_trace_loads_and_sends_nothing(
    server: ScriptedServer,
) -> None:
    fields = {"output": OUTPUT, "lse": OUTPUT[0], "provider": "CPUExecutionProvider"}
    body = bodies.write(bodies.SAFETENSORS, fields, "response")
    server.script = [Reply(200, bytes(body), body.media_type)] * 2
    code = """
import sys
from attention_client import AttentionClient
with AttentionClient(sys.argv[1]) as client:
    client.attention([[1.0]], [[1.0]], [[5.0]])
    client.attention([[1.0]], [[1.0]], [[5.0]], shards=[client])
print("loaded:", *(name for name in sys.modules if name.startswith("opentelemetry")))
"""
    run = subprocess.run(
        [sys.executable, "-c", code, server.url], capture_output=True, text=True, check=False
    )
    assert run.stdout == "loaded:\n", run.stderr
    assert len(server.received) == 2
    assert not any("traceparent" in sent.headers for sent in server.received)
