"""A whole call in JSON lists against the service that one would write first, in turns."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import orjson

from benchmarks.served import free_port, served
from benchmarks.text_cases import ENCODER, FOLDERS, ROOT, exported, text_of
from benchmarks.turns import turn

TOKENS = 128
ASKED = 6.0
# Ways to write the endpoint, from what most examples have to the fastest.
WAYS = {
    "plain": "no type of the answer",
    "model": "a pydantic model of the answer",
    "dict": "-> dict[str, Any]",
}
_TURN_SECONDS = 2.0
_MOST_CALLS = 100
_START_SECONDS = 120.0
METHOD = {
    "call": f"a text of {TOKENS} tokens; tokens, output and all weights as JSON lists",
    "theirs": "FastAPI, transformers eager, tolist(), uvicorn, one worker; the endpoint written in "
    f"three ways: {WAYS}",
    "tokenization": "inside, on both sides",
    "timed": "from request to the last byte of the answer; a turn keeps its connection",
    "figure": "median of the ratios of the turns' medians, round by round: theirs / ours",
    "turn_seconds": _TURN_SECONDS,
    "calls_left_out_of_each_turn": 1,
    "rounds_left_out": 1,
}


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each way to write the other service."""
    body = json.dumps({"text": text_of(FOLDERS[ENCODER], TOKENS)}).encode()
    with ExitStack() as stack:
        modules = stack.enter_context(exported(ENCODER))
        service = stack.enter_context(served(modules=modules, threads=arguments.threads))
        port = stack.enter_context(_by_hand(arguments))
        paths = {"ours": (service.port, "/v1/text/attention")}
        paths |= {way: (port, f"/{way}") for way in WAYS}
        answers = {}
        for who, (at, path) in paths.items():
            with _posting(at, path, body) as post:
                answers[who] = post()
        times: dict[str, list[float]] = {who: [] for who in paths}
        for number in range(arguments.rounds + 1):
            for who, (at, path) in paths.items():
                time.sleep(arguments.pause)
                # A connection for each turn: servers close those that wait for the others'.
                with _posting(at, path, body) as post:
                    taken = turn(post, _TURN_SECONDS, _MOST_CALLS)
                if number:
                    times[who].append(median(taken))
    return [_row(way, times, answers) for way in WAYS]


def _row(
    way: str, times: Mapping[str, list[float]], answers: Mapping[str, bytes]
) -> dict[str, Any]:
    ratios = [theirs / ours for theirs, ours in zip(times[way], times["ours"], strict=True)]
    (mine,), found = orjson.loads(answers["ours"])["results"], orjson.loads(answers[way])
    return {
        "case": f"whole call, {TOKENS} tokens, lists",
        "against": WAYS[way],
        "asked": ASKED,
        "seen": round(median(ratios), 2),
        "met": median(ratios) >= ASKED,
        "ratios": [round(ratio, 2) for ratio in ratios],
        "ms": round(median(times["ours"]), 2),
        "their_ms": round(median(times[way]), 2),
        "answer_mb": round(len(answers["ours"]) / 1e6, 2),
        "their_answer_mb": round(len(answers[way]) / 1e6, 2),
        "largest_difference": max(
            _apart(mine[part], found[part]) for part in ("output", "weights")
        ),
    }


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """The table of what was asked and seen."""
    print(f"\n{rows[0]['case'] + ', against':44}{'asked':>7}{'seen':>7} {'least to most':>15}"
          f"{'met':>5}{'ms':>9}{'theirs':>9}{'MB':>7}{'theirs':>8}")  # fmt: skip
    for row in rows:
        span = f"{min(row['ratios']):.1f} to {max(row['ratios']):.1f}"
        print(
            f"{row['against']:44}{row['asked']:7.1f}{row['seen']:7.1f} {span:>15}"
            f"{'yes' if row['met'] else 'NO':>5}{row['ms']:9.1f}{row['their_ms']:9.1f}"
            f"{row['answer_mb']:7.1f}{row['their_answer_mb']:8.1f}"
        )


def _apart(mine: Any, theirs: Any) -> float:
    return float(np.abs(np.array(mine, np.float32) - np.array(theirs, np.float32)).max())


@contextmanager
def _posting(port: int, path: str, body: bytes) -> Iterator[Callable[[], bytes]]:
    """Posts a body again and again over one connection; gives the answer's bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        yield partial(_post, connection, path, body)
    finally:
        connection.close()


def _post(connection: http.client.HTTPConnection, path: str, body: bytes) -> bytes:
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != http.client.OK:
        raise RuntimeError(f"{path} answered {answer.status}: {content[:500]!r}")
    return content


@contextmanager
def _by_hand(arguments: argparse.Namespace) -> Iterator[int]:
    """The other service, on a free port, once it answers."""
    port = free_port()
    counts = {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    words = ["-m", "benchmarks.text_fastapi", str(port), str(FOLDERS[ENCODER])]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [str(arguments.python), *words],
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env={**os.environ, **counts},
        )
        try:
            if not _answers(port, process):
                log.seek(0)
                written = str(log.read(), "utf-8", "replace")
                raise RuntimeError(f"the service by hand did not start:\n{written}")
            yield port
        finally:
            process.terminate()
            process.wait(30)


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Whether a server comes to answer; false where it ended or takes too long."""
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5)
        except urllib.error.URLError:
            time.sleep(0.05)
        else:
            return True
    return False
