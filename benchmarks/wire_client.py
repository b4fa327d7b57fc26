"""The client's own share of a call: what it takes beyond a bare socket and the same bytes."""

from __future__ import annotations

import socket
import statistics
import time
from typing import Any

import numpy as np

from attention_client import AttentionClient
from attention_wire import bodies

_SHAPE = (1, 8, 512, 64)  # 3 MB there, 9 MB back
_ASKED = 0.25


def _exchange(connection: socket.socket, head: bytes, body: bytes) -> bytearray:
    """Send a request, and read the answer to its end."""
    connection.sendall(head)
    connection.sendall(body)
    begun = b""
    while b"\r\n\r\n" not in begun:
        begun += connection.recv(2**16)
    lines, rest = begun.split(b"\r\n\r\n", 1)
    fields = dict(line.lower().split(b": ", 1) for line in lines.split(b"\r\n")[1:])
    answer = bytearray(int(fields[b"content-length"]))
    view, end = memoryview(answer), len(rest)
    view[:end] = rest
    while end < len(answer):
        end += connection.recv_into(view[end:])
    return answer


def client_share(port: int, calls: int) -> dict[str, Any]:
    """The middle of as many pairs of a bare exchange and a call of the client.

    Args:
        port: of a service on this machine.
        calls: of each kind.
    """
    rng = np.random.default_rng(0)
    tensors = {n: rng.standard_normal(_SHAPE, np.float32) for n in ("query", "key", "value")}
    body = bytes(bodies.write(bodies.SAFETENSORS, tensors, "request"))
    head = (
        f"POST /v1/attention HTTP/1.1\r\nHost: x\r\nContent-Type: {bodies.SAFETENSORS}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    bare, whole = [], []
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        AttentionClient(f"http://127.0.0.1:{port}") as client,
    ):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(calls + 5):
            start = time.perf_counter()
            answer = _exchange(connection, head, body)
            middle = time.perf_counter()
            client.attention(**tensors)
            if number >= 5:
                bare.append(middle - start)
                whole.append(time.perf_counter() - middle)
    share = statistics.median(1 - b / w for b, w in zip(bare, whole, strict=True))
    return {
        "bytes": len(body) + len(answer),
        "bare_ms": 1e3 * statistics.median(bare),
        "client_ms": 1e3 * statistics.median(whole),
        "share": round(share, 3),
        "met": share < _ASKED,
    }
