"""Which threads of a running service run first, as the kernel tells it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import asyncio, json, os, sys
from pathlib import Path
from attention_service.attention.engine import Engine
from attention_service.modules.loading import load
from attention_service.priority import take_all_files
from attention_service.serving.admission import Admission

def nice():
    tasks = Path("/proc/self/task").iterdir()
    return {int(t.name): os.getpriority(os.PRIO_PROCESS, int(t.name)) for t in tasks}

async def main():
    take_all_files()
    before = nice()
    engine = Engine("cpu", 3)
    module = load(Path(sys.argv[1]), engine)  # three threads, one of which is the caller's
    of_session = {t: n for t, n in nice().items() if t not in before}
    engine.lanes.run([lambda: None] * 8)
    admission = Admission(1, 1, 1)
    of_work = await admission.run(lambda: os.getpriority(os.PRIO_PROCESS, 0))
    names = {t: n for t, n in nice().items() if t not in before and t not in of_session}
    admission.close()
    print(json.dumps([of_session, names, of_work, os.getpriority(os.PRIO_PROCESS, 0)]))

asyncio.run(main())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are nice on Linux only")
def test_threads_that_compute_step_back_and_the_loop_does_not(modules: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(modules / "example")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    of_session, others, of_work, of_loop = json.loads(done.stdout)
    assert len(of_session) >= 2
    assert set(of_session.values()) == {10}
    assert len(others) >= 3  # two lanes beside the caller's own, and the place's
    assert set(others.values()) == {10}
    assert (of_work, of_loop) == (10, os.getpriority(os.PRIO_PROCESS, 0))


def test_all_files_that_may_be_open_may_be() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, "
        "(256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]));"
        "from attention_service.priority import take_all_files; take_all_files();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
