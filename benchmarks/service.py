"""What the service adds to a bare ONNX session, and what each wire form costs.

Every figure is a median of runs that take turns in one process, and the ratios to the bare
session are what counts: absolute times are this machine's. Writes
``benchmarks/results/service.json``. Run by ``make bench-service``.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from onnx import TensorProto, helper

from attention_service.api.app import create_app
from attention_service.attention.engine import Engine, Session
from attention_service.attention.graphs import TileSpec, build
from attention_service.modules.folder import ModuleFolder
from attention_service.modules.text_job import TextJob
from attention_service.settings import Settings
from attention_wire import bodies
from attention_wire.schemas import TextRequest
from benchmarks import machine

MODULES = Path(".modules")
SHAPES = {
    "tiny": (1, 2, 16, 16),
    "mid": (1, 8, 128, 64),
    "big": (1, 8, 512, 64),
    "long": (1, 8, 1024, 64),
}
# As JSON lists the weights of a longer text would be over the limit of an answer.
LONGEST_LIST_TEXT = 128
TEXTS = {16: "cat " * 14, 128: "cat " * 126, 512: "cat " * 510}
SECONDS_A_ROW = 4.0
Work = Callable[[], object]


def medians(works: dict[str, Work]) -> dict[str, float]:
    """The median milliseconds of each piece of work, run in turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    end = time.perf_counter() + SECONDS_A_ROW
    while time.perf_counter() < end:
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


@contextmanager
def running_service() -> Iterator[str]:
    """A service in a thread of this process."""
    config = uvicorn.Config(
        create_app(Settings(modules=MODULES, provider="cpu")), port=0, log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def tensors(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(np.float32) for name in ("query", "key", "value")
    }


def poster(http: httpx.Client, path: str, body: bodies.Body) -> Work:
    content, headers = bytes(body), {"Content-Type": body.media_type}

    def post() -> None:
        http.post(path, content=content, headers=headers).raise_for_status()

    return post


def tensor_rows(engine: Engine, http: httpx.Client) -> Iterator[tuple[str, dict[str, float]]]:
    model = build(TileSpec("float32", ("output", "weights")))
    session = loaded(engine, model.SerializeToString())
    operator = attention_operator(engine)
    for name, shape in SHAPES.items():
        call = tensors(shape)
        feeds = {n: t.reshape(-1, *t.shape[2:]) for n, t in call.items()}
        feeds["scale"] = np.array(0.125, np.float32)
        works: dict[str, Work] = {
            "bare session": lambda feeds=feeds: session.run(("output", "weights"), feeds),
            "ONNX Attention operator": lambda call=call: operator.run(("output", "weights"), call),
        }
        for form in ("list", "base64", bodies.SAFETENSORS):
            media_type = bodies.SAFETENSORS if form == bodies.SAFETENSORS else bodies.JSON
            tensor_format = "base64" if form == "base64" else "list"
            fields = {**call, "tensor_format": tensor_format}
            body = bodies.write(media_type, fields, "request", tensor_format)
            works[f"HTTP, {form}"] = poster(http, "/v1/attention", body)
        yield f"{name} {list(shape)}", medians(works)


def attention_operator(engine: Engine) -> Session:
    """The one big operator of opset 23, for comparison with the composed graph."""
    names = [["query", "key", "value"], ["output", "weights"]]
    inputs, outputs = (
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [f"{n}{i}" for i in range(4)])
         for n in group]
        for group in names
    )  # fmt: skip
    node = helper.make_node(
        "Attention", names[0], ["output", "", "", "weights"], qk_matmul_output_mode=3
    )
    model = helper.make_model(
        helper.make_graph([node], "attention", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=10,
    )
    return loaded(engine, model.SerializeToString())


def loaded(engine: Engine, model: bytes) -> Session:
    """A session in as many threads as the engine has."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        return engine.load(path)


def text_rows(engine: Engine, http: httpx.Client) -> Iterator[tuple[str, dict[str, float]]]:
    module = ModuleFolder(MODULES, engine).look().text(None)
    for length, text in TEXTS.items():
        tokens = TextJob(module, TextRequest.model_validate({"text": text}))
        works: dict[str, Work] = {"bare session": tokens.run}
        for form in (bodies.SAFETENSORS, bodies.JSON):
            if form == bodies.SAFETENSORS or length <= LONGEST_LIST_TEXT:
                body = bodies.write(form, {"text": text}, "request")
                works[f"HTTP, {form}"] = poster(http, "/v1/text/attention", body)
        yield f"text of {length} tokens", medians(works)


def main() -> None:
    engine = Engine("cpu", Settings().threads)
    packages = ("onnxruntime", "onnx", "numpy", "uvicorn", "orjson")
    head = machine.header(engine.threads, packages, {})
    rows: dict[str, Any] = {}
    with running_service() as url, httpx.Client(base_url=url, timeout=60) as http:
        for group in (tensor_rows, text_rows):
            for title, figures in group(engine, http):
                bare = figures["bare session"]
                rows[title] = {
                    name: {"ms": round(ms, 3), "ratio": round(ms / bare, 2)}
                    for name, ms in figures.items()
                }
                print(title)
                for name, figure in rows[title].items():
                    print(f"  {name:26}{figure['ms']:9.3f} ms {figure['ratio']:8.2f} ×")
    print(f"written to {machine.write('service', {**head, 'medians': rows})}")


if __name__ == "__main__":
    main()
