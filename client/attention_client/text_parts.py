"""The parts of a text's result: what is asked of attention beside its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from attention_client.errors import NotReturnedError
from attention_client.results import Returned, shapes
from attention_wire.answers import HeadClasses, Statistics, Words
from attention_wire.tensors import Array

Unit = Literal["token", "word"]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class LayerInputs:
    """What the attention of one layer is computed of, ready for a call with tensors.

    Attributes:
        layer: the layer's number in the model.
        query: [1, Hq, L, D], positions and norms in it.
        key: [1, Hkv, L, D].
        value: [1, Hkv, L, Dv].
        scale: factor on the scores.
        is_causal: whether no token sees those after it.
        left_window_size: keys before a token that it sees; −1: all.
        right_window_size: keys after a token that it sees; −1: all.
    """

    layer: int
    query: Array
    key: Array
    value: Array
    scale: float
    is_causal: bool
    left_window_size: int
    right_window_size: int

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``client.attention``, to be changed or passed on as they are.

        Example:
            >>> asked = {"inputs": True, "weights": True}
            >>> result = client.text_attention("The cat sat.", layers=[2], return_=asked)
            >>> again = client.attention(**result.inputs[0].arguments())
            >>> bool(abs(again.weights[0] - result.weights[0]).max() < 1e-5)
            True
        """
        return {name: value for name, value in vars(self).items() if name != "layer"}

    def __repr__(self) -> str:
        arrays = {name: vars(self)[name] for name in ("query", "key", "value")}
        return f"LayerInputs({', '.join([f'layer={self.layer}', *shapes(arrays)])})"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TextParts(Returned):
    """What was asked of the attention in a text: of U tokens, or words."""

    _words: Words | None = None
    _statistics: Statistics | None = None
    _classes: HeadClasses | None = None
    _inputs: tuple[LayerInputs, ...] | None = None

    @property
    def unit(self) -> Unit:
        """What rows and columns are: tokens or words."""
        return "token" if self._words is None else "word"

    @property
    def entropy(self) -> Array:
        """Each row's −Σ w ln w over the keys, in nats, [layers, H, U], of all H heads.

        Raises:
            NotReturnedError: the call did not ask for it.
        """
        return self._array("entropy")

    @property
    def statistics(self) -> Statistics:
        """Numbers for each layer and all heads, [layers, H] each.

        Raises:
            NotReturnedError: the call did not ask for them.

        Example:
            >>> result = client.text_attention("The cat sat.", return_={"statistics": True})
            >>> result.statistics.distance.shape
            (6, 12)
        """
        if self._statistics is None:
            raise self._not_returned("statistics", "{'statistics': True}")
        return self._statistics

    @property
    def classes(self) -> HeadClasses:
        """How far each head does what known kinds do, [layers, H] each, and its label.

        Raises:
            NotReturnedError: the call did not ask for them.

        Example:
            >>> result = client.text_attention("The cat sat.", return_={"classes": True})
            >>> result.classes.previous.shape, len(result.classes.labels[0])
            ((6, 12), 12)
        """
        if self._classes is None:
            raise self._not_returned("classes", "{'classes': True}")
        return self._classes

    @property
    def rollout(self) -> Array:
        """Attention rollout up to each layer, [layers, U, U] (Abnar and Zuidema 2020).

        Raises:
            NotReturnedError: the call did not ask for it.
        """
        return self._array("rollout")

    @property
    def flow(self) -> Array:
        """Attention flow up to each layer, [layers, U, U] (Abnar and Zuidema 2020).

        Raises:
            NotReturnedError: the call did not ask for it.
        """
        return self._array("flow")

    @property
    def blocks(self) -> Array:
        """Mean mass of the rows of one text of a pair on each, [layers, H, 2, 2].

        Raises:
            NotReturnedError: the call did not ask for it.
        """
        return self._array("blocks")

    @property
    def inputs(self) -> tuple[LayerInputs, ...]:
        """What the attention of each layer asked for is computed of.

        Raises:
            NotReturnedError: the call did not ask for them.
        """
        if self._inputs is None:
            raise self._not_returned("inputs", "{'inputs': True}")
        return self._inputs

    @property
    def change(self) -> Array:
        """The output without the ablated heads less the whole one, [L, E].

        Raises:
            NotReturnedError: the call ablated no head, or did not ask for the output.
        """
        if "change" not in self.arrays:
            message = (
                "change: the call ablated no head, or did not ask for the output; call with "
                "ablate=[(layer, head), ...]"
            )
            raise NotReturnedError(message, name="change", obj=self)
        return self.arrays["change"]

    def _not_returned(self, name: str, cure: str) -> NotReturnedError:
        have = ", ".join([*self.arrays, *self._others()]) or "none"
        unit = "unit='word', " if self.unit == "word" else ""
        message = f"{name}: not asked for; call with {unit}return_={cure} (there: {have})"
        return NotReturnedError(message, name=name, obj=self)

    def _others(self) -> list[str]:
        """The names of what was returned and is no array."""
        others = {
            "statistics": self._statistics, "classes": self._classes, "inputs": self._inputs
        }  # fmt: skip
        return [name for name, part in others.items() if part is not None]
