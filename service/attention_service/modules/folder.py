"""The folder of modules, and what changes in it.

Each look gives a repository. What has not changed since the last look is taken over; what has
is loaded beside it. A folder that is damaged, or still being written, is refused by name with
the reason, and what it held before serves on.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from attention_service.attention.engine import Engine
from attention_service.heap import give_back_now
from attention_service.modules.loading import Module, ModuleError, load
from attention_service.modules.repository import Repository

logger = logging.getLogger(__name__)

# What differs once a file was written, or a link turned to another.
Fingerprint: TypeAlias = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Held:
    """What is known of one folder.

    Attributes:
        fingerprint: of its files, when they were loaded.
        module: what serves, if anything does.
        refused: why the files that are there do not.
        is_missing: whether the last look did not find it.
    """

    fingerprint: Fingerprint
    module: Module | None
    refused: str | None
    is_missing: bool = False


class ModuleFolder:
    """A folder with a folder for each module.

    Args:
        path: it may be missing or empty, and then there are no modules.
        engine: loads the graphs.
        default_text_module: the text module of calls that name none.
        only: the one module to load; by default all of them.

    Attributes:
        current: what the last look gave; no modules before the first.
    """

    def __init__(
        self,
        path: Path,
        engine: Engine,
        default_text_module: str | None = None,
        *,
        only: str | None = None,
    ) -> None:
        self._path = path
        self._engine = engine
        self._default_text_module = default_text_module
        self._only = only
        self._said: str | None = None
        self._held: dict[str, _Held] = {}
        self.current = self._repository()

    async def follow(self, seconds: float) -> None:
        """Look again and again. Calls keep the module that they began with.

        Args:
            seconds: between two looks; 0 for none.
        """
        while seconds:
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self.look)

    def look(self) -> Repository:
        """The modules that serve now. Takes as long as what is new takes to load."""
        found = self._folders()
        if found is not None:
            seen = {name: self._seen(name, path) for name, path in found.items()}
            self._held = {**self._missing(seen), **seen}
            self.current = self._repository()
        return self.current

    def _repository(self) -> Repository:
        held = sorted(self._held.items())
        return Repository(
            {name: one.module for name, one in held if one.module is not None},
            {name: one.refused for name, one in held if one.refused is not None},
            self._default_text_module,
            self._path,
        )

    def _folders(self) -> dict[str, Path] | None:
        """The folders by the names of their modules; None where they cannot be listed now."""
        try:
            paths = [path for path in self._path.iterdir() if path.is_dir()]
        except FileNotFoundError:
            self._say(logging.WARNING, "does not exist: only tensors are served")
            return {}
        except OSError as error:
            self._say(logging.ERROR, f"cannot be listed: {error.strerror}")
            return None
        # One that begins with a dot is an exporter's unfinished work.
        found = {_name(path): path for path in paths if not path.name.startswith(".")}
        if self._only is not None:
            return {name: path for name, path in found.items() if name == self._only}
        names = ", ".join(sorted(found))
        self._say(logging.INFO, f"holds {names}" if names else "is empty: only tensors are served")
        return found

    def _say(self, level: int, state: str) -> None:
        """Log what has become of the folder, once: it is looked at every few seconds."""
        if state != self._said:
            logger.log(level, "module folder %s %s", self._path, state)
            self._said = state

    def _missing(self, seen: dict[str, _Held]) -> dict[str, _Held]:
        """Those that were there a look ago: to replace a folder takes two renames."""
        gone = {name: one for name, one in self._held.items() if name not in seen}
        for name in [name for name, one in gone.items() if one.is_missing]:
            del gone[name]
            logger.info("module %s is gone", name)
        return {name: replace(one, is_missing=True) for name, one in gone.items()}

    def _seen(self, name: str, path: Path) -> _Held:
        before = self._held.get(name)
        # Before it is loaded: what changes meanwhile is seen at the next look.
        fingerprint = _fingerprint(path)
        if before is not None and before.fingerprint == fingerprint:
            return replace(before, is_missing=False)
        old = None if before is None else before.module
        try:
            module = load(path, self._engine)
        except ModuleError as error:
            logger.error("module %s refused: %s", name, error)
            if old is not None:
                logger.error("module %s: what it was before serves on", name)
            return _Held(fingerprint, old, str(error))
        finally:
            give_back_now()
        logger.info("module %s is taken up%s", name, "" if before is None else " anew")
        return _Held(fingerprint, module, None)


def _name(path: Path) -> str:
    """The module's name; of a folder that cannot be one, what a log and JSON can hold."""
    return path.name if path.name.isprintable() else path.name.encode("unicode_escape").decode()


def _fingerprint(folder: Path) -> Fingerprint:
    """Empty where the files cannot be seen; why they cannot is told by loading them."""
    try:
        stats = [(path.name, path.stat()) for path in folder.iterdir()]
    except OSError:
        return ()
    return tuple(
        sorted((name, at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns) for name, at in stats)
    )
