"""Both clients against the real service, and against a server that fails as scripted."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest

from attention_client import (
    AsyncAttentionClient,
    AttentionClient,
    BadRequestError,
    ConfigurationError,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidAnswerError,
    InvalidRequestError,
    NotFoundError,
    Return,
    ServerError,
    UnavailableError,
)
from tests import reference
from tests.client.conftest import Ask
from tests.client.scripted import OUTPUT, Reply, ScriptedServer, attention_reply

GOLDENS = Path(__file__).parents[1] / "goldens"
RNG = np.random.default_rng(7)
ONE = [[1.0]], [[1.0]], [[5.0]]
TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


def tensors(dtype: Any = np.float32) -> list[np.ndarray]:
    shapes = (2, 4, 5, 8), (2, 2, 6, 8), (2, 2, 6, 3)
    return [RNG.standard_normal(shape).astype(dtype) for shape in shapes]


# --- The real service ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_attention_of_each_dtype(ask: Ask, service_url: str, dtype: Any) -> None:
    query, key, value = tensors(dtype)
    result = ask(service_url, "attention", query, key, value)
    expected = reference.attention(query, key, value)
    name = np.dtype(dtype).name
    assert result.output.dtype.name == result.weights.dtype.name == name
    reference.assert_close(result.output, expected.output, TOLERANCES[name])
    reference.assert_close(result.weights, expected.weights, TOLERANCES[name])
    assert result.provider == "CPUExecutionProvider"
    assert result.module is None
    assert result.request_id
    assert set(result.server_timing) == {"parse", "queue", "compute", "serialize"}


def test_attention_s_options(ask: Ask, service_url: str) -> None:
    query, key, value = tensors()
    options: dict[str, Any] = {
        "attn_mask": RNG.random((5, 6)) < 0.7,
        "is_causal": True,
        "scale": 0.3,
    }
    result = ask(service_url, "attention", query, key, value, **options)
    expected = reference.attention(query, key, value, **options)
    reference.assert_close(result.output, expected.output, 1e-5)
    reference.assert_close(result.weights, expected.weights, 1e-5)


def test_masks_as_lists(ask: Ask, service_url: str) -> None:
    arguments = [[1.0]], [[1.0], [1.0]], [[1.0], [3.0]]
    masked = ask(service_url, "attention", *arguments, attn_mask=[[True, False]])
    assert masked.weights.tolist() == [[1.0, 0.0]]
    biased = ask(service_url, "attention", *arguments, attn_mask=[[0.0, math.log(3)]])
    np.testing.assert_allclose(biased.weights, [[0.25, 0.75]], rtol=1e-6)


def test_three_dimensions_with_the_numbers_of_heads(ask: Ask, service_url: str) -> None:
    query, key, value = tensors()
    flat = [array.swapaxes(1, 2).reshape(2, array.shape[2], -1) for array in (query, key, value)]
    result = ask(service_url, "attention", *flat, q_num_heads=4, kv_num_heads=2)
    expected = reference.attention(query, key, value)
    output = expected.output.swapaxes(1, 2).reshape(2, 5, -1)
    reference.assert_close(result.output, output, 1e-5)
    reference.assert_close(result.weights, expected.weights, 1e-5)


@pytest.mark.parametrize("return_", [{"output": False}, Return(output=False)])
def test_only_what_is_asked_for_comes(ask: Ask, service_url: str, return_: Any) -> None:
    result = ask(service_url, "attention", *ONE, return_=return_)
    assert set(result.arrays) == {"weights"}


def test_a_call_whose_body_goes_in_pieces(ask: Ask, service_url: str) -> None:
    query, key, value = (RNG.standard_normal((1, 2, 1500, 64)).astype(np.float32) for _ in range(3))
    result = ask(service_url, "attention", query, key, value)
    assert result.weights.nbytes == 2 * 1500 * 1500 * 4
    row = reference.attention(query[:, :, -1:], key, value)
    reference.assert_close(result.output[:, :, -1:], row.output, 1e-5)
    reference.assert_close(result.weights[:, :, -1:], row.weights, 1e-5)


def test_empty_tensors(ask: Ask, service_url: str) -> None:
    result = ask(service_url, "attention", np.ones((0, 4)), np.ones((3, 4)), np.ones((3, 2)))
    assert (result.output.shape, result.weights.shape) == ((0, 2), (0, 3))


@pytest.mark.parametrize("name", ["kdim_bool_mask", "kdim_causal"])
def test_a_learned_module_gives_what_pytorch_gave(ask: Ask, service_url: str, name: str) -> None:
    calls = json.loads((GOLDENS / "multi_head.json").read_text())
    arrays = np.load(GOLDENS / "multi_head.npz")
    (call,) = (each for each in calls if each["id"] == name)
    key, value = (arrays[f"{call['id']}.{name}"] for name in ("key", "value"))
    masked = f"{call['id']}.attn_mask"
    result = ask(
        service_url,
        "module_attention",
        "mha-kdim",
        arrays[f"{call['id']}.query"],
        key,
        value,
        attn_mask=arrays[masked] if masked in arrays.files else None,
        is_causal=call["is_causal"],
    )
    assert result.module == "mha-kdim"
    np.testing.assert_allclose(result.output, arrays[f"{call['id']}.output"], atol=1e-5)
    np.testing.assert_allclose(result.weights, arrays[f"{call['id']}.weights"], atol=1e-5)


def test_text_gives_what_transformers_gave(ask: Ask, service_url: str) -> None:
    cases = {case["id"]: case for case in json.loads((GOLDENS / "text.json").read_text())["cases"]}
    arrays = np.load(GOLDENS / "text.npz")
    case = cases["pair"]
    result = ask(
        service_url, "text_attention", case["text"], case["text_pair"], layers=[5, 0], heads=[3]
    )
    assert (result.text, result.text_pair) == (case["text"], case["text_pair"])
    assert (result.layers, result.heads) == ([5, 0], [3])
    assert result.tokens == case["tokens"]
    assert result.token_ids == case["token_ids"]
    assert [list(span) for span in result.offsets] == case["offsets"]
    assert result.segments[0] is None
    assert result.special_tokens_mask[0] == 1
    assert result.word_ids[1] == 0
    expected = arrays["pair.weights"]
    np.testing.assert_allclose(result.weights, expected[[5, 0]][:, [3]], atol=1e-5)
    np.testing.assert_array_equal(result.head(0, 0), result.weights[0, 0])
    np.testing.assert_allclose(result.output, arrays["pair.output"], atol=1e-4)


def test_a_list_of_texts_gives_a_list(ask: Ask, service_url: str) -> None:
    results = ask(service_url, "text_attention", ["a cat", "the dog sat"], ["x", "y z"])
    assert [result.text for result in results] == ["a cat", "the dog sat"]
    assert [result.text_pair for result in results] == ["x", "y z"]
    assert [result.weights.shape for result in results] == [(6, 12, 6, 6), (6, 12, 8, 8)]
    single = ask(service_url, "text_attention", ["a cat"])
    assert [len(result.tokens) for result in single] == [4]


def test_truncation_is_the_caller_s_choice(ask: Ask, service_url: str) -> None:
    text = "word " * 600
    with pytest.raises(InvalidRequestError) as caught:
        ask(service_url, "text_attention", text)
    assert caught.value.code == "text_too_long"
    options = {"truncate": True, "return_": {"weights": False}}
    assert len(ask(service_url, "text_attention", text, **options).tokens) == 512


def test_facts_about_the_service(ask: Ask, service_url: str) -> None:
    assert ask(service_url, "ready") is True
    info = ask(service_url, "info")
    assert info.keys_required is False
    names = [module.name for module in ask(service_url, "modules").modules]
    assert {"all-MiniLM-L6-v2", "mha"} <= set(names)
    assert ask(service_url, "module", "mha").num_heads == 4


def test_a_client_serves_threads(client: AttentionClient) -> None:
    results: dict[int, float] = {}

    def work(number: int) -> None:
        result = client.attention([[1.0]], [[1.0]], [[float(number)]])
        results[number] = float(result.output[0, 0])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: float(number) for number in range(8)}


# --- Where the service is --------------------------------------------------------------


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_path_prefix_and_a_key(ask: Ask, server: ScriptedServer, slash: str) -> None:
    server.script = [attention_reply()]
    settings = {"api_key": "secret"}
    result = ask(f"{server.url}/models/attention{slash}", "attention", *ONE, settings=settings)
    np.testing.assert_array_equal(result.output, OUTPUT)
    [request] = server.received
    assert (request.method, request.path) == ("POST", "/models/attention/v1/attention")
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["User-Agent"].startswith("attention-client/")
    assert request.headers["Content-Length"] == str(len(request.body))
    assert 59 < float(request.headers["X-Request-Timeout"]) <= 60


def test_the_environment_names_service_and_key(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTENTION_URL", server.url)
    monkeypatch.setenv("ATTENTION_API_KEY", "of-the-environment")
    server.script = [attention_reply(), attention_reply()]
    with AttentionClient() as client:
        client.attention(*ONE)
    with AttentionClient(api_key="argument") as client:
        client.attention(*ONE)
    keys = [request.headers["Authorization"] for request in server.received]
    assert keys == ["Bearer of-the-environment", "Bearer argument"]


def test_without_arguments_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTENTION_URL", raising=False)
    with AttentionClient() as client:
        assert repr(client) == "AttentionClient('http://127.0.0.1:8080')"


def test_a_key_is_never_shown(server: ScriptedServer) -> None:
    with AttentionClient(server.url, api_key="secret") as client:
        assert "secret" not in repr(client) + repr(client._settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "127.0.0.1:8080"},
        {"base_url": "ftp://host"},
        {"base_url": "http://"},
        {"base_url": "http://host:port"},
        {"base_url": "http://[::1"},
        {"base_url": "http://host/?query"},
        {"api_key": "two words"},
        {"api_key": "schlüssel"},
        {"timeout": 0},
        {"timeout": math.nan},
        {"max_retries": -1},
    ],
)
@pytest.mark.parametrize("kind", [AttentionClient, AsyncAttentionClient])
def test_settings_that_cannot_be_used(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        kind(**settings)


def test_a_call_s_timeout_is_checked(ask: Ask, server: ScriptedServer) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        ask(server.url, "attention", *ONE, timeout=-1)
    assert not server.received


# --- Failures that pass ----------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [Reply(status) for status in (408, 429, 502, 503, 504)]
    + [Reply(fault="close"), Reply(fault="reset"), attention_reply(fault="cut")],
    ids=lambda reply: reply.fault or str(reply.status),
)
def test_passing_failures_are_repeated(ask: Ask, server: ScriptedServer, failure: Reply) -> None:
    server.script = [failure, failure, attention_reply()]
    result = ask(server.url, "attention", *ONE)
    np.testing.assert_array_equal(result.output, OUTPUT)
    assert len(server.received) == 3
    bodies = {request.body for request in server.received}
    assert len(bodies) == 1


def test_large_bodies_are_repeated_whole(ask: Ask, server: ScriptedServer) -> None:
    large = RNG.standard_normal((1, 300_000)).astype(np.float32)
    server.script = [Reply(503), attention_reply()]
    ask(server.url, "attention", large, large, large)
    first, second = server.received
    assert first.body == second.body
    assert len(first.body) > 3 * large.nbytes


@pytest.mark.parametrize(("status", "kind"), [(400, BadRequestError), (500, ServerError)])
def test_lasting_failures_are_not_repeated(
    ask: Ask, server: ScriptedServer, status: int, kind: type[Exception]
) -> None:
    server.script = [Reply(status)]
    with pytest.raises(kind):
        ask(server.url, "attention", *ONE)
    assert len(server.received) == 1


def test_repetitions_end(ask: Ask, server: ScriptedServer) -> None:
    server.script = [Reply(503)] * 5
    with pytest.raises(UnavailableError) as caught:
        ask(server.url, "attention", *ONE)
    assert len(server.received) == 3
    assert caught.value.__notes__ == ["(3 attempts)"]
    with pytest.raises(UnavailableError):
        ask(server.url, "attention", *ONE, settings={"max_retries": 0})
    assert len(server.received) == 4


def test_retry_after_is_waited_for(ask: Ask, server: ScriptedServer) -> None:
    server.script = [Reply(429, headers={"Retry-After": "1"}), attention_reply()]
    start = time.monotonic()
    ask(server.url, "attention", *ONE)
    assert time.monotonic() - start >= 1
    first, second = (float(each.headers["X-Request-Timeout"]) for each in server.received)
    assert first - second > 0.99  # they are rounded


def test_a_wait_past_the_deadline_is_not_begun(ask: Ask, server: ScriptedServer) -> None:
    server.script = [Reply(503, headers={"Retry-After": "30"})]
    start = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        ask(server.url, "attention", *ONE, timeout=20)
    assert time.monotonic() - start < 5
    assert caught.value.retry_after == 30


@pytest.mark.parametrize("reply", [Reply(fault="stall"), attention_reply(fault="trickle")])
def test_one_deadline_over_everything(ask: Ask, server: ScriptedServer, reply: Reply) -> None:
    server.script = [Reply(503), reply]
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"no answer within 2 s"):
        ask(server.url, "attention", *ONE, timeout=2)
    assert 1.9 < time.monotonic() - start < 10
    assert len(server.received) == 2


def test_nobody_listens(ask: Ask) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionFailedError, match=f"POST {url}/v1/attention") as caught:
            ask(url, "attention", *ONE)
        assert caught.value.__notes__ == ["(3 attempts)"]
        assert isinstance(caught.value.__cause__, httpx.ConnectError)
        assert ask(url, "ready") is False


def test_readiness_of_a_service_that_drains(ask: Ask, server: ScriptedServer) -> None:
    server.script = [Reply(503, b'{"status": "draining"}', "application/json")]
    assert ask(server.url, "ready") is False
    server.script = [Reply(404)]
    with pytest.raises(NotFoundError):
        ask(server.url, "ready")
    assert len(server.received) == 2


def test_a_page_in_place_of_the_service(ask: Ask, server: ScriptedServer) -> None:
    server.script = [Reply(200, b"<html>welcome</html>", "text/html")]
    with pytest.raises(InvalidAnswerError, match="text/html"):
        ask(server.url, "attention", *ONE)
    server.script = [attention_reply(headers={"Content-Encoding": "gzip"})]
    with pytest.raises(InvalidAnswerError):
        ask(server.url, "attention", *ONE)


# --- Whose connections they are --------------------------------------------------------


def test_options_of_one_moment(server: ScriptedServer) -> None:
    server.script = [Reply(503), Reply(200, b"", "text/plain")]
    with AttentionClient(server.url) as client:
        other = client.with_options(timeout=5, max_retries=0)
        with pytest.raises(UnavailableError):
            other.info()
        other.close()
        with pytest.raises(InvalidAnswerError):  # the connections are still open
            client.info()
    assert [float(each.headers["X-Request-Timeout"]) > 5 for each in server.received] == [
        False,
        True,
    ]


def test_somebody_else_s_http_client_stays_open(server: ScriptedServer) -> None:
    with httpx.Client(headers={"X-Team": "blue"}) as http:
        server.script = [attention_reply()]
        with AttentionClient(server.url, http_client=http) as client:
            client.attention(*ONE)
        assert not http.is_closed
    assert server.received[0].headers["X-Team"] == "blue"


def test_somebody_else_s_async_http_client_stays_open(server: ScriptedServer) -> None:
    async def main() -> None:
        async with httpx.AsyncClient(headers={"X-Team": "blue"}) as http:
            server.script = [attention_reply()]
            async with AsyncAttentionClient(server.url, http_client=http) as client:
                await client.with_options(timeout=9).attention(*ONE)
            assert not http.is_closed

    asyncio.run(main())
    assert server.received[0].headers["X-Team"] == "blue"
    assert float(server.received[0].headers["X-Request-Timeout"]) <= 9


def test_a_client_closes_its_own_connections() -> None:
    client = AttentionClient()
    http = client._http
    client.close()
    assert http.is_closed


def test_an_async_client_closes_its_own_connections_only() -> None:
    async def main() -> None:
        client = AsyncAttentionClient()
        await client.with_options(timeout=1).aclose()
        assert not client._http.is_closed
        await client.aclose()
        assert client._http.is_closed

    asyncio.run(main())


def test_an_awaited_call_can_be_cancelled(server: ScriptedServer) -> None:
    async def main() -> None:
        async with AsyncAttentionClient(server.url) as client:
            server.script = [Reply(fault="stall"), attention_reply()]
            call = asyncio.create_task(client.attention(*ONE))
            assert await asyncio.to_thread(server.arrived.wait, 10)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            result = await client.attention(*ONE)
            np.testing.assert_array_equal(result.output, OUTPUT)

    asyncio.run(main())
    assert len(server.received) == 2
