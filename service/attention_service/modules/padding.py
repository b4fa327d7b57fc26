"""Padding: which texts run together, each padded to the longest of its run."""

from __future__ import annotations

from collections.abc import Sequence

# A run costs about what so many tokens cost, so padding by less pays.
RUN_TOKENS = 16


def runs(lengths: Sequence[int], most_squares: float) -> list[list[int]]:
    """Cut texts into runs: those of a like length together, and no run too large.

    Args:
        lengths: tokens of each text.
        most_squares: bound of a run's padded scores of one head, texts × longest².

    Returns:
        The indices of each run's texts, the longest first; every text is in one run.
    """
    cut: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[cut[-1][0]] if cut else 0
        is_like = longest - lengths[index] < RUN_TOKENS
        if cut and is_like and (len(cut[-1]) + 1) * longest**2 <= most_squares:
            cut[-1].append(index)
        else:
            cut.append([index])
    return cut
