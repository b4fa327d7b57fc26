"""A job: a validated call with its cost, ready to be admitted and run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, Self, TypeAlias

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

    @property
    def module(self) -> str:
        """The module that computes it, or ``sdpa``."""
        return "sdpa"

    @property
    def count(self) -> int:
        """How many calls it counts as in a queue."""
        return 1

    @property
    def batch_key(self) -> Hashable | None:
        """Jobs of an equal key can be computed together; None for one that is computed alone."""
        return None

    @property
    def batch_bytes(self) -> int:
        """Scores, padded, that it adds to a computation with others."""
        return 0

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels that are planned; none where a graph is a module's own."""
        return ()

    @property
    def score_bytes(self) -> int:
        """Of ``batch_bytes``, what is no padding."""
        return self.batch_bytes

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

    @classmethod
    def run_together(
        cls, jobs: Sequence[Self], cancelled: Callable[[], bool] = never
    ) -> list[dict[str, Any]]:
        """Compute the answers of jobs that have one ``batch_key``, in their order.

        They agree with those of :meth:`run` to the rounding of the kernels.

        Raises:
            ProblemError: of one of them, any; run each by itself.
        """
        raise NotImplementedError
