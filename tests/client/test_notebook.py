"""The tutorial runs from top to bottom, and what is stored in it is what it gives."""

from __future__ import annotations

import copy
import os
import re
import time
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from attention_client import AttentionClient
from tests.conftest import ROOT

PATH = ROOT / "docs" / "tutorial.ipynb"
SECONDS = 60
# Where machines keep files, and who serves there.
MACHINE = re.compile(r"/(work|root|home|Users|tmp|var|usr|opt)/|[A-Z]:\\\\|127\.0\.0\.1:\d")


def read() -> nbformat.NotebookNode:
    load: Any = nbformat.read  # which has no types
    notebook: nbformat.NotebookNode = load(PATH, as_version=4)
    return notebook


def code_cells(notebook: nbformat.NotebookNode) -> dict[str, nbformat.NotebookNode]:
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def kinds(cell: nbformat.NotebookNode) -> list[tuple[str, list[str]]]:
    """What kinds of output a cell has, in their order."""
    return [(output.output_type, sorted(output.get("data", {}))) for output in cell.outputs]


def run(notebook: nbformat.NotebookNode, home: Path, **variables: str) -> None:
    """Run all cells in a process without the settings of this one."""
    others = ("ATTENTION_", "JUPYTER_", "MPLBACKEND")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    kept |= {"HOME": str(home), "IPYTHONDIR": str(home), "MPLCONFIGDIR": str(home)}
    runner: Any = NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(PATH.parent)}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_RUNTIME_DIR", str(home / "runtime"))
        runner.execute(env=kept | variables)


@pytest.fixture(scope="module")
def executed(
    service_url: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, nbformat.NotebookNode]:
    """The cells after a run against a service."""
    notebook = read()
    for cell in code_cells(notebook).values():
        cell.outputs = []
    run(notebook, tmp_path_factory.mktemp("home"), ATTENTION_URL=service_url)
    return code_cells(notebook)


@pytest.mark.slow
def test_every_cell_gives_what_is_stored(executed: dict[str, nbformat.NotebookNode]) -> None:
    stored = code_cells(read())
    assert list(executed) == list(stored)
    for name, cell in executed.items():
        assert kinds(cell) == kinds(stored[name]), name
        if name not in {"classes", "ablation"}:  # numbers that are not the same to every digit
            assert printed(cell) == printed(stored[name]), name


@pytest.mark.slow
def test_no_cell_says_that_something_is_false(executed: dict[str, nbformat.NotebookNode]) -> None:
    told = {name: printed(cell) for name, cell in executed.items()}
    assert sum(text.count("True") for text in told.values()) == 14
    assert not [name for name, text in told.items() if "False" in text]


@pytest.mark.slow
def test_the_induction_head(executed: dict[str, nbformat.NotebookNode]) -> None:
    assert printed(executed["guesses"]).splitlines()[-1].split() == ["a", "→", "bird"]
    assert "layer 1: [None, 'induction']" in printed(executed["labels"])
    assert "layer 0: ['previous', None]" in printed(executed["labels"])
    assert float(printed(executed["labels"]).split()[-1]) > 0.99
    assert "layer 1: [None, 'first']" in printed(executed["composition"])
    assert "induction score: 0.000" in printed(executed["composition"])


@pytest.mark.slow
def test_what_is_told_of_the_sentence(
    executed: dict[str, nbformat.NotebookNode], client: AttentionClient
) -> None:
    sentence = "The animal didn't cross the street because it was too tired."
    result = client.text_attention(sentence)
    weights, it = result.weights.astype(np.float64), result.tokens.index("it")
    row = weights[3, 1, it]
    assert (
        printed(executed["coreference"]) == f"it → {result.tokens[row.argmax()]} {row.max():.2f}\n"
    )
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    entropy = -(weights * logs).sum(-1).mean(-1)
    for line, find in zip(
        printed(executed["classes"]).splitlines()[:2], (np.argmin, np.argmax), strict=True
    ):
        layer, head = np.unravel_index(find(entropy), entropy.shape)
        assert f"is layer {layer}, head {head}: {entropy[layer, head]:.2f} nats" in line


ASIDE = """
print(client.text_attention("The cat sat.", layers=[0], heads=[0]).module)
print(len(services), repr(client))
"""


@pytest.mark.slow
def test_it_starts_a_service_of_its_own_and_ends_it(tmp_path: Path) -> None:
    notebook = read()
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    aside = copy.deepcopy(first)
    aside.update(id="aside", source=ASIDE)
    notebook.cells = [first, aside]
    run(notebook, tmp_path)
    module, told = printed(aside).splitlines()
    assert module == "all-MiniLM-L6-v2"
    found = re.fullmatch(r"1 AttentionClient\('(http://127\.0\.0\.1:\d+)'\)", told)
    assert found is not None
    deadline = time.monotonic() + SECONDS
    with AttentionClient(found[1]) as client:
        while client.ready():
            assert time.monotonic() < deadline, "the service outlives the notebook"
            time.sleep(0.1)


# --- What is stored --------------------------------------------------------------------


def test_the_stored_notebook_was_run_from_top_to_bottom() -> None:
    notebook = read()
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells.values()] == list(range(1, len(cells) + 1))
    for name, cell in cells.items():
        is_quiet = "quiet" in cell.metadata.tags
        assert bool(cell.outputs) != is_quiet, name
        assert not [one for one in cell.outputs if one.output_type == "error"], name
        assert not [one for one in cell.outputs if one.get("name") == "stderr"], name


def test_the_stored_notebook_tells_nothing_of_a_machine() -> None:
    written = PATH.read_text("utf-8")
    assert MACHINE.search(written) is None
    assert len(written) < 400_000


def test_every_page_that_is_linked_is_there() -> None:
    text = "".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    pages = re.findall(r"\]\(([^)#:]+)\)", text)
    assert len(pages) == 3
    assert all((PATH.parent / Path(page)).is_file() for page in pages)
