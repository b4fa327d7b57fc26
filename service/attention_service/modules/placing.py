"""Modules put into a folder and taken out of it, whole: none is ever seen half there.

Whoever lists the folder meanwhile sees the old module or the new one. What is not finished
stands beside them under a name that begins with a dot, which no module's does.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from attention_service.modules.manifest import MANIFEST_FILE, RESERVED_NAME

logger = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class PlacingError(Exception):
    """A module cannot be put into the folder or taken out; the message says why."""


# --- Folders of modules ----------------------------------------------------------------


def names(modules: Path) -> list[str]:
    """The names of a folder's modules, those that would be refused too.

    Args:
        modules: the folder; it may be missing.

    Raises:
        PlacingError: it cannot be listed.
    """
    try:
        found = [path.name for path in modules.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PlacingError(f"{modules} cannot be listed: {error.strerror}") from error
    return sorted(name for name in found if not name.startswith("."))


def existing(modules: Path, name: str) -> Path:
    """The folder of a module that is there.

    Raises:
        PlacingError: there is none of that name; the message names those that there are.
    """
    there = names(modules)
    if name in there:
        return modules / name
    raise PlacingError(
        f"there is no module {name!r} in {modules}; there are: {', '.join(there) or 'none'}"
    )


def add(
    source: Path,
    name: str,
    modules: Path,
    load: Callable[[Path], Loaded],
    *,
    force: bool = False,
) -> Loaded:
    """Copy a finished module folder into the folder of modules, if it can be loaded.

    Args:
        source: a folder with ``module.json`` and the files that it names. Files are copied,
            links followed; folders in it are not.
        name: the module's: letters, digits, ``.``, ``_``, ``-``.
        modules: the folder of modules; it is made if missing.
        load: called with the copy, to try it. What it raises is raised, and nothing was
            changed in ``modules``.
        force: replace a module of that name.

    Returns:
        What ``load`` gives.

    Raises:
        PlacingError: nothing was changed in ``modules``.
    """
    try:
        place = target(modules, name, force=force)
        if not (source / MANIFEST_FILE).is_file():
            raise PlacingError(
                f"{source} is no module: there is no {MANIFEST_FILE} in it. Published weights "
                f"are made into one by `attention-service export {source} --name {name}`; of an "
                "ONNX graph of your own, docs/models.md says what the file holds"
            )
        with aside(place) as folder:
            for path in source.iterdir():
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)
            loaded = load(folder)
            put(folder, place, force=force)
    except OSError as error:
        raise PlacingError(f"reading or writing failed: {error}") from error
    return loaded


def remove(modules: Path, name: str) -> None:
    """Take a module out of the folder: in one step it is gone, then its files are deleted.

    Of a link, the link is deleted and nothing that it leads to.

    Raises:
        PlacingError: there is none of that name, or the folder cannot be changed; or the module
            is gone, and its files are left under the name that the message gives.
    """
    there = existing(modules, name)
    gone = _beside(there)
    try:
        there.rename(gone)
    except OSError as error:
        raise PlacingError(f"{there} cannot be removed: {error.strerror}") from error
    try:
        _delete(gone)
    except OSError as error:
        raise PlacingError(
            f"{name} is gone, but its files cannot be deleted: {error}; delete {gone} yourself"
        ) from error


# --- Steps, for who makes a module where it will stand ---------------------------------


def target(modules: Path, name: str, *, force: bool) -> Path:
    """Where a new module will stand: ``modules/name``.

    Args:
        modules: the folder of modules.
        name: the module's: letters, digits, ``.``, ``_``, ``-``.
        force: whether a module of that name may be there.

    Raises:
        PlacingError: the name cannot be a module's, or is taken.
        OSError: what is there cannot be seen.
    """
    if not _NAME.fullmatch(name):
        raise PlacingError(
            f"{name!r} cannot name a module: up to 64 letters, digits, '.', '_' and '-', "
            "the first one a letter or digit"
        )
    if name == RESERVED_NAME:
        raise PlacingError(f"{name!r} is what /v2 calls plain attention; choose another name")
    place = modules / name
    if not force:
        _check_free(place)
    return place


@contextmanager
def aside(place: Path) -> Iterator[Path]:
    """A new folder beside a place; what is left of it in the end is removed.

    Raises:
        OSError: it cannot be made.
    """
    folder = _beside(place)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put(folder: Path, place: Path, *, force: bool) -> None:
    """Rename a finished folder to its place, or swap it for what is there.

    Args:
        folder: it stands beside the place.
        place: as :func:`target` gives it.
        force: replace what is there.

    Raises:
        PlacingError: the place is taken.
        OSError: nothing was changed.
    """
    if not (force and _is_taken(place)):
        _check_free(place)
        folder.rename(place)  # fails where another was faster, and then nothing is lost
        return
    old = _beside(place)
    place.rename(old)
    try:
        folder.rename(place)
    except OSError:
        old.rename(place)
        raise
    try:
        _delete(old)
    except OSError as error:  # the new module serves all the same
        logger.warning("what %s held before cannot be deleted: %s", place, error)


def _check_free(place: Path) -> None:
    if _is_taken(place):
        raise PlacingError(f"there is a module {place} already; --force replaces it")


def _is_taken(place: Path) -> bool:
    return place.exists() or place.is_symlink()


def _beside(place: Path) -> Path:
    return place.parent / f".{place.name}.{secrets.token_hex(4)}"


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
