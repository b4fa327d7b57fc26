"""What the client's calls over tensors give back, and what every call does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from attention_client import _shown, plots
from attention_client.errors import NotReturnedError
from attention_wire.answers import PlanInfo
from attention_wire.tensors import Array, dtype_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TopK:
    """The k largest weights of each row; H is 1 after a reduction.

    Attributes:
        indices: [B, H, L, k] int32, the keys by falling weight; for rank 2 [L, k]; of a text
            [layers, heads, L, k].
        values: as indices, their weights, in the query's dtype.
        rest: [B, H, L] or [L], what the other keys have: the row's sum less the values; float32,
            or float64 for float64.
    """

    indices: Array
    values: Array
    rest: Array

    def __repr__(self) -> str:
        return f"TopK({', '.join(shapes(vars(self)))})"

    def _repr_html_(self) -> str:
        return _shown.top_k_html(self, repr(self))


@dataclass(frozen=True, eq=False, kw_only=True)
class Returned:
    """What every compute call gives back.

    Arrays are read-only views of the answer: ``array.copy()`` can be written to, and
    ``torch.tensor(array)`` takes a copy, where ``torch.from_numpy`` would warn.

    Attributes:
        arrays: name → array, of what was asked for.
        module: the module that answered; None for plain attention.
        provider: the execution provider that ran the call.
        request_id: what the service's logs call this request.
        server_timing: phase → milliseconds that the service spent in it.
    """

    arrays: Mapping[str, Array]
    module: str | None
    provider: str
    request_id: str | None
    server_timing: Mapping[str, float] = field(default_factory=dict)

    @property
    def output(self) -> Array:
        """The output of attention, after any output projection.

        Raises:
            NotReturnedError: the call did not ask for it.
        """
        return self._array("output")

    @property
    def weights(self) -> Array:
        """The attention weights, softmax of the scores: all, or the selection asked for.

        Raises:
            NotReturnedError: the call did not ask for them, or for their top k only.
        """
        if "weights.indices" in self.arrays:
            message = "weights: the call asked for the top k of them only; use .top_k"
            raise NotReturnedError(message, name="weights", obj=self)
        return self._array("weights")

    @property
    def top_k(self) -> TopK:
        """The k largest weights of each row.

        Raises:
            NotReturnedError: the call did not ask for them.

        Example:
            >>> keys = [[0.0], [2.0], [1.0]]
            >>> asked = {"weights": {"top_k": 2}}
            >>> result = client.attention([[1.0]], keys, keys, return_=asked)
            >>> result.top_k
            TopK(indices=int32[1, 2], values=float32[1, 2], rest=float32[1])
            >>> result.top_k.indices
            array([[1, 2]], dtype=int32)
        """
        try:
            parts = {name: self.arrays[f"weights.{name}"] for name in ("indices", "values", "rest")}
        except KeyError:
            raise self._not_returned("top_k", "{'weights': {'top_k': 8}}") from None
        return TopK(**parts)

    def _array(self, name: str, cure: str | None = None) -> Array:
        try:
            return self.arrays[name]
        except KeyError:
            raise self._not_returned(name, cure or f"{{{name!r}: True}}") from None

    def _not_returned(self, name: str, cure: str) -> NotReturnedError:
        have = ", ".join(self.arrays) or "none"
        reason = f"not asked for; call with return_={cure}"
        if self.module is not None and name not in {"output", "weights"}:
            reason = "modules give output and weights only"
        return NotReturnedError(f"{name}: {reason} (there: {have})", name=name, obj=self)

    def _summary(self) -> list[str]:
        """The parts of a repr: shapes rather than numbers."""
        parts = shapes(self.arrays)
        known = {"module": self.module, "provider": self.provider, "request_id": self.request_id}
        return parts + [f"{name}={value!r}" for name, value in known.items() if value is not None]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class AttentionResult(Returned):
    """Outputs and attention weights of a call with tensors.

    ``output`` has the query's rank and dtype; ``weights`` is [B, Hq, L, T], or [L, T] for a
    query of rank 2, or the part of it that was asked for. Each row sums to 1, less what a sink
    takes, or to 0 where everything was masked. Arrays are read-only views of the answer:
    ``array.copy()`` can be written to, and ``torch.tensor(array)`` takes a copy, where
    ``torch.from_numpy`` would warn.

    Example:
        >>> result = client.attention([[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0], [2.0]])
        >>> result
        AttentionResult(output=float32[1, 1], weights=float32[1, 2], provider=...)
        >>> result.weights.shape
        (1, 2)
        >>> sorted(result.server_timing)
        ['compute', 'parse', 'queue', 'serialize']
    """

    _plan: PlanInfo | None = None

    @property
    def lse(self) -> Array:
        """Each row's ln Σ exp(score), [B, Hq, L] or [L]; −∞ where everything was masked.

        Raises:
            NotReturnedError: the call did not ask for it.
        """
        return self._array("lse")

    @property
    def entropy(self) -> Array:
        """Each row's −Σ w ln w over the keys, in nats, [B, Hq, L] or [L].

        Raises:
            NotReturnedError: the call did not ask for it.
        """
        return self._array("entropy")

    @property
    def scores(self) -> Array:
        """The scores before the softmax, in the shape of the weights.

        Raises:
            NotReturnedError: the call did not ask for them.
        """
        return self._array("scores", "{'scores': 'raw'}")

    @property
    def present_key(self) -> Array:
        """The keys of the past and of this call, [B, Hkv, T, D]: the next call's past.

        Raises:
            NotReturnedError: the call had no past, and did not ask for them.
        """
        return self._array("present_key", "{'present': True}")

    @property
    def present_value(self) -> Array:
        """The values of the past and of this call, [B, Hkv, T, Dv].

        Raises:
            NotReturnedError: the call had no past, and did not ask for them.
        """
        return self._array("present_value", "{'present': True}")

    @property
    def plan(self) -> PlanInfo:
        """How the call was run, and what that was predicted to cost.

        Raises:
            NotReturnedError: the call did not ask for it.
        """
        if self._plan is None:
            raise self._not_returned("plan", "{'plan': True}")
        return self._plan

    def plot(
        self, head: int | None = None, *, batch: int | None = None, ax: Axes | None = None
    ) -> Axes:
        """The weights of one head as a heat map: rows are queries, columns are keys.

        Args:
            head: which of the returned heads, from 0; the mean of all by default.
            batch: which element of the batch; the mean of all by default.
            ax: axes of matplotlib to draw on; those of a new figure by default.

        Returns:
            The axes that were drawn on.

        Raises:
            ImportError: matplotlib is not installed; it comes with the extra ``plot``.
            IndexError: not so many were returned.
            NotReturnedError: the call asked for no weights.

        Example:
            >>> axes = client.attention([[1.0]], [[1.0], [0.0]], [[1.0], [2.0]]).plot()
            >>> axes.get_xlabel(), axes.get_ylabel()
            ('key', 'query')
        """
        weights, title = _shown.attention_head(self.weights, batch, head)
        rows, keys = ([str(number) for number in range(size)] for size in weights.shape)
        words = np.ones(len(keys), bool)
        return plots.heat_map(weights, rows, keys, words=words, title=title, ax=ax)

    def _repr_html_(self) -> str:
        return _shown.attention_html(self, self._plan)

    def __repr__(self) -> str:
        return f"AttentionResult({', '.join(self._summary())})"


def shapes(arrays: Mapping[str, Array]) -> list[str]:
    """Arrays as a repr shows them."""
    return [f"{name}={dtype_name(array)}{list(array.shape)}" for name, array in arrays.items()]
