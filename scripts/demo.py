"""The demonstration: start the service, send it tensors and text, draw what it attends to.

Usage: python scripts/demo.py --modules FOLDER
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from attention_client import AttentionClient

SENTENCE = "The animal didn't cross the street because it was too tired."
START_SECONDS = 60


@contextmanager
def running_service(modules: Path) -> Iterator[str]:
    """A service of its own process on a free port; its address."""
    command = [sys.executable, "-m", "attention_service", "serve", "--port", "0"]
    command += ["--modules", str(modules), "--drain-delay", "0"]
    command += ["--text-module", "all-MiniLM-L6-v2"]  # beside which others may have been put
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield _address(process)
    finally:
        process.terminate()
        process.wait(30)


def _address(process: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + START_SECONDS
    log: list[str] = []
    for line in process.stderr or ():
        log.append(line)
        if found := re.search(r"running on (http://\S+)", line):
            return found[1]
        if time.monotonic() > deadline:
            break
    sys.exit("the service did not start:\n" + "".join(log))


def show_tensors(client: AttentionClient) -> None:
    """One small call, beside the formula in numpy."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((1, 2, 4, 8)).astype(np.float32) for _ in range(3))
    result = client.attention(query, key, value, is_causal=True)
    scores = query.astype(np.float64) @ key.swapaxes(-1, -2) / np.sqrt(8)
    scores = np.where(np.tri(4, dtype=np.bool_), scores, -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    print("Tensors: two heads, four queries, causal, float32.")
    print(f"  {result!r}")
    print("  weights of head 0:")
    print("  " + np.array2string(result.weights[0, 0], precision=3, prefix="  "))
    difference = np.abs(result.output - weights @ value).max()
    print(f"  largest difference from numpy in float64: {difference:.1e}\n")


def show_text(client: AttentionClient, layer: int, head: int) -> None:
    """The attention map of one head over a sentence."""
    text = client.text_attention(SENTENCE, layers=[layer], heads=[head])
    print(f"Text: layer {layer}, head {head} of {text.module}.")
    print(f"  {SENTENCE}")
    print("  Read the row of 'it': this head has found what the word stands for.\n")
    print(text.map(0, 0))


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modules", type=Path, required=True)
    modules = parser.parse_args().modules
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    with running_service(modules) as url, AttentionClient(url) as client:
        print(f"A service is running at {url} on {client.info().provider}.\n")
        show_tensors(client)
        show_text(client, layer=3, head=1)


if __name__ == "__main__":
    main()
