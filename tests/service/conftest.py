"""Fixtures of the tests of the installed command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import TEXT_MODULE
from tests.service.served import Command


@pytest.fixture(scope="session")
def text_module(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module folder with the default text module alone."""
    folder = tmp_path_factory.mktemp("text-module")
    (folder / TEXT_MODULE).symlink_to(modules / TEXT_MODULE)
    return folder


@pytest.fixture
def command(environment: dict[str, str]) -> Command:
    return Command(environment)
