"""What a result was measured on and with, so that it can be compared with another."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_MEBIBYTE = 2**20


def header(threads: int, packages: Iterable[str], others: Mapping[str, str]) -> dict[str, Any]:
    """The head of a result: machine, versions, revision and time.

    Args:
        threads: threads that each side computed in.
        packages: installed here, whose versions count.
        others: name → version of what was measured in another environment.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": _revision(),
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "cores_for_this_process": len(os.sched_getaffinity(0)),
            "threads": threads,
            "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MEBIBYTE,
            "system": f"{platform.system()} {platform.machine()}",
            "load_before": [round(load, 2) for load in os.getloadavg()],
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            **others,
        },
    }


def write(name: str, report: Mapping[str, Any]) -> Path:
    """Write a result as ``results/NAME.json`` and say where."""
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    return path


def _revision() -> str:
    """The git revision, ``-dirty`` behind it where files of what is measured differ."""
    revision = _git("rev-parse", "--short=12", "HEAD")
    # Results and documents do not change what is measured.
    is_dirty = _git("status", "--porcelain", "--", "service", "wire", "client", "requirements")
    return f"{revision}{'-dirty' if is_dirty else ''}" or "unknown"


def _git(*words: str) -> str:
    """What git prints, nothing where this is no working copy."""
    command = ["git", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip()


def _cpu_model() -> str:
    """The CPU's name, with family and model, since virtual machines may cut the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    name = fields.get("model name", platform.machine())
    return f"{name} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"
