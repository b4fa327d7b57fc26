"""Fixtures of the tests of the installed command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import TEXT_MODULE
from tests.service.served import Command


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment without the settings, colours and caches of who runs the tests."""
    others = ("ATTENTION_", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return kept | {"HOME": str(tmp_path)}


@pytest.fixture(scope="session")
def text_module(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module folder with the default text module alone."""
    folder = tmp_path_factory.mktemp("text-module")
    (folder / TEXT_MODULE).symlink_to(modules / TEXT_MODULE)
    return folder


@pytest.fixture
def command(environment: dict[str, str]) -> Command:
    return Command(environment)
