"""Memory that large arrays took goes back, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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

PIECES = """
import time
import numpy as np
from attention_service.attention.pages import Pages

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

pieces = [np.ones(2**14, np.uint8) for _ in range(4000)]
pieces = pieces[::10]  # those in between are free, and none of it is at the heap's end
before = resident()
pages = Pages()
large = pages.empty((2**24,), np.dtype(np.uint8))
del large
end = time.monotonic() + 20
while resident() > before - 40e6 and time.monotonic() < end:
    time.sleep(0.1)
print(before - resident())
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


def told(script: str, *arguments: str) -> int:
    process = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    return int(process.stdout)


def test_what_was_freed_goes_back() -> None:
    assert told(SCRIPT, "set") < 8 * 2**20
    assert told(SCRIPT, "default") > 80 * 2**20  # or there would be nothing to set


def test_pieces_between_others_go_back_once_large_arrays_have_rested() -> None:
    assert told(PIECES) > 40e6


def test_threads_share_arenas(tmp_path: Path) -> None:
    assert told(ARENAS, "set", str(tmp_path / "info")) <= 2
    assert told(ARENAS, "default", str(tmp_path / "info")) > 2
