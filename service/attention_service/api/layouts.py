"""Layouts: where the numbers of a small call stand in its body, and those of its answer in it.

All else in the two is the same for all calls of a form, and is found out on the first of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from attention_service.attention.values import Doubtful
from attention_wire import number_lists
from attention_wire.bodies import Body
from attention_wire.tensors import Array, Buffer, as_bytes

_FLOAT_BYTES = 4


class Numbers(Protocol):
    """The numbers of bodies that differ in nothing else."""

    @property
    def parts(self) -> Mapping[str, slice]:
        """Where among them those of each tensor stand."""
        ...

    def read(self, body: Buffer, /) -> Array:
        """They, float32, in one array.

        Raises:
            Doubtful: the body is none of these after all, or needs a closer look.
        """
        ...


class Layout(NamedTuple):
    """Where numbers stand in a request and in its answer.

    Attributes:
        numbers: of the request.
        write: the answer to it, of the arrays by name, row-major, of any shape.
    """

    numbers: Numbers
    write: Callable[[Mapping[str, Array]], Body]


@dataclass(frozen=True, slots=True)
class BinaryNumbers:
    """Numbers whose bytes stand one after the other.

    Attributes:
        start: of them in the body.
        count: of them.
        parts: as Numbers have it.
    """

    start: int
    count: int
    parts: Mapping[str, slice]

    @classmethod
    def of(cls, places: Mapping[str, tuple[int, int]]) -> BinaryNumbers:
        """Where the bytes of each tensor begin and end."""
        start = min(begin for begin, _ in places.values())
        return cls(
            start,
            (max(end for _, end in places.values()) - start) // _FLOAT_BYTES,
            {
                name: slice((begin - start) // _FLOAT_BYTES, (end - start) // _FLOAT_BYTES)
                for name, (begin, end) in places.items()
            },
        )

    def read(self, body: Buffer, /) -> Array:
        """As Numbers have it: where they stand in the body, if that is aligned."""
        if len(body) != self.start + _FLOAT_BYTES * self.count:
            raise Doubtful
        numbers = np.frombuffer(body, np.float32, self.count, self.start)
        return numbers if numbers.flags.aligned else numbers.copy()


@dataclass(frozen=True, slots=True)
class ListedNumbers:
    """Numbers in lists of JSON text.

    Attributes:
        parts: as Numbers have it.
    """

    parts: Mapping[str, slice]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> ListedNumbers:
        """The shape of each tensor."""
        ends = itertools.accumulate(map(math.prod, shapes.values()), initial=0)
        return cls(
            dict(zip(shapes, itertools.starmap(slice, itertools.pairwise(ends)), strict=True))
        )

    def read(self, body: Buffer, /) -> Array:
        """As Numbers have it."""
        found = number_lists.numbers(bytes(body), self.parts)
        counts = [part.stop - part.start for part in self.parts.values()]
        # A list of one number looks as an empty one does, but for the number.
        if found is None or [array.size for array in found] != counts:
            raise Doubtful
        with np.errstate(over="ignore"):  # what is past the range is infinite, and found to be
            return np.concatenate(found, dtype=np.float32, casting="same_kind")


@dataclass(frozen=True, slots=True)
class BesideHead:
    """Writes an answer's tensors after the bytes that an earlier one began with.

    Attributes:
        head: those bytes.
        about: its media type and headers.
        names: of the tensors, in their order.
    """

    head: Buffer
    about: tuple[str, tuple[tuple[bytes, bytes], ...]]
    names: tuple[str, ...]

    @classmethod
    def of(cls, written: Body, names: tuple[str, ...]) -> BesideHead:
        """As an answer stands: a head, and the bytes of each tensor."""
        return cls(written.buffers[0], (written.media_type, written.headers), names)

    def __call__(self, found: Mapping[str, Array]) -> Body:
        """As Layout has it."""
        media_type, headers = self.about
        tensors = [as_bytes(found[name]) for name in self.names]
        return Body(media_type, [self.head, *tensors], headers)


@dataclass(frozen=True, slots=True)
class AmongFields:
    """Writes an answer's tensors among the fields that an earlier one had.

    Attributes:
        write: writes an answer.
        fields: of the earlier one, in their order.
        shapes: of those that are tensors.
    """

    write: Callable[[Mapping[str, Any]], Body]
    fields: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(
        cls, write: Callable[[Mapping[str, Any]], Body], answer: Mapping[str, Any]
    ) -> AmongFields:
        """As an answer has them: of its tensors none is kept."""
        shapes = {n: value.shape for n, value in answer.items() if isinstance(value, np.ndarray)}
        return cls(write, {**answer, **dict.fromkeys(shapes)}, shapes)

    def __call__(self, found: Mapping[str, Array]) -> Body:
        """As Layout has it."""
        tensors = {name: found[name].reshape(shape) for name, shape in self.shapes.items()}
        return self.write({**self.fields, **tensors})
