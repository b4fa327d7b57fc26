"""A headless Chromium that visits the page, and what it has seen there.

The browser is driven from an environment of its own (`make test-system` makes it). Each scenario is
a function of a file in `browser/`, which says what it saw as JSON; the tests compare that with the
service's own answers.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.system.harness import REPOSITORY, run

PYTHON = REPOSITORY / "build" / "browser" / "bin" / "python"
DRIVE = REPOSITORY / "tests" / "system" / "page" / "browser" / "drive.py"
Array = np.ndarray[Any, Any]


def visit(scenario: str, url: str, folder: Path, *, timeout: float = 150, **options: Any) -> Any:
    """What a scenario tells; the page must have logged no error and asked no other origin.

    Args:
        scenario: file and function, as in ``explore.views``.
        url: of the service.
        folder: where the scenario puts its files.
        timeout: in seconds.
        options: of the scenario and of the visit: `width`, `height`, `dark` and `errors`, the
            number of errors that the console is to have (a refused call is logged as one).
    """
    chromium = shutil.which("chromium")
    if not PYTHON.exists() or chromium is None:
        pytest.fail("there is no browser: `make test-system` installs it", pytrace=False)
    command: list[str | Path] = [PYTHON, DRIVE, chromium, scenario, url, folder]
    printed = run([*command, json.dumps(options)], timeout=timeout)
    seen = json.loads(printed)
    assert seen["foreign"] == []
    assert seen["faults"] == []
    assert len(seen["errors"]) == options.get("errors", 0), seen["errors"]
    return seen["told"]


def asked(url: str, **body: Any) -> dict[str, Any]:
    """The result of a text, from the service itself."""
    fields = {"return": {"output": False}, **body}
    answer = httpx.post(f"{url}/v1/text/attention", json=fields, timeout=60, trust_env=False)
    return dict(answer.raise_for_status().json()["results"][0])


def weights(url: str, **body: Any) -> Array:
    """The weights of a text, [layers, heads, U, U]."""
    return np.array(asked(url, **body)["weights"])


def table(path: Path) -> list[list[str]]:
    """The rows of a CSV file (RFC 4180) in UTF-8."""
    return list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))
