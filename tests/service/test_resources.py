"""CPUs and memory as control groups limit them, over folders made as the kernel shows them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from attention_service import resources

MANY_CPUS = 64
UNLIMITED_V1 = "9223372036854771712"  # what version 1 shows where no limit was set


@pytest.fixture
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with more CPUs than any quota here; the one that tests run on may have two."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(MANY_CPUS)))


class Groups:
    """A tree of control groups, and the list of those that a process is in."""

    def __init__(self, folder: Path, listed: str, files: Mapping[str, str]) -> None:
        self.root = folder / "cgroup"
        self.listed = folder / "self"
        folder.mkdir(exist_ok=True)
        self.listed.write_text(listed)
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")

    def cpus(self) -> int:
        return resources.cpu_count(self.root, self.listed)

    def memory(self) -> int:
        return resources.memory_bytes(self.root, self.listed)


V2 = "0::/kubepods/pod7/container\n"
V1 = """\
12:cpu,cpuacct:/docker/0a1b
11:memory:/docker/0a1b
10:cpuset:/docker/0a1b
1:name=systemd:/docker/0a1b
"""


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize(
    ("limit", "cpus"),
    [
        ("max 100000", MANY_CPUS),
        ("100000 100000", 1),
        ("150000 100000", 2),  # one thread would leave half a CPU idle
        ("250000 50000", 5),
        ("10000 100000", 1),  # never none
        ("6400000 50000", MANY_CPUS),  # more than there are
        ("", MANY_CPUS),
        ("100000", MANY_CPUS),
        ("nonsense", MANY_CPUS),
    ],
)
def test_cpus_of_version_2(tmp_path: Path, limit: str, cpus: int) -> None:
    groups = Groups(tmp_path, V2, {"kubepods/pod7/container/cpu.max": limit})
    assert groups.cpus() == cpus


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize(
    ("quota", "period", "cpus"),
    [("-1", "100000", MANY_CPUS), ("150000", "100000", 2), ("400000", "100000", 4)],
)
def test_cpus_of_version_1(tmp_path: Path, quota: str, period: str, cpus: int) -> None:
    folder = "cpu,cpuacct/docker/0a1b"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}
    assert Groups(tmp_path, V1, files).cpus() == cpus


@pytest.mark.usefixtures("many_cpus")
def test_a_quota_without_a_period_is_none(tmp_path: Path) -> None:
    files = {"cpu,cpuacct/docker/0a1b/cpu.cfs_quota_us": "150000"}
    assert Groups(tmp_path, V1, files).cpus() == MANY_CPUS


@pytest.mark.parametrize(
    ("limit", "expected"), [("536870912", 536870912), ("max", None), ("", None), ("soon", None)]
)
def test_memory_of_version_2(tmp_path: Path, limit: str, expected: int | None) -> None:
    groups = Groups(tmp_path, V2, {"kubepods/pod7/container/memory.max": limit})
    assert groups.memory() == (expected or machine_memory())


@pytest.mark.parametrize(("limit", "expected"), [("268435456", 268435456), (UNLIMITED_V1, None)])
def test_memory_of_version_1(tmp_path: Path, limit: str, expected: int | None) -> None:
    groups = Groups(tmp_path, V1, {"memory/docker/0a1b/memory.limit_in_bytes": limit})
    assert groups.memory() == (expected or machine_memory())


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize("tightest", ["", "kubepods", "kubepods/pod7", "kubepods/pod7/container"])
def test_the_tightest_level_counts(tmp_path: Path, tightest: str) -> None:
    levels = ["", "kubepods", "kubepods/pod7", "kubepods/pod7/container"]
    files: dict[str, str] = {}
    for level in levels:
        files[f"{level}/cpu.max".lstrip("/")] = f"{3 if level == tightest else 8}00000 100000"
        files[f"{level}/memory.max".lstrip("/")] = "1000000" if level == tightest else "2000000"
    groups = Groups(tmp_path, V2, files)
    assert (groups.cpus(), groups.memory()) == (3, 1000000)


@pytest.mark.usefixtures("many_cpus")
def test_groups_of_others_do_not_count(tmp_path: Path) -> None:
    files = {
        "kubepods/pod7/other/cpu.max": "100000 100000",
        "kubepods/pod7/container/below/cpu.max": "100000 100000",
        "kubepods/pod8/memory.max": "1000000",
    }
    groups = Groups(tmp_path, V2, files)
    assert (groups.cpus(), groups.memory()) == (MANY_CPUS, machine_memory())


@pytest.mark.usefixtures("many_cpus")
def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    """Without a cgroup namespace the list has the host's path, which is not mounted inside."""
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "200000",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "1000000",
    }
    groups = Groups(tmp_path, V1, files)
    assert (groups.cpus(), groups.memory()) == (2, 1000000)
    groups = Groups(tmp_path / "2", "0::/\n", {"cpu.max": "300000 100000"})
    assert groups.cpus() == 3


@pytest.mark.usefixtures("many_cpus")
def test_both_versions_at_once(tmp_path: Path) -> None:
    listed = V1 + "0::/docker/0a1b\n"
    files = {
        "cpu,cpuacct/docker/0a1b/cpu.cfs_quota_us": "500000",
        "cpu,cpuacct/docker/0a1b/cpu.cfs_period_us": "100000",
        "docker/0a1b/memory.max": "1000000",
    }
    groups = Groups(tmp_path, listed, files)
    assert (groups.cpus(), groups.memory()) == (5, 1000000)


@pytest.mark.usefixtures("many_cpus")
def test_without_control_groups_it_is_the_machine(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert resources.cpu_count(nowhere, nowhere) == MANY_CPUS
    assert resources.memory_bytes(nowhere, nowhere) == machine_memory()


def test_the_affinity_counts() -> None:
    """A process that is bound to one CPU has one, whatever the machine and its groups have."""
    code = (
        "import os; from attention_service import resources;"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(resources.cpu_count())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout == b"1\n"


def test_here_it_is_no_more_than_the_machine_has() -> None:
    assert 1 <= resources.cpu_count() <= (os.cpu_count() or 1)
    assert 2**20 < resources.memory_bytes() <= machine_memory()


def machine_memory() -> int:
    kibibytes = re.search(r"^MemTotal: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert kibibytes is not None
    return int(kibibytes[1]) * 1024


def test_numpy_computes_in_the_thread_that_calls_it() -> None:
    script = (
        "import attention_service, numpy as np, os\n"
        "array = np.ones(2**20, np.float32)\n"
        "np.dot(array, array)\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    # Here it was set when this process loaded the package.
    environment = {n: v for n, v in os.environ.items() if n != "OPENBLAS_NUM_THREADS"}
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert int(process.stdout) == 1
