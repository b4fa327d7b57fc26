"""The package's public names are a sorted list, and complete."""

from __future__ import annotations

import inspect
import tomllib

import attention_client
from attention_client import errors
from tests.conftest import ROOT


def test_the_list_is_sorted() -> None:
    assert attention_client.__all__ == sorted(attention_client.__all__)


def test_whatever_is_imported_there_is_listed() -> None:
    names = {
        name
        for name, value in vars(attention_client).items()
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
    }
    assert names == set(attention_client.__all__) - {"__version__"}


def test_every_exception_is_public() -> None:
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    exceptions = {name for name in classes if issubclass(getattr(errors, name), BaseException)}
    assert exceptions <= set(attention_client.__all__)
    assert len(exceptions) == 19


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert attention_client.__version__ == project["version"]
