"""Batching: two services, one of which computes each call by itself, taking turns."""

from __future__ import annotations

import statistics
import time
from typing import Any

import uvloop

from attention_service.attention.engine import Engine
from attention_service.modules.loading import load
from attention_service.modules.text import TextModule
from attention_service.resources import cpu_count
from attention_wire.schemas import TextRequest
from benchmarks.load_calls import WORDS_OF_6, text
from benchmarks.load_generator import Outcome, Sender
from benchmarks.served import MODULES, served

MODULE = "all-MiniLM-L6-v2"
LONG = " ".join(["attention"] * 62)  # 64 tokens
# Of a long text the weights of one layer: those of all are a megabyte, which moves equally slowly
# for both.
_LAYER = 5
_CALLERS = 32
_ROUNDS = 15


def _bare_gain(tokens: int, seconds: float) -> float:
    """How many times the throughput of one text at a time sixteen have, without the service."""
    module = load(MODULES / MODULE, Engine("cpu", cpu_count()))
    if not isinstance(module, TextModule):
        raise TypeError(f"{MODULE} is no text module")
    content = LONG if tokens == 64 else WORDS_OF_6
    (of_one,) = module.tokens(TextRequest(text=content))
    layers = [*range(module.info.num_layers)] if tokens == 8 else [_LAYER]
    heads = [*range(module.info.num_heads)]
    gains = []
    for _ in range(_ROUNDS):
        rates = []
        for size in (1, 16):
            texts, start, count = [of_one] * size, time.perf_counter(), 0
            while time.perf_counter() - start < seconds / _ROUNDS / 2:
                module.run(texts, layers, [heads] * size, output=True)
                count += size
            rates.append(count / (time.perf_counter() - start))
        gains.append(rates[1] / rates[0])
    return statistics.median(gains)


def _turns(
    ports: dict[str, int], content: bytes, callers: int, seconds: float
) -> list[dict[str, tuple[float, float]]]:
    """Answers a second and the middle time in ms of each service, for each round of turns."""

    async def one(port: int) -> tuple[float, list[Outcome]]:
        sender = Sender(port)
        try:
            return await sender.closed_loop([content], callers, seconds)
        finally:
            await sender.close()

    rounds = []
    for _ in range(_ROUNDS):
        seen = {}
        for name, port in ports.items():
            rate, outcomes = uvloop.run(one(port))
            if any(outcome.status != 200 for outcome in outcomes):
                raise RuntimeError(f"the service answered {outcomes[0].status}")
            middle = statistics.median(outcome.seconds for outcome in outcomes)
            seen[name] = rate, 1e3 * middle
        rounds.append(seen)
    return rounds


def _ratio(rounds: list[dict[str, tuple[float, float]]], figure: int) -> float:
    """Of batched to alone, in the middle of the rounds: a slower minute is one for both."""
    return statistics.median(one["batched"][figure] / one["alone"][figure] for one in rounds)


def _middle(rounds: list[dict[str, tuple[float, float]]]) -> dict[str, list[float]]:
    return {
        name: [statistics.median(one[name][figure] for one in rounds) for figure in (0, 1)]
        for name in rounds[0]
    }


def batching(seconds: float) -> dict[str, Any]:
    """Measure, and say whether what was asked is met.

    Args:
        seconds: of each turn.
    """
    settings = {"max_wait": 60}  # nobody is refused here
    with served(**settings) as batched, served(batch_bytes=0, **settings) as alone:
        ports = {"batched": batched.port, "alone": alone.port}
        short = _turns(ports, text(WORDS_OF_6), _CALLERS, seconds)
        long = _turns(ports, text(LONG, layers=[_LAYER]), _CALLERS, seconds)
        single = _turns(ports, text(WORDS_OF_6), 1, seconds)
    bare = {tokens: _bare_gain(tokens, _ROUNDS * seconds) for tokens in (8, 64)}
    gains = {8: _ratio(short, 0), 64: _ratio(long, 0)}
    single_ratio = _ratio(single, 1)
    turns = {"8 tokens": short, "64 tokens": long, "one caller": single}
    return {
        "texts_a_second_and_p50_ms": {name: _middle(rounds) for name, rounds in turns.items()},
        "gain": gains,
        "bare_gain_of_16": bare,
        "p50_of_one_caller": single_ratio,
        "asked": {
            "8 tokens ≥ 1.6 × without": gains[8] >= 1.6,
            "64 tokens ≥ 0.8 of the bare gain": gains[64] >= 0.8 * bare[64],
            "p50 of one caller ≤ 1.05 × without": single_ratio <= 1.05,
        },
    }
