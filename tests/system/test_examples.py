"""The examples in other languages print what the service computes."""

from __future__ import annotations

import math
import re
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.system.harness import REPOSITORY, run

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


def check(printed: str) -> None:
    query, key = np.eye(2), np.array([[1, 0], [0, 1], [1, 1]])
    value = np.array([[1, 2], [3, 4], [5, 6]])
    scores = np.exp(query @ key.T / math.sqrt(2))
    weights = scores / scores.sum(-1, keepdims=True)

    blocks = re.match(r"output 2x2\n(.*)weights 2x3\n(.*)tokens (.*)\n(.*)\n", printed, re.DOTALL)
    assert blocks, printed
    output_lines, weight_lines, tokens, link = blocks.groups()
    np.testing.assert_allclose(numbers(output_lines), weights @ value, atol=1e-4)
    np.testing.assert_allclose(numbers(weight_lines), weights, atol=1e-4)
    assert tokens == "[CLS] the animal didn ' t cross the street because it was too tired . [SEP]"
    # What `it` stands for: this head of all-MiniLM-L6-v2 finds it.
    found = re.fullmatch(r"strongest link of layer 3, head 1: it -> animal (0\.\d{4})", link)
    assert found, link
    words = tokens.split()
    golden = np.load(REPOSITORY / "tests/goldens/text.npz")["animal.weights"][3, 1]
    strongest = golden[words.index("it"), words.index("animal")]
    assert float(found[1]) == pytest.approx(strongest, abs=1e-4)
    assert strongest == (golden * (1 - np.eye(len(words))))[1:-1, 1:-1].max()


def numbers(lines: str) -> np.ndarray:
    return np.array([[float(word) for word in line.split()] for line in lines.splitlines()])


def test_javascript(url: str) -> None:
    check(run(["node", "examples/javascript/attention.mjs", url]))


def test_javascript_takes_its_url_from_the_environment(url: str) -> None:
    check(run(["node", "examples/javascript/attention.mjs"], env={"ATTENTION_URL": url}))


def test_javascript_says_in_a_line_that_nobody_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        ended = subprocess.run(
            ["node", "examples/javascript/attention.mjs", url],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 1
    assert re.fullmatch(rf"{url}: .*ECONNREFUSED.*; is it running\?\n", ended.stderr)


def test_go(url: str, tmp_path: Path) -> None:
    # The example has no dependencies; without a proxy Go could not fetch one unseen.
    env = {"GOCACHE": str(tmp_path), "GOFLAGS": "-mod=mod", "GOPROXY": "off"}
    check(run(["go", "run", ".", url], env=env, cwd=REPOSITORY / "examples/go", timeout=180))
