"""Which texts run together."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from attention_service.modules.padding import RUN_TOKENS, runs

LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=60)


@settings(deadline=None, derandomize=True, database=None)
@given(LENGTHS, st.integers(1, 400_000))
def test_every_text_is_in_one_run_that_pads_it_little(lengths: list[int], most: int) -> None:
    cut = runs(lengths, most)
    assert sorted(index for run in cut for index in run) == list(range(len(lengths)))
    for run in cut:
        of_run = [lengths[index] for index in run]
        assert of_run[0] == max(of_run)
        assert of_run[0] - min(of_run) < RUN_TOKENS
        assert len(run) == 1 or len(run) * of_run[0] ** 2 <= most


def test_what_is_alike_runs_together() -> None:
    assert runs([8, 70, 9, 64, 8], 1e9) == [[1, 3], [2, 0, 4]]
    assert runs([10] * 6, 200) == [[0, 1], [2, 3], [4, 5]]
    assert runs([10, 10], 99) == [[0], [1]]
