"""Members of a JSON object that are nested lists of numbers, straight into arrays.

A list of Python numbers takes longer to make than its text takes to read. simdjson
(https://simdjson.org, by pysimdjson) gives the numbers of a list in one buffer, however they are
nested; how they are has to be looked at apart.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Set
from typing import Any

import numpy as np
import simdjson

from attention_wire.tensors import Array

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Members are looked for one after the other; no request has so many.
_MOST_MEMBERS = 64
# What numbers are made of, and what stands between them.
_NUMBERS = b"0123456789.+-eE \t\r\n"
# Rows that are looked at one by one.
_MOST_LISTS = 2**18


def parse(raw: bytes, names: Set[str]) -> tuple[dict[str, Any], int] | None:
    """The members of an object, those of these names as float32 arrays where they can be.

    Args:
        raw: JSON text.
        names: of members.

    Returns:
        The members, and how many lists the arrays stood in; None where the text is no object, or
        nothing that simdjson reads: another parser says why.
    """
    if raw.startswith(_BYTE_ORDER_MARK):
        return None  # which simdjson skips
    try:
        document = simdjson.Parser().parse(raw)
    except (ValueError, RuntimeError):  # the latter for an integer of more than 64 bits
        return None
    if not isinstance(document, simdjson.Object) or len(document) > _MOST_MEMBERS:
        return None
    members: dict[str, Any] = {}
    lists = 0
    for name in document:
        if "\0" in name:
            return None  # what pysimdjson looks for ends there
        item = document[name]
        array = _array(item) if name in names else None
        if array is not None:
            members[name] = array
            lists += sum(math.prod(array.shape[:axis]) for axis in range(array.ndim))
        elif isinstance(item, simdjson.Array):
            members[name] = item.as_list()
        elif isinstance(item, simdjson.Object):
            members[name] = item.as_dict()
        else:
            members[name] = item
    return members, lists


def outline(raw: bytes, names: Collection[bytes]) -> bytes:
    """A text without the numbers of these members: of bodies that differ in them it is the same.

    The other way round: where two valid texts have one outline, their members of these names
    differ in nothing but their numbers, and in how many a list of one or none holds.

    Args:
        raw: JSON text.
        names: of members that are nested lists of numbers.

    Returns:
        The outline; nothing of a text whose strings hold escapes.
    """
    if b"\\" in raw:
        return b""
    pieces: list[bytes] = []
    kept = 0  # up to where the text is in the pieces
    end = -1
    while (begin := raw.find(b'"', end + 1)) >= 0 and (end := raw.find(b'"', begin + 1)) >= 0:
        if raw[begin + 1 : end] in names:
            after = raw.find(b'"', end + 1)
            after = len(raw) if after < 0 else after
            pieces += [raw[kept : end + 1], raw[end + 1 : after].translate(None, _NUMBERS)]
            kept = after
            end = after - 1
    return b"".join([*pieces, raw[kept:]])


def numbers(raw: bytes, names: Iterable[str]) -> list[Array] | None:
    """The numbers of members that are nested lists of them, however they are nested.

    Args:
        raw: JSON text.
        names: of the members.

    Returns:
        Float64, of each member in the order of the names; None where the text is no object with
        such members.
    """
    try:
        document: Any = simdjson.Parser().parse(raw)
        buffers = [document[name].as_buffer(of_type="d") for name in names]
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError):
        return None
    return [np.frombuffer(buffer, np.float64) for buffer in buffers]


def _array(item: Any) -> Array | None:
    if not isinstance(item, simdjson.Array):
        return None
    shape = _shape(item)
    if shape is None:
        return None
    try:
        numbers = np.frombuffer(item.as_buffer(of_type="d"), np.float64)
    except TypeError:
        return None  # words, or true and false
    if numbers.size != math.prod(shape):
        return None
    with np.errstate(over="ignore"):  # what is past the range is infinite, and found to be
        return numbers.astype(np.float32).reshape(shape)


def _shape(item: simdjson.Array) -> tuple[int, ...] | None:
    """The shape of nested lists whose lists are of one length, as far as lists alone show it."""
    shape: list[int] = []
    level: list[Any] = [item]
    while True:
        if not all(isinstance(one, simdjson.Array) for one in level):
            return None
        lengths = {len(one) for one in level}
        if len(lengths) > 1 or 0 in lengths or len(level) > _MOST_LISTS:
            return None
        shape.append(lengths.pop())
        if not isinstance(level[0][0], simdjson.Array):
            return tuple(shape)
        level = [inner for one in level for inner in one]
