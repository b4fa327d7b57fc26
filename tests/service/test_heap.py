"""Memory that large arrays took goes back, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import numpy as np
from attention_service.heap import give_back_freed

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

if sys.argv[1] == "set":
    assert give_back_freed()
large = np.ones(31 * 2**20, np.uint8)
del large  # by default arrays of up to 31 MiB now go into the heap
before = resident()
kept = []
for _ in range(20):
    kept += [np.ones(5 * 2**20, np.uint8), np.ones(64 * 2**10, np.uint8)]
del kept[::2]  # the small ones between them stay
print(resident() - before)
"""


def left(argument: str) -> int:
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, argument], capture_output=True, text=True, check=True
    )
    return int(process.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the heap of glibc")
def test_what_was_freed_goes_back() -> None:
    assert left("set") < 8 * 2**20
    assert left("default") > 80 * 2**20  # or there would be nothing to set
