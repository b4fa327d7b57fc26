"""The client is light: nothing of the server comes with it."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {
    "attention_service", "fastapi", "onnx", "onnxruntime", "opentelemetry", "starlette", "uvicorn",
}  # fmt: skip


def modules_loaded_by(code: str) -> set[str]:
    code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_client_loads_nothing_of_the_server() -> None:
    loaded = modules_loaded_by("import attention_client")
    assert {"attention_client", "attention_wire", "httpx", "numpy"} <= loaded
    assert not loaded & HEAVY


def test_the_check_would_see_it() -> None:
    assert "starlette" in modules_loaded_by("import attention_client, starlette")
