"""The tiny models of every family, as ``goldens/record_families.py`` has recorded them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

GOLDENS = Path(__file__).parents[1] / "goldens" / "families"
FAMILIES = sorted(folder.name for folder in GOLDENS.iterdir())
TOLERANCE = 1e-4


def changed(tmp_path: Path, name: str, **fields: Any) -> Path:
    """A copy of a model with other fields in its configuration."""
    folder = tmp_path / name
    shutil.copytree(GOLDENS / name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder
