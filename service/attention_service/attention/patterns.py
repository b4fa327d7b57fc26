"""Biases of bands, kept from call to call: what a causal edge looks like is always the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import NamedTuple

from attention_wire.tensors import Array

_OVERHEAD = 2**12  # of a pattern's key and its entry


class Pattern(NamedTuple):
    """What is added to the scores of some rows and keys.

    Attributes:
        bias: ``[N or 1, M or 1, keys]``, or of the last keys alone
            ``[N, M, pieces, PIECE_KEYS]``, or None where every key is seen.
        dead: the rows that see no key, bool ``[N or 1, M or 1]``, or None. Their bias is 0,
            since a softmax over nothing but −∞ is NaN.
        places: which pieces of the scores the bias belongs to, int64 ``[N, M, pieces, 3]``, or
            None where it belongs to all keys.
    """

    bias: Array | None
    dead: Array | None
    places: Array | None = None

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return _OVERHEAD + sum(array.nbytes for array in self if array is not None)


class _Entry:
    """A pattern, made by the first who wants it while the others wait."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.pattern: Pattern | None = None


class Patterns:
    """The patterns that were used last.

    Args:
        max_bytes: of all that are kept. A larger one is made anew each time.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, make: Callable[[], Pattern]) -> Pattern:
        """The pattern of a key, made if it is not kept. For any number of threads at once."""
        with self._lock:
            entry = self._entries.pop(key, None) or _Entry()
            self._entries[key] = entry
        with entry.lock:
            pattern = entry.pattern
            if pattern is None:
                pattern = entry.pattern = make()
                self._keep(key, entry, pattern.nbytes)
        return pattern

    def _keep(self, key: Hashable, entry: _Entry, size: int) -> None:
        with self._lock:
            if self._entries.get(key) is not entry:
                return  # gone meanwhile
            if size > self._max_bytes:
                del self._entries[key]
                return
            self._bytes += size
            while self._bytes > self._max_bytes:
                _, oldest = self._entries.popitem(last=False)
                if oldest.pattern is not None:
                    self._bytes -= oldest.pattern.nbytes
