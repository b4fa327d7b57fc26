"""What the operating system lets run first: the event loop before the threads that compute."""

from __future__ import annotations

import os
import resource
import sys
from threading import get_native_id

# The least that matters beside several threads that compute all the time.
_NICE = 10


def step_back() -> None:
    """Let this thread, and those that it starts, run after the threads that answer.

    On Linux each thread has a niceness of its own (setpriority(2)); elsewhere nothing changes.
    Computing loses nothing by it: it gets whatever the others leave, and they need little.
    """
    if sys.platform.startswith("linux"):
        os.setpriority(os.PRIO_PROCESS, get_native_id(), _NICE)


def take_all_files() -> None:
    """Let this process hold as many connections as the system allows, not the default of 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
