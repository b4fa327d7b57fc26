"""docs/security.md: every test that it names exists."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

NAMED = sorted(
    set(re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", (ROOT / "docs/security.md").read_text()))
)


def test_it_names_tests() -> None:
    assert len(NAMED) > 10


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_the_test_exists(path: str, name: str) -> None:
    source = (ROOT / path).read_text()
    assert f"def {name}(" in source if name else "def test_" in source
