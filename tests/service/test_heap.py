"""Memory that large arrays took goes back, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
for _ in range(8):
    kept += [np.ones(20 * 2**20, np.uint8), np.ones(64 * 2**10, np.uint8)]
del kept[::2]  # the small ones between them stay
print(resident() - before)
"""

ARENAS = """
import ctypes, sys, threading
from attention_service.heap import give_back_freed

if sys.argv[1] == "set":
    assert give_back_freed()
library = ctypes.CDLL(None)
library.malloc.restype = library.fopen.restype = ctypes.c_void_p
together = threading.Barrier(6)

def take():
    together.wait()
    library.malloc(100_000)
    together.wait()

threads = [threading.Thread(target=take) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = ctypes.c_void_p(library.fopen(sys.argv[2].encode(), b"w"))
library.malloc_info(0, file)
library.fclose(file)
print(open(sys.argv[2]).read().count("<heap nr="))
"""


def left(argument: str) -> int:
    return told(SCRIPT, argument)


def told(script: str, *arguments: str) -> int:
    process = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    return int(process.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the heap of glibc")
def test_what_was_freed_goes_back() -> None:
    assert left("set") < 8 * 2**20
    assert left("default") > 80 * 2**20  # or there would be nothing to set


@pytest.mark.skipif(sys.platform != "linux", reason="the heap of glibc")
def test_threads_share_arenas(tmp_path: Path) -> None:
    assert told(ARENAS, "set", str(tmp_path / "info")) <= 2
    assert told(ARENAS, "default", str(tmp_path / "info")) > 2
