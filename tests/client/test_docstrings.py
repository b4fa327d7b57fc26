"""Every example of the client's docstrings, run against the real service."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import inspect
import pkgutil

import pytest

import attention_client
import attention_wire.maps
from attention_client import AsyncAttentionClient, AttentionClient

MODULES = [attention_client, attention_wire.maps] + [
    importlib.import_module(f"attention_client.{found.name}")
    for found in pkgutil.iter_modules(attention_client.__path__)
]
FINDER = doctest.DocTestFinder(exclude_empty=True)
EXAMPLES = {test.name: test for module in MODULES for test in FINDER.find(module) if test.examples}
# What needs a library that is none of ours is run with it, by `make parity`.
RUN = [
    name
    for name, test in EXAMPLES.items()
    if not all(example.options.get(doctest.SKIP) for example in test.examples)
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", RUN)
def test_example(
    name: str, client: AttentionClient, service_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTENTION_URL", service_url)
    test = EXAMPLES[name]
    test.globs = {
        "AsyncAttentionClient": AsyncAttentionClient,
        "AttentionClient": AttentionClient,
        "asyncio": asyncio,
        "attention_map": attention_client.attention_map,
        "client": client,
    }
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(test, out=report.append, clear_globs=False)
    assert runner.failures == 0, "".join(report)


def methods(kind: type) -> list[str]:
    return [name for name in vars(kind) if not name.startswith("_") and callable(vars(kind)[name])]


def test_every_public_call_has_an_example() -> None:
    for kind in (AttentionClient, AsyncAttentionClient, attention_client.TextAttention):
        name = f"{kind.__module__}.{kind.__name__}"
        assert name in EXAMPLES
        missing = [method for method in methods(kind) if f"{name}.{method}" not in EXAMPLES]
        assert not missing, name
    assert "attention_wire.maps.attention_map" in EXAMPLES
    assert "attention_client.results.AttentionResult" in EXAMPLES


def test_both_clients_take_the_same() -> None:
    names = {"close": "aclose"}
    for name in methods(AttentionClient):
        sync = getattr(AttentionClient, name)
        other = getattr(AsyncAttentionClient, names.get(name, name))
        assert inspect.signature(sync) == inspect.signature(other), name
        assert inspect.iscoroutinefunction(other) == (name != "with_options"), name
    assert len(methods(AttentionClient)) == len(methods(AsyncAttentionClient)) == 9
