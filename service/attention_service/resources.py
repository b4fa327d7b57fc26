"""What this process may use: CPUs and memory, as the control group limits them.

``os.cpu_count()`` and the machine's memory are the host's. In a container the limits stand
in the cgroup files: ``cpu.max`` and ``memory.max`` (version 2), or the ``cfs_quota`` and
``limit_in_bytes`` files (version 1). A limit may be set at any level, so each level from
the process's own group up is read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROCESS_STATUS = Path("/proc/self/status")
PROCESS_GROUPS = Path("/proc/self/cgroup")


def cpu_count(root: Path = CGROUP_ROOT, groups: Path = PROCESS_GROUPS) -> int:
    """CPUs that may run at once: the scheduler's affinity, cut by the cgroup's quota.

    A quota of 1.5 CPUs gives 2: one thread fewer would leave half a CPU idle.
    """
    quotas = [len(os.sched_getaffinity(0))]
    for folder in _levels(root, groups, "cpu"):
        quota, period = _cpu_quota(folder)
        if quota > 0 and period > 0:
            quotas.append(math.ceil(quota / period))
    return min(quotas)


def memory_bytes(root: Path = CGROUP_ROOT, groups: Path = PROCESS_GROUPS) -> int:
    """Bytes of memory: the machine's, cut by the cgroup's limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _levels(root, groups, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            word = _read(folder / name)
            if word.isdecimal():
                limits.append(int(word))
    return min(limits)


def resident_bytes(status: Path = PROCESS_STATUS) -> int:
    """Bytes of memory that this process has in use; 0 where the system does not tell."""
    for line in _read(status).splitlines():
        name, _, value = line.partition(":")
        if name == "VmRSS":
            return 1024 * int(value.split()[0])
    return 0


def _levels(root: Path, groups: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of all above it, in both versions."""
    for line in _read(groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        folder = base / path.lstrip("/")
        yield from (level for level in (folder, *folder.parents) if level.is_relative_to(base))


def _cpu_quota(folder: Path) -> tuple[int, int]:
    """Microseconds of CPU time and the period they are for; 0 where there is no limit."""
    words = _read(folder / "cpu.max").split()
    if not words:
        words = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal():
        return int(words[0]), int(words[1])
    return 0, 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # this version or level of cgroups is not there
