"""The map in docs/architecture.md names every module, and nothing that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("wire/attention_wire", "client/attention_client", "service/attention_service")
# Folders that one line stands for.
WHOLE = {"commands", "exporters", "analyses", "inference", "page"}


def named() -> Iterator[str]:
    """The paths of the map, whose folders are told by a line's indentation."""
    text = (ROOT / "docs/architecture.md").read_text()
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    (found,) = (block for block in blocks if "wire/attention_wire/" in block)
    folders: list[str] = []
    for line in found.splitlines():
        names = line.strip().split("  ")[0]
        del folders[(len(line) - len(line.lstrip())) // 4 :]
        if re.fullmatch(r"[\w/]+/", names):
            folders.append(names.rstrip("/"))
        for name in re.findall(r"\w+\.py", names):
            yield "/".join([*folders, name])


def test_the_map_is_the_tree() -> None:
    there = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and not WHOLE & set(path.relative_to(ROOT).parts)
    }
    told = list(named())
    assert len(told) == len(set(told))
    assert there - set(told) == set()
    assert [name for name in told if not (ROOT / name).is_file()] == []
