"""Environments of what is measured beside us, each of its own, built where it is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(name: str, requirements: Path, python: str = sys.executable) -> Path:
    """The Python of an environment, which is built where it is missing or outdated.

    Args:
        name: of its folder, in ``build``.
        requirements: what it holds.
        python: that it is made with.

    Raises:
        subprocess.CalledProcessError: it cannot be built.
    """
    folder = ROOT / "build" / name
    built, stamp = folder / "bin" / "python", folder / ".requirements"
    wanted = requirements.read_text()
    if not (stamp.exists() and stamp.read_text() == wanted):
        print(f"installing {requirements.name} in {folder.relative_to(ROOT)}", flush=True)
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
        options = ["--quiet", "--disable-pip-version-check"]
        command = [str(built), "-m", "pip", "install", *options, "-r", str(requirements)]
        subprocess.run(command, check=True)
        stamp.write_text(wanted)
    return built
