"""Load: requests whose bytes are made before, over raw connections, closed or open loop.

A client library with many connections is slower than the service; this is a few lines over
asyncio's streams. It shares the machine's processors with what it measures.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_RETRY = re.compile(rb"(?i)\r\nretry-after: *(\d+)")
_CLOSE = re.compile(rb"(?i)\r\nconnection: *close")
_TIMING = re.compile(rb"(\w+);dur=([\d.]+)")
_LIMIT = 2**22
_MOST_AT_ONCE = 500


def request(path: str, body: bytes, content_type: str, **headers: str) -> bytes:
    """The bytes of a POST."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n{more}\r\n"
    ).encode() + body


def probe(path: str) -> bytes:
    """The bytes of a GET."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


async def end(writer: asyncio.StreamWriter) -> None:
    """Close a connection, and wait until it is."""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request.

    Attributes:
        status: of the answer.
        seconds: from the first byte sent to the last one received.
        retry_after: whether the answer says when to come again.
        phases: milliseconds, as `Server-Timing` tells them.
        body: of the answer.
    """

    status: int
    seconds: float
    retry_after: bool
    phases: dict[str, float]
    body: bytes


@dataclass
class Sender:
    """Sends requests to a port, over connections that are kept."""

    port: int
    _idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=deque)

    async def ask(self, content: bytes) -> Outcome:
        """Send a request and read its answer."""
        start = time.perf_counter()
        if self._idle:
            reader, writer = self._idle.popleft()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=_LIMIT)
        writer.write(content)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        seconds = time.perf_counter() - start
        if _CLOSE.search(head):
            await end(writer)
        else:
            self._idle.append((reader, writer))
        phases = {str(name, "ascii"): float(ms) for name, ms in _TIMING.findall(head)}
        return Outcome(int(head[9:12]), seconds, bool(_RETRY.search(head)), phases, body)

    async def close(self) -> None:
        """Close the connections."""
        while self._idle:
            await end(self._idle.pop()[1])

    async def closed_loop(
        self, contents: Sequence[bytes], callers: int, seconds: float
    ) -> tuple[float, list[Outcome]]:
        """Let callers ask one request after the other: answers a second, and the outcomes."""
        outcomes: list[Outcome] = []
        start = time.perf_counter()

        async def call(number: int) -> None:
            count = number
            while time.perf_counter() - start < seconds:
                outcomes.append(await self.ask(contents[count % len(contents)]))
                count += callers

        await asyncio.gather(*map(call, range(callers)))
        return len(outcomes) / (time.perf_counter() - start), outcomes

    async def open_loop(self, content: bytes, rate: float, seconds: float) -> list[Outcome]:
        """Send so many requests a second, whatever becomes of those before.

        No more than ``_MOST_AT_ONCE`` are on their way; what a request waits for others of this
        side is none of the service's time.
        """
        outcomes: list[Outcome] = []
        room = asyncio.Semaphore(_MOST_AT_ONCE)

        async def call() -> None:
            async with room:
                outcomes.append(await self.ask(content))

        start = time.perf_counter()
        async with asyncio.TaskGroup() as calls:
            for number in range(int(rate * seconds)):
                early = start + number / rate - time.perf_counter()
                if early > 0:
                    await asyncio.sleep(early)
                calls.create_task(call())
        return outcomes


def percentile(values: Sequence[float], part: float) -> float:
    """The value that so large a part of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
