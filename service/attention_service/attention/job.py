"""A job: a validated call with its cost, ready to be admitted and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from attention_service.attention.lanes import never

Shapes: TypeAlias = Mapping[str, tuple[tuple[int, ...], str]]
Fits: TypeAlias = Callable[[Shapes, int], bool]
# What a small call takes at most: some milliseconds, and memory that needs no budget.
SMALL_FLOPS = 2**28
SMALL_BYTES = 2**24


class Job(Protocol):
    """What every kind of call becomes before it is admitted.

    Attributes:
        peak_bytes: most memory that running it takes above the tensors that came in.
        answer_shapes: the tensors of its answer at most, name → (shape, dtype name).
        is_small: whether it takes no longer than a tile of a large one, and little memory.
    """

    @property
    def peak_bytes(self) -> int:
        """Bytes, above the tensors that came in."""
        ...

    @property
    def answer_shapes(self) -> Shapes:
        """Shapes and dtypes of the answer's tensors."""
        ...

    @property
    def is_small(self) -> bool:
        """Whether it may pass the large ones."""
        ...

    def smaller(self, fits: Fits) -> str:
        """How to ask for less, a sentence for a caller whose answer or memory is too large.

        Args:
            fits: whether an answer of these tensors and that peak memory would be taken.
        """
        ...

    def run(self, cancelled: Callable[[], bool] = never) -> dict[str, Any]:
        """Compute the fields of the answer; arrays in it are its tensors.

        Raises:
            ProblemError: what only the numbers could show, such as an overflow.
        """
        ...
