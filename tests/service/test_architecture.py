"""The map in docs/architecture.md names every module, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("wire/attention_wire", "client/attention_client", "service/attention_service")
# Folders that one line stands for.
WHOLE = {"commands", "exporters", "analyses", "inference", "page"}


def named() -> set[str]:
    text = (ROOT / "docs/architecture.md").read_text()
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    (found,) = (block for block in blocks if "wire/attention_wire/" in block)
    return {name for line in found.splitlines() for name in re.findall(r"[\w]+\.py", line)}


def test_the_map_is_the_tree() -> None:
    there = {
        path.name
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and not WHOLE & set(path.relative_to(ROOT).parts)
    }
    assert there - named() == set()
    of_whole = {path.name for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert named() - of_whole - {"reference.py"} == set()
