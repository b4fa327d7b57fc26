"""A real HTTP server that answers as a script says, for what the service never does."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from attention_wire import bodies

OUTPUT = np.array([[5.0]], np.float32)


@dataclass(frozen=True)
class Reply:
    """One answer of the script.

    Attributes:
        fault: `close`: the connection ends before a byte of the answer; `reset`: it is
            reset there; `cut`: it ends in the middle of the body; `stall`: no answer
            comes while anybody waits; `trickle`: the body comes a byte at a time.
    """

    status: int = 200
    body: bytes = b""
    media_type: str = "text/plain"
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: Literal["close", "reset", "cut", "stall", "trickle"] | None = None


def attention_reply(**changes: Any) -> Reply:
    """A good answer to an attention call: the output [[5]]."""
    fields = {"output": OUTPUT, "provider": "CPUExecutionProvider"}
    body = bodies.write(bodies.SAFETENSORS, fields, "response")
    return Reply(200, bytes(body), body.media_type, **changes)


@dataclass(frozen=True)
class Received:
    """A request as the server saw it."""

    method: str
    path: str
    headers: Message
    body: bytes


class ScriptedServer:
    """Answers its requests with the replies of `script`, one after the other."""

    def __init__(self) -> None:
        self.script: list[Reply] = []
        self.received: list[Received] = []
        self.arrived = threading.Event()
        self._stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def release(self) -> None:
        """End all stalls, now and to come."""
        self._stopped.set()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.received.append(Received(self.command, self.path, self.headers, body))
                outer.arrived.set()
                outer._play(self, outer.script.pop(0))

            def do_GET(self) -> None:
                self.answer()

            def do_POST(self) -> None:
                self.answer()

            def log_message(self, *args: object) -> None:
                pass

        return Handler

    def _play(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        if reply.fault in {"close", "reset", "stall"}:
            if reply.fault == "stall":
                self._stopped.wait(20)
            if reply.fault == "reset":
                linger = struct.pack("ii", 1, 0)
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                handler.rfile.close()
                handler.connection.close()
            handler.close_connection = True
            return
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Type", reply.media_type)
        handler.send_header("Content-Length", str(len(reply.body)))
        handler.end_headers()
        if reply.fault == "cut":
            handler.wfile.write(reply.body[: len(reply.body) // 2])
            handler.close_connection = True
        elif reply.fault == "trickle":
            self._trickle(handler, reply.body)
        else:
            handler.wfile.write(reply.body)

    def _trickle(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        for index in range(len(body)):
            if self._stopped.is_set():
                break
            try:
                handler.wfile.write(body[index : index + 1])
            except OSError:  # nobody waits any longer
                break
            time.sleep(0.02)
        handler.close_connection = True
