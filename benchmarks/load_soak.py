"""A soak: valid, invalid, oversized, slow and dropped requests, all mixed, for minutes."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from attention_wire import bodies
from benchmarks.load_calls import JSON, WORDS_OF_6, tensors, text
from benchmarks.load_generator import Outcome, Sender, end, percentile, probe, request
from benchmarks.served import Served, served

_CALLERS = 6
_SAMPLE_SECONDS = 0.25
# Bodies of a megabyte are oversized here, so that they need not be large to be refused.
SETTINGS = {"max_body_bytes": 2**20, "body_timeout": 1}
# What an answer may say beside them, by what was sent.
_DOCUMENTED = {503, 504}


class Checked:
    """A call and the answer that numpy gives to it, in float64."""

    def __init__(self, length: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        query, key, value = (rng.standard_normal((1, 2, length, 16)) for _ in range(3))
        scores = np.exp(query @ key.swapaxes(-1, -2) / 4)
        self._weights = scores / scores.sum(axis=-1, keepdims=True)
        self._output = self._weights @ value
        given = {"query": query, "key": key, "value": value}
        fields = {name: array.astype(np.float32) for name, array in given.items()}
        body = bodies.write(bodies.SAFETENSORS, fields, "request")
        self.content = request("/v1/attention", bytes(body), body.media_type)

    def is_right(self, outcome: Outcome) -> bool:
        """Whether an answer is that one."""
        found = bodies.read(bodies.SAFETENSORS, outcome.body, "response").values
        return bool(
            np.allclose(found["output"], self._output, rtol=1e-4, atol=1e-5)
            and np.allclose(found["weights"], self._weights, rtol=1e-4, atol=1e-5)
        )


class Soak:
    """The load: what is sent, and what was wrong with what came."""

    def __init__(self, service: Served, seed: int) -> None:
        self._service = service
        self._random = random.Random(seed)  # noqa: S311  no secret
        self._sender = Sender(service.port)
        self._checked = [Checked(length, length) for length in (4, 16, 100, 250)]
        self._text = text(WORDS_OF_6)
        self._large = tensors(1024, **{"return": {"output": True, "weights": False}})
        self.seen = Counter[str]()
        self.wrong: list[str] = []

    async def close(self) -> None:
        """Close the connections."""
        await self._sender.close()

    async def call(self) -> None:
        """Send one request of any kind."""
        kinds: dict[Callable[[], Awaitable[None]], int] = {
            self._valid: 10,
            self._texts: 4,
            self._invalid: 4,
            self._oversized: 2,
            self._impatient: 2,
            self._dropped: 3,
            self._slow: 1,
        }
        (kind,) = self._random.choices(list(kinds), list(kinds.values()))
        await kind()

    async def _valid(self) -> None:
        checked = self._random.choice(self._checked)
        outcome = await self._sender.ask(checked.content)
        self._note("valid", outcome, {200, 429})
        if outcome.status == 200 and not checked.is_right(outcome):
            self.wrong.append("a wrong answer")

    async def _texts(self) -> None:
        outcome = await self._sender.ask(self._text)
        self._note("text", outcome, {200, 429})
        if outcome.status != 200:
            return
        found = bodies.read(bodies.SAFETENSORS, outcome.body, "response").values["results"][0]
        if len(found["tokens"]) != 8 or not np.allclose(found["weights"].sum(-1), 1, atol=1e-4):
            self.wrong.append("a wrong answer of a text")

    async def _invalid(self) -> None:
        body = self._random.choice([b"{", b'{"query": [[1]]}', b'{"query": "a"}', b"\xff" * 50])
        outcome = await self._sender.ask(request("/v1/attention", body, JSON))
        self._note("invalid", outcome, {400, 422})

    async def _oversized(self) -> None:
        once = Sender(self._service.port)
        outcome = await once.ask(self._large)
        await once.close()
        self._note("oversized", outcome, {413})

    async def _impatient(self) -> None:
        content = text([WORDS_OF_6 * 20] * 20)
        content = content.replace(b"\r\n\r\n", b"\r\nX-Request-Timeout: 0.05\r\n\r\n", 1)
        self._note("impatient", await self._sender.ask(content), {200, 429})

    async def _dropped(self) -> None:
        content = self._random.choice([self._checked[-1].content, self._text])
        _, writer = await asyncio.open_connection("127.0.0.1", self._service.port)
        writer.write(content[: self._random.randrange(1, len(content) + 1)])
        await writer.drain()
        await asyncio.sleep(self._random.random() / 50)
        await end(writer)
        self.seen["dropped"] += 1

    async def _slow(self) -> None:
        """A body that stops halfway is given up, with the status that says so."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._service.port)
        content = self._checked[-1].content
        writer.write(content[: len(content) // 2])
        head = await reader.read(100)
        await end(writer)
        self.seen["slow"] += 1
        if not head.startswith(b"HTTP/1.1 408"):
            self.wrong.append(f"a slow body was answered {head[:20]!r}")

    def _note(self, kind: str, outcome: Outcome, expected: set[int]) -> None:
        self.seen[f"{kind} {outcome.status}"] += 1
        if outcome.status not in expected | _DOCUMENTED:
            self.wrong.append(f"{kind} was answered {outcome.status}")


async def _run(service: Served, seconds: float) -> dict[str, Any]:
    soak, health = Soak(service, seed=1), Sender(service.port)
    start = time.perf_counter()
    resident: list[tuple[float, float]] = []
    probed: list[float] = []

    async def caller() -> None:
        while time.perf_counter() - start < seconds:
            await soak.call()

    async def watch() -> None:
        while time.perf_counter() - start < seconds:
            resident.append((time.perf_counter() - start, service.resident_bytes() / 1e6))
            probed.append((await health.ask(probe("/healthz"))).seconds)
            await asyncio.sleep(_SAMPLE_SECONDS)

    await asyncio.gather(watch(), *(caller() for _ in range(_CALLERS)))
    await soak.close()
    await health.close()
    late = np.array([sample for sample in resident if sample[0] >= seconds / 2])
    slope = float(np.polyfit(late[:, 0] / 60, late[:, 1], 1)[0])
    metrics = service.metrics()
    return {
        "seconds": seconds,
        "requests": sum(soak.seen.values()),
        "seen": dict(sorted(soak.seen.items())),
        "wrong": sorted(set(soak.wrong)),
        "resident_mb": {"first": resident[0][1], "half": late[0][1], "last": late[-1][1]},
        "slope_mb_a_minute": slope,
        "healthz_p99_ms": 1e3 * percentile(probed, 0.99),
        "left": metrics["attention_queue_size"] + metrics["attention_memory_predicted_bytes"],
    }


def soak(seconds: float) -> dict[str, Any]:
    """Measure, and say whether what was asked is met.

    Args:
        seconds: of the soak; the slope is that of its second half.
    """
    with served(**SETTINGS) as service:
        found = asyncio.run(_run(service, seconds))
    return found | {
        "asked": {
            "nothing wrong, no 5xx but 503 and 504": not found["wrong"],
            "slope < 1 MB/min": found["slope_mb_a_minute"] < 1,
            "nothing left": found["left"] == 0,
        }
    }
