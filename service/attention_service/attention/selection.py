"""What a call wants, resolved: which of its results, and which part of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attention_service.attention.shapes import Sizes
from attention_wire.problems import Loc, ProblemError
from attention_wire.schemas import Range, Return, WeightsSelection

ScoresMode = Literal["raw", "softcap", "masked"]


@dataclass(frozen=True, slots=True)
class Wants:
    """The results that a call asks for.

    Attributes:
        output, lse, entropy, present, plan: whether each is wanted.
        weights: whether the weights are, in whole or in part.
        scores: which scores, or None.
        heads: the query heads of weights and scores, in the order asked.
        rows: the query rows of weights and scores, in the order asked.
        reduce: how the weights of the heads become one, or None.
        top_k: how many of each row's weights, at most T; None for all.
    """

    output: bool
    weights: bool
    lse: bool
    entropy: bool
    scores: ScoresMode | None
    present: bool
    plan: bool
    heads: tuple[int, ...]
    rows: range | tuple[int, ...]
    reduce: Literal["mean", "max"] | None = None
    top_k: int | None = None

    @classmethod
    def of(cls, asked: Return, sizes: Sizes, *, has_past: bool) -> Wants:
        """Resolve a request's ``return``.

        Raises:
            ProblemError: a head or a row is out of range.
        """
        selection = asked.weights if isinstance(asked.weights, WeightsSelection) else None
        chosen = selection or WeightsSelection()
        heads = _in_range("heads", chosen.heads, sizes.q_num_heads, "head")
        queries = chosen.queries
        if isinstance(queries, Range):
            _in_range("queries", [queries.stop - 1], sizes.q_length, "row")
            rows: range | tuple[int, ...] = range(queries.start, queries.stop)
        else:
            rows = _in_range("queries", queries, sizes.q_length, "row")
        return cls(
            output=asked.output,
            weights=selection is not None or bool(asked.weights),
            lse=asked.lse,
            entropy=asked.entropy,
            scores=asked.scores or None,
            present=asked.present or has_past,
            plan=asked.plan,
            heads=tuple(heads),
            rows=rows,
            reduce=chosen.reduce,
            top_k=None if chosen.top_k is None else min(chosen.top_k, sizes.kv_length),
        )


def _in_range(
    name: str, indices: list[int] | None, count: int, what: str
) -> range | tuple[int, ...]:
    if indices is None:
        return range(count)
    if max(indices) >= count:
        raise no_such(("return", "weights", name), what, max(indices), "the query", count)
    return tuple(indices)


def no_such(loc: str | Loc, what: str, number: int, owner: str, count: int) -> ProblemError:
    """The problem of an index that is past the last.

    Args:
        loc: the field.
        what: it counts, one of them.
        number: that was given.
        owner: what has them.
        count: how many that has.
    """
    there_are = f"{count}, 0 to {count - 1}" if count > 1 else "0 alone" if count else "none"
    return ProblemError.of_field(loc, f"there is no {what} {number}: {owner} has {there_are}")
