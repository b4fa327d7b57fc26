"""A running service for the tests of what calls it from outside of Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.harness import serving


@pytest.fixture(scope="session")
def url(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one with the text module."""
    with serving(modules, tmp_path_factory.mktemp("service") / "service.log") as service:
        yield service.url
