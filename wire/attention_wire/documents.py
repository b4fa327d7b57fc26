"""Strict JSON: what a lenient parser lets pass is refused here.

``orjson`` is fast and keeps the last of two equal names, so a request with a duplicate
field would be answered as if the first had never been sent. The checks below count names
and brackets in the text outside of its strings, which costs a small part of the parsing,
and only a document that fails the count is read again, slowly, to name the culprit.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Set
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import orjson

from attention_wire import number_lists
from attention_wire.problems import Code, FieldProblem, Loc, ProblemError, dotted

MAX_DEPTH = 64

# Possessive, so that a long string leaves no state to go back to; its end may be missing, so
# that a text which breaks off inside one is not searched again from each escaped quote.
_ESCAPED_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# What numbers are made of, and what stands between them, but for the exponent's letter.
_NUMBERS = b"0123456789.+-, \t\r\n"
_LITERALS = (b"true", b"false", b"null")
# As many and as much of the caller's own names as are told back.
_MOST_NAMES, _LONGEST_NAME = 20, 100
_SURROGATE = re.compile("[\ud800-\udfff]")


class Document(NamedTuple):
    """A parsed JSON text.

    Attributes:
        value: the Python value.
        only_numbers: true when no list in it holds a string, a boolean or null, so that a
            tensor's list needs no look at its elements one by one.
    """

    value: Any
    only_numbers: bool


def parse(
    text: bytes | bytearray | memoryview,
    max_depth: int = MAX_DEPTH,
    tensors: Set[str] = frozenset(),
    what: str = "The body",
) -> Document:
    """Parse JSON text strictly.

    Args:
        text: UTF-8 JSON, one value.
        max_depth: how many arrays and objects may be open at once.
        tensors: members of an object whose lists of numbers are wanted as float32 arrays; what
            is no such list comes as ever.
        what: the text is, for messages.

    Raises:
        ProblemError: ``malformed_json``, ``too_deep``, ``duplicate_field``, or
            ``invalid_field`` for a string with a lone surrogate.
    """
    raw = text if isinstance(text, bytes) else bytes(text)
    bare = _without_strings(raw).translate(None, _NUMBERS)
    if bare.count(b"[") + bare.count(b"{") > max_depth:
        _check_depth(bare, max_depth)
    value = _with_arrays(raw, bare, tensors) if tensors else None
    if value is None:
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise _malformed(raw, bare, error, what) from None
    tally = _Tally()
    tally.visit(value)
    if bare.count(b":") != tally.names or bare.count(b"{") != tally.objects:
        _check_duplicates(raw)
    literals = sum(bare.count(word) for word in _LITERALS)
    strings = bare.count(b'"') - tally.names
    return Document(value, literals == tally.literals and strings == tally.strings)


def _with_arrays(raw: bytes, bare: bytes, tensors: Set[str]) -> dict[str, Any] | None:
    """The members of an object, with arrays where it holds lists of numbers."""
    found = number_lists.parse(raw, tensors)
    if found is None:
        return None
    members, lists = found
    others = sum(_lists_in(member) for member in members.values())
    # A list beside numbers, where all stand in one buffer, shows in nothing but its bracket.
    return members if bare.count(b"[") == lists + others else None


def _lists_in(value: object) -> int:
    if isinstance(value, dict):
        return sum(map(_lists_in, value.values()))
    if not isinstance(value, list):
        return 0
    holds_more = not {list, dict}.isdisjoint(map(type, value))
    return 1 + (sum(map(_lists_in, value)) if holds_more else 0)


def _without_strings(raw: bytes) -> bytes:
    """The text with every string replaced by one quotation mark."""
    if b"\\" in raw:
        return _ESCAPED_STRING.sub(b'"', raw)
    return b'"'.join(raw.split(b'"')[::2])


def _check_depth(bare: bytes, max_depth: int) -> None:
    brackets = np.frombuffer(bare.translate(None, _NOT_BRACKETS), np.uint8)
    steps = np.where((brackets == ord("[")) | (brackets == ord("{")), np.int8(1), np.int8(-1))
    if steps.cumsum(dtype=np.int32).max() > max_depth:
        raise ProblemError(
            Code.TOO_DEEP,
            f"The JSON is nested deeper than {max_depth} levels. "
            "A tensor needs one level for each of its dimensions.",
        )


class _Tally:
    """Counts what a document's objects hold, going into lists only where objects are."""

    def __init__(self) -> None:
        self.names = self.objects = self.literals = self.strings = 0

    def visit(self, value: object) -> None:
        if isinstance(value, dict):
            self.objects += 1
            self.names += len(value)
            for item in value.values():
                self.visit(item)
        elif isinstance(value, bool) or value is None:
            self.literals += 1
        elif isinstance(value, str):
            self.strings += 1
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                self.visit(item)


class _Members(list[tuple[str, Any]]):
    """The members of an object as they stand in the text, the repeated ones too."""


def _check_duplicates(raw: bytes) -> None:
    members = json.loads(raw, object_pairs_hook=_Members)
    twice = list(islice(dict.fromkeys(_repeated(members, ())), _MOST_NAMES))
    if twice:
        raise ProblemError(
            Code.DUPLICATE_FIELD,
            f"Given more than once: {', '.join(map(dotted, twice))}. Send each field once.",
            [FieldProblem(loc=loc, msg="given more than once") for loc in twice],
        )


def _repeated(value: object, loc: Loc) -> Iterator[Loc]:
    """The paths that lead to more than one value, outermost first."""
    if isinstance(value, _Members):
        counts = Counter(name for name, _ in value)
        yield from ((*loc, name[:_LONGEST_NAME]) for name, count in counts.items() if count > 1)
        for name, item in value:
            yield from _repeated(item, (*loc, name[:_LONGEST_NAME]))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, list):
                yield from _repeated(item, (*loc, index))


def _malformed(raw: bytes, bare: bytes, error: orjson.JSONDecodeError, what: str) -> ProblemError:
    if not raw.strip():
        return ProblemError(Code.MALFORMED_JSON, f"{what} is empty: send a JSON object.")
    if "surrogate" in str(error) and (loc := _lone_surrogate(raw)) is not None:
        return ProblemError.of_field(
            loc,
            "holds a lone surrogate (half of a UTF-16 pair), which is no character; "
            "send the whole pair, or the character itself in UTF-8",
        )
    try:
        raw.decode()
    except UnicodeDecodeError as wrong:
        return ProblemError(
            Code.MALFORMED_JSON,
            f"{what} is not UTF-8, as JSON has to be: byte {raw[wrong.start]:#04x} at "
            f"{wrong.start} is {wrong.reason}.",
        )
    cure = ""
    if b"NaN" in bare or b"Infinity" in bare:
        cure = ' Write non-finite numbers as the strings "NaN", "Infinity" and "-Infinity".'
    return ProblemError(Code.MALFORMED_JSON, f"{what} is not valid JSON: {error}.{cure}")


def _lone_surrogate(raw: bytes) -> Loc | None:
    """Where the first string with a lone surrogate is, or None if the text has other faults."""
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    pending: list[tuple[Loc, object]] = [((), value)]
    while pending:
        loc, item = pending.pop()
        if isinstance(item, str) and _SURROGATE.search(item):
            return loc
        if isinstance(item, dict):
            names = [name for name in item if _SURROGATE.search(name)]
            if names:
                return (*loc, dotted((names[0].encode("ascii", "backslashreplace").decode(),)))
            pending += [((*loc, name), child) for name, child in item.items()]
        elif isinstance(item, list):
            pending += [((*loc, index), child) for index, child in enumerate(item)]
    return None
