"""Calls of the wire's benchmarks as wrk sends them, in every form, and one turn of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from attention_wire import bodies
from benchmarks.peers import HEAD, MEDIA_TYPE

SHAPES = {"tiny": (1, 2, 16, 16), "mid": (1, 8, 128, 64), "big": (1, 8, 512, 64)}
_SCRIPT = """
local file = io.open(os.getenv("BODY"), "rb")
wrk.method, wrk.body = "POST", file:read("*a")
"""
_LENGTH = "Inference-Header-Content-Length"


class Form(NamedTuple):
    """A call as wrk sends it."""

    path: str
    headers: dict[str, str]
    body: bytes

    def written(self, folder: Path) -> tuple[Path, Path]:
        """Its body and its script, as files."""
        body, script = folder / "body", folder / "post.lua"
        body.write_bytes(self.body)
        lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in self.headers.items()]
        script.write_text("\n".join([_SCRIPT, f'wrk.path = "{self.path}"', *lines]))
        return body, script


def forms(shape: tuple[int, ...]) -> dict[str, Form]:
    """The forms of a call of so many batches, heads, rows and numbers of a head, by name."""
    rng = np.random.default_rng(0)
    fields = {n: rng.standard_normal(shape, np.float32) for n in ("query", "key", "value")}
    body = bytes(bodies.write(bodies.SAFETENSORS, fields, "request"))
    inputs = [
        {
            "name": name,
            "shape": shape,
            "datatype": "FP32",
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in fields.items()
    ]
    head = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    raw = b"".join(array.tobytes() for array in fields.values())
    lists = bytes(bodies.write(bodies.JSON, fields, "request"))
    return {
        "safetensors": Form("/v1/attention", {"Content-Type": bodies.SAFETENSORS}, body),
        "inference": Form("/v2/models/sdpa/infer", {_LENGTH: str(len(head))}, head + raw),
        "lists": Form("/v1/attention", {"Content-Type": bodies.JSON}, lists),
        "numbers": Form(
            "/predict", {"Content-Type": MEDIA_TYPE}, np.array(shape, HEAD).tobytes() + raw
        ),
    }


def turn(port: int, form: Form, callers: int, seconds: float) -> float:
    """Answers a second."""
    with tempfile.TemporaryDirectory() as folder:
        body, script = form.written(Path(folder))
        words = [
            "wrk",
            "-t1",
            f"-c{callers}",
            f"-d{seconds}s",
            "--timeout",
            "60s",
            "-s",
            str(script),
        ]
        done = subprocess.run(
            [*words, f"http://127.0.0.1:{port}"],
            env=os.environ | {"BODY": str(body)},
            capture_output=True,
            text=True,
            check=False,
        )
    rate = re.search(r"Requests/sec: +([\d.]+)", done.stdout)
    if rate is None or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise RuntimeError(done.stdout + done.stderr)
    return float(rate[1])


def need_wrk() -> None:
    """End, and say what to do, where the load generator is missing."""
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: on Debian and Ubuntu, apt-get install wrk")
