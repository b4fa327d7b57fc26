"""A decoder over its longest text: what the service takes above the loaded module, and how long."""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from attention_service.modules.manifest import MANIFEST_FILE, Manifest
from attention_wire import bodies
from benchmarks.served import Served, served
from benchmarks.text_cases import DECODER, FOLDERS, exported, text_of

TOKENS = 8192
HEADS = [0, 5]
ASKED_MB = 2000
_WANTED: dict[str, Any] = {"output": False, "weights": {"top_k": 8}, "entropy": True}
_SAMPLE_SECONDS = 0.02
_TIMEOUT_SECONDS = 3600
METHOD = {
    "call": f"heads {HEADS} of all layers, return {_WANTED}, safetensors",
    "loaded": "resident memory of the service's process once it is ready",
    "before": "the same after a small call of this kind; growth is what the peak is above it",
    "peak": "the larger of VmHWM, set back before the call, and of samples every 20 ms",
    "eager": "calculated: the weights that output_attentions=True keeps, of all layers and heads",
}


class _Peak:
    """The most resident memory of another process while this is entered."""

    def __init__(self, service: Served) -> None:
        self.bytes = 0
        self._service = service
        self._proc = Path(f"/proc/{service.process.pid}")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> _Peak:
        try:
            (self._proc / "clear_refs").write_text("5")  # sets VmHWM back to VmRSS
            self._has_mark = True
        except OSError:
            self._has_mark = False
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._has_mark:
            self.bytes = max(self.bytes, self._mark())

    def _mark(self) -> int:
        for line in (self._proc / "status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"{self._proc}/status has no VmHWM")

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self.bytes = max(self.bytes, self._service.resident_bytes())


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The row of the long text."""
    tokens: int = arguments.tokens
    with (
        exported(DECODER) as modules,
        served(modules=modules, threads=arguments.threads, max_timeout=_TIMEOUT_SECONDS) as service,
        httpx.Client(base_url=service.url, timeout=_TIMEOUT_SECONDS) as client,
    ):
        manifest = Manifest.model_validate_json((modules / DECODER / MANIFEST_FILE).read_bytes())
        module = sum(file.stat().st_size for file in (modules / DECODER).iterdir())
        loaded = service.resident_bytes()
        _post(client, 16)
        before = service.resident_bytes()
        with _Peak(service) as peak:
            start = time.perf_counter()
            content = _post(client, tokens)
            seconds = time.perf_counter() - start
    _check(content, manifest, tokens)
    eager = manifest.num_layers * manifest.num_heads * tokens**2 * 4
    growth = (peak.bytes - before) / 1e6
    return {
        "case": f"{DECODER}, {tokens} tokens: top-8 of heads {HEADS}, entropy of all",
        "asked_mb": ASKED_MB,
        "growth_mb": round(growth, 1),
        "met": growth < ASKED_MB,
        "module_files_mb": round(module / 1e6, 1),
        "loaded_mb": round(loaded / 1e6, 1),
        "before_mb": round(before / 1e6, 1),
        "peak_mb": round(peak.bytes / 1e6, 1),
        "seconds": round(seconds, 2),
        "answer_mb": round(len(content) / 1e6, 1),
        "eager_weights_mb_calculated": round(eager / 1e6),
    }


def print_row(row: dict[str, Any]) -> None:
    """What was asked and seen."""
    print(
        f"\n{row['case']}: {row['growth_mb']:.0f} MB above the loaded module, asked below "
        f"{row['asked_mb']}, {'yes' if row['met'] else 'NO'}; {row['seconds']:.1f} s; eager "
        f"transformers would keep {row['eager_weights_mb_calculated']} MB of weights (calculated)"
    )


def _post(client: httpx.Client, tokens: int) -> bytes:
    fields = {"text": text_of(FOLDERS[DECODER], tokens), "heads": HEADS, "return": _WANTED}
    body = bodies.write(bodies.SAFETENSORS, fields, "request")
    headers = {"Content-Type": body.media_type}
    answer = client.post("/v1/text/attention", content=bytes(body), headers=headers)
    if answer.status_code != httpx.codes.OK:
        raise RuntimeError(f"{tokens} tokens: {answer.status_code}: {answer.text[:500]}")
    return answer.content


def _check(content: bytes, manifest: Manifest, tokens: int) -> None:
    """Refuse to report a call that did not answer what was asked for."""
    (result,) = bodies.read(bodies.SAFETENSORS, content, "response").values["results"]
    rows = (manifest.num_layers, len(HEADS), tokens)
    given = {
        "indices": result["weights"]["indices"].shape,
        "values": result["weights"]["values"].shape,
        "entropy": result["entropy"].shape,
    }
    expected = {
        "indices": (*rows, 8),
        "values": (*rows, 8),
        "entropy": (manifest.num_layers, manifest.num_heads, tokens),
    }
    if given != expected:
        raise RuntimeError(f"the answer has the shapes {given}, not {expected}")
