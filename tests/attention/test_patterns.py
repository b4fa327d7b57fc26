"""The biases that calls share: made once, and bounded."""

from __future__ import annotations

from collections.abc import Callable
from threading import Barrier, Thread

import numpy as np
import pytest

from attention_service.attention.engine import Engine
from attention_service.attention.patterns import Pattern, Patterns
from attention_service.attention.sdpa import AttentionJob
from attention_wire.schemas import AttentionRequest
from tests import reference


def maker(made: list[str], name: str, size: int = 1000) -> Callable[[], Pattern]:
    def make() -> Pattern:
        made.append(name)
        return Pattern(np.zeros((1, 1, size), np.float32), None)

    return make


def test_a_pattern_is_made_once() -> None:
    made: list[str] = []
    patterns = Patterns(2**20)
    first = patterns.get("a", maker(made, "a"))
    assert patterns.get("a", maker(made, "again")) is first
    assert made == ["a"]


def test_those_used_last_are_kept() -> None:
    made: list[str] = []
    patterns = Patterns(3 * 4000 + 3 * 4096)
    for name in "abcad":  # d takes the place of b
        patterns.get(name, maker(made, name))
    for name in "acdb":
        patterns.get(name, maker(made, name))
    assert "".join(made) == "abcdb"


def test_a_pattern_past_the_bound_is_not_kept_and_drives_nothing_out() -> None:
    made: list[str] = []
    patterns = Patterns(20_000)
    patterns.get("small", maker(made, "small"))
    for _ in range(2):
        assert patterns.get("large", maker(made, "large", 10_000)).bias is not None
    patterns.get("small", maker(made, "small"))
    assert made == ["small", "large", "large"]


def test_patterns_without_a_bias_are_bounded_too() -> None:
    made: list[int] = []
    patterns = Patterns(2**16)
    for number in [*range(100), 0]:
        patterns.get(number, lambda number=number: made.append(number) or Pattern(None, None))
    assert made == [*range(100), 0]


def test_threads_that_want_the_same_wait_for_the_first() -> None:
    made: list[str] = []
    patterns, together = Patterns(2**20), Barrier(8)
    found: list[Pattern] = []

    def want() -> None:
        together.wait()
        found.append(patterns.get("a", maker(made, "a")))

    threads = [Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["a"]
    assert all(pattern is found[0] for pattern in found)


def test_one_that_failed_is_made_by_the_next() -> None:
    patterns = Patterns(2**20)

    def fail() -> Pattern:
        raise MemoryError

    with pytest.raises(MemoryError):
        patterns.get("a", fail)
    assert patterns.get("a", maker([], "a")).bias is not None


def test_calls_that_need_another_part_of_the_edge_do_not_share_it(engine: Engine) -> None:
    rng = np.random.default_rng(0)
    names = ("query", "key", "value")
    tensors = {name: rng.standard_normal((1, 2, 300, 8), np.float32) for name in names}
    expected = reference.attention(**tensors, is_causal=True)
    for asked in ({"weights": False}, {"scores": "masked"}, {"scores": "raw"}, {"lse": True}):
        fields = {**tensors, "is_causal": True, "return": asked}
        answer = AttentionJob.of(AttentionRequest.model_validate(fields), engine).run()
        np.testing.assert_allclose(answer["output"], expected.output, atol=1e-6)


# In pieces of 128 keys: whole ones, ones that end past the rows' keys, and a last that does not.
@pytest.mark.parametrize("offset", [0, 1, 250])
@pytest.mark.parametrize("keys", [384, 520])
def test_a_bias_goes_to_the_last_pieces_of_the_scores_alone(
    engine: Engine, offset: int, keys: int
) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "query": rng.standard_normal((2, 4, keys - offset, 8), np.float32),
        "key": rng.standard_normal((2, 2, keys, 8), np.float32),
        "value": rng.standard_normal((2, 2, keys, 8), np.float32),
    }
    options = {"is_causal": True, "query_offset": offset, "softcap": 3.0, "sinks": np.ones(4)}
    expected = reference.attention(**tensors, **options)
    fields = {**tensors, **options, "return": {"lse": True, "entropy": True}}
    answer = AttentionJob.of(AttentionRequest.model_validate(fields), engine).run()
    np.testing.assert_allclose(answer["output"], expected.output, atol=1e-6)
    np.testing.assert_allclose(answer["weights"], expected.weights, atol=1e-6)
    np.testing.assert_allclose(answer["lse"], expected.lse, atol=1e-5)


def test_row_blocks_of_a_causal_call_share_one_triangle() -> None:
    engine = Engine("cpu", 1)
    rng = np.random.default_rng(0)
    tensor = rng.standard_normal((1, 1, 1024, 8), np.float32)
    tensors = dict.fromkeys(("query", "key", "value"), tensor)
    fields = {**tensors, "is_causal": True, "return": {"weights": False}}
    AttentionJob.of(AttentionRequest.model_validate(fields), engine).run()
    # That of the first block, which has no key before it, and that of all others.
    assert len(engine.patterns) == 2
