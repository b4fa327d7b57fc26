"""Keys: who may call, by a file of named hashes that is read anew when it changes.

A line holds ``name:hash``, the hash being the SHA-256 of a key in hexadecimal. Keys are made at
random with 256 bits (:func:`new_key`), so that none can be found by trying and a fast hash is
right; the file lets nobody in who reads it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from pathlib import Path
from time import monotonic
from typing import NamedTuple

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_PREFIX = "att_"
_LOOK_SECONDS = 1.0
_MOST_BYTES = 2**20


class KeysError(Exception):
    """A file of keys cannot be used; the message says why and never holds a key or a hash."""


class _Key(NamedTuple):
    name: str
    digest: bytes


def new_key(name: str) -> tuple[str, str]:
    """A new random key, and the line that the file holds of it.

    Args:
        name: whose key it is; one name may have several, so that a key can be changed.

    Raises:
        KeysError: the name is none that a line can hold.
    """
    if not _NAME.fullmatch(name):
        raise KeysError(
            f"{name!r:.80} is no name for a key: up to 64 letters, digits and . _ @ -, "
            "a letter or digit first"
        )
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


class Keys:
    """The keys of a file, as it is now.

    Args:
        path: the file.

    Attributes:
        are_stale: whether the file as it is now cannot be used, and those before it are.

    Raises:
        KeysError: it cannot be read, holds no key, or a line is wrong.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._keys = _read(path)
        self.are_stale = False
        self._looked = monotonic()

    def name_of(self, key: str) -> str | None:
        """Whose key it is; None for nobody's.

        Every key of the file is compared, each in constant time: how long it takes tells nothing.
        """
        self._look()
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found: str | None = None
        for name, known in self._keys:
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _look(self) -> None:
        """Take up a file that has changed; one that cannot be used changes nothing."""
        now = monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = _read(self._path)
        except KeysError as error:
            self.are_stale = True
            logger.error("the keys stay as they were: %s", error)
        else:
            self.are_stale = False
            logger.info("%d keys of %s", len(self._keys), self._path)


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when the file does, be it by a link that is turned to another."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read(path: Path) -> list[_Key]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise KeysError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise KeysError(f"{path} is larger than the 1 MiB that a file of keys may be")
    keys = []
    for number, raw in enumerate(content.splitlines(), 1):
        line = raw.decode("utf-8", "replace").strip()
        if not line or line.startswith("#"):
            continue
        name, _, digest = line.partition(":")
        if not (_NAME.fullmatch(name) and _HASH.fullmatch(digest)):
            raise KeysError(
                f"{path}, line {number}: must be name:hash with a SHA-256 in 64 hexadecimal "
                "digits; `attention-service key NAME` makes such a line"
            )
        keys.append(_Key(name, bytes.fromhex(digest)))
    if not keys:
        raise KeysError(
            f"{path} holds no key, so nobody could call; `attention-service key NAME` makes one"
        )
    return keys
