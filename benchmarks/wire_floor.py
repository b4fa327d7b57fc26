"""The floor: a bare ASGI app that parses the same bytes and runs the same session.

It checks nothing, admits everybody, and knows one dtype, in safetensors and in lists.
Usage: ``PORT``.
"""

from __future__ import annotations

import json
import struct
import sys
from typing import Any

import numpy as np
import orjson
import uvicorn
from starlette.types import Receive, Scope, Send

from attention_service.attention.engine import Engine
from attention_service.attention.graphs import TileSpec
from attention_service.resources import cpu_count
from attention_wire import number_lists

Array = np.ndarray[Any, Any]
SESSION = Engine("cpu", cpu_count()).session(TileSpec("float32", ("output", "weights")))


def parse(body: bytes) -> dict[str, Array]:
    (length,) = struct.unpack_from("<Q", body)
    start = 8 + length
    tensors = {}
    for name, entry in json.loads(body[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            flat = np.frombuffer(body, np.float32, (end - begin) // 4, start + begin)
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def header(tensors: dict[str, Array]) -> bytes:
    entries, end = {}, 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        shape, offsets = list(array.shape), [begin, end]
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def binary(tensors: dict[str, Array]) -> list[Any]:
    return [header(tensors), *(array.reshape(-1).view(np.uint8).data for array in tensors.values())]


def parse_lists(body: bytes) -> dict[str, Array]:
    members, _ = number_lists.parse(body, {"query", "key", "value"}) or ({}, 0)
    return members


def lists(tensors: dict[str, Array]) -> list[bytes]:
    return [orjson.dumps(tensors, option=orjson.OPT_SERIALIZE_NUMPY)]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    if scope["method"] == "GET":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    is_json = body.startswith(b"{")
    given = parse_lists(body) if is_json else parse(body)
    query = given["query"]
    feeds = {name: array.reshape(-1, *array.shape[2:]) for name, array in given.items()}
    feeds["scale"] = np.array(query.shape[-1] ** -0.5, np.float32)
    found = SESSION.run(["output", "weights"], feeds)
    answer = {name: array.reshape(*query.shape[:3], -1) for name, array in found.items()}
    buffers = lists(answer) if is_json else binary(answer)
    headers = [
        (b"content-type", b"application/json" if is_json else b"application/x-safetensors"),
        (b"content-length", str(sum(map(len, buffers))).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for index, part in enumerate(buffers, 1):
        await send({"type": "http.response.body", "body": part, "more_body": index < len(buffers)})


if __name__ == "__main__":
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning",
        loop="uvloop", http="httptools", server_header=False,
    )  # fmt: skip
