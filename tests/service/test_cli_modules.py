"""The commands `modules list`, `show`, `add` and `remove`."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import TEXT_MODULE
from tests.service.test_cli import fails_here, run_here
from tests.service.test_repository import make


@pytest.fixture
def folder(modules: Path, tmp_path: Path) -> Path:
    """A folder with one module, whose files may be changed."""
    folder = tmp_path / "modules"
    shutil.copytree(modules / "mha", folder / "mha")
    return folder


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fails_with_output(*words: str | Path) -> str:
    result = run_here(*words)
    assert result.exit_code == 1
    return result.stderr


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, those of hidden folders too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "words", [("modules", "--modules", "{}"), ("modules", "list", "--modules", "{}"),
              ("modules", "--modules", "{}", "list")],
)  # fmt: skip
def test_list(folder: Path, words: tuple[str, ...]) -> None:
    result = run_here(*(word.format(folder) for word in words))
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.search(r"│ mha +│ multi_head │ 1 +│ 4 +│ 16 +│", result.stdout)


def test_list_says_itself_what_is_logged_and_logs_go_on(folder: Path) -> None:
    (folder / "broken").mkdir()
    result = run_here("modules", "--modules", folder)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "attention-service: refused broken: module.json cannot be read: No such file or directory"
    ]
    assert logging.getLogger("attention_service").isEnabledFor(logging.ERROR)


# --- show ------------------------------------------------------------------------------------


def test_show(modules: Path) -> None:
    result = run_here("modules", "show", TEXT_MODULE, "--modules", modules)
    manifest = json.loads((modules / TEXT_MODULE / "module.json").read_text())
    assert (result.exit_code, result.stderr) == (0, "")
    for fact, value in {
        "kind": "text",
        "heads": "12, of size 32",
        "longest text": "512 tokens",
        "licence": "Apache-2.0",
        "source": manifest["source"],
        "runs layer by layer": "yes",
    }.items():
        assert re.search(rf"│ {fact} +│ {re.escape(value)} +│", result.stdout), fact
    for file, checksum in manifest["files"].items():
        assert re.search(rf"│ {re.escape(file)} +│ {checksum} +│ whole +│", result.stdout)


def test_show_of_a_multi_head_module(folder: Path) -> None:
    text = run_here("modules", "show", "mha", "--modules", folder).stdout
    assert re.search(r"│ key size +│ 16 +│", text)
    assert "layer by layer" not in text


def test_show_tells_what_is_not_whole(folder: Path) -> None:
    manifest = json.loads((folder / "mha" / "module.json").read_text())
    manifest["files"]["LICENSE"] = "0" * 64
    (folder / "mha" / "module.json").write_text(json.dumps(manifest))
    with (folder / "mha" / "model.onnx").open("ab") as file:
        file.write(b" ")
    result = run_here("modules", "show", "mha", "--modules", folder)
    assert result.exit_code == 1
    assert "mha would be refused: " in result.stderr
    assert "model.onnx is changed" in result.stderr
    assert "LICENSE is missing" in result.stderr
    assert re.search(r"│ LICENSE +│ 0+ +│ missing +│", result.stdout)


def test_show_calls_whole_only_what_would_be_loaded(folder: Path, tmp_path: Path) -> None:
    manifest = json.loads((folder / "mha" / "module.json").read_text())
    checksum = manifest["files"]["model.onnx"]
    (tmp_path / "model.onnx").write_bytes((folder / "mha" / "model.onnx").read_bytes())
    (folder / "mha" / "loop").symlink_to("loop")
    states = {
        "../../model.onnx": "not in this folder",
        "loop": "not readable: ",
        "a\0b": "not readable: embedded null byte",
        "model.onnx": "changed",
    }
    files = dict.fromkeys(states, checksum) | {"model.onnx": checksum.upper()}
    (folder / "mha" / "module.json").write_text(json.dumps({**manifest, "files": files}))
    message = fails_with_output("modules", "show", "mha", "--modules", folder)
    for name, state in states.items():
        assert f"{name} is {state}" in message
    assert "refused mha" in run_here("modules", "--modules", folder).stderr


def test_show_of_what_cannot_be_read(folder: Path) -> None:
    def message(name: str) -> str:
        return fails_here("modules", "show", name, "--modules", folder)

    assert f"there is no module 'absent' in {folder}; there are: mha" in message("absent")
    assert "there is no module '../modules/mha'" in message("../modules/mha")
    (folder / "mha" / "module.json").write_text('{"kind": "texts"}')
    assert "module.json is not valid: kind: " in message("mha")
    (folder / "mha" / "module.json").unlink()
    assert "module.json cannot be read: No such file" in message("mha")
    missing = folder / "missing"
    text = fails_here("modules", "show", "mha", "--modules", missing)
    assert f"there is no module 'mha' in {missing}; there are: none" in text


# --- add -------------------------------------------------------------------------------------


def test_add(modules: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "modules"
    result = run_here("modules", "add", modules / "mha", "--name", "mine", "--modules", target)
    assert (result.exit_code, result.stderr) == (0, "")
    added = f"added mine to {target / 'mine'}: multi_head, 1 layers of 4 heads\n"
    assert result.stdout == added
    assert contents(target / "mine") == contents(modules / "mha")
    assert listed(target) == ["mine"]
    # By default it keeps its folder's name, and of links the files are taken.
    (tmp_path / "linked").symlink_to(modules / "mha")
    assert run_here("modules", "add", tmp_path / "linked", "--modules", target).exit_code == 0
    assert listed(target) == ["mha", "mine"]
    assert run_here("modules", "list", "--modules", target).exit_code == 0


def test_a_second_text_module_makes_calls_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = make(tmp_path / "one"), tmp_path / "modules"
    words = ("modules", "add", source, "--modules", folder)
    assert run_here(*words).stderr == ""
    assert (
        "the folder has 2 text modules now, one, two: calls have to name theirs, unless the "
        in (run_here(*words, "--name", "two").stderr)
    )
    message = fails_here("attend", "the cat", "--modules", folder)
    assert message.splitlines()[-1] == "attention-service: --module chooses one"
    monkeypatch.setenv("ATTENTION_TEXT_MODULE", "one")
    assert run_here(*words, "--name", "three").stderr == ""
    assert run_here("attend", "the cat", "--modules", folder).exit_code == 0


def test_add_replaces_only_when_forced(modules: Path, folder: Path) -> None:
    words = ("modules", "add", modules / "mha-nobias", "--name", "mha", "--modules", folder)
    before = contents(folder)
    message = fails_here(*words)
    assert f"there is a module {folder / 'mha'} already; --force replaces it" in message
    assert contents(folder) == before
    assert run_here(*words, "--force").exit_code == 0
    assert contents(folder / "mha") == contents(modules / "mha-nobias")
    assert listed(folder) == ["mha"]


def test_add_replaces_a_link_and_not_what_it_leads_to(modules: Path, tmp_path: Path) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    shutil.copytree(modules / "mha", tmp_path / "elsewhere")
    (folder / "mha").symlink_to(tmp_path / "elsewhere")
    words = ("modules", "add", modules / "mha-nobias", "--name", "mha", "--modules", folder)
    assert run_here(*words, "--force").exit_code == 0
    assert not (folder / "mha").is_symlink()
    assert contents(tmp_path / "elsewhere") == contents(modules / "mha")
    assert listed(folder) == ["mha"]


def test_add_refuses_what_cannot_serve_and_leaves_what_is_there(
    folder: Path, tmp_path: Path
) -> None:
    def broken(name: str) -> Path:
        copy = tmp_path / name
        shutil.copytree(folder / "mha", copy)
        return copy

    cut = broken("cut")
    (cut / "model.onnx").write_bytes((cut / "model.onnx").read_bytes()[:100])
    wrong = broken("wrong")
    manifest = json.loads((wrong / "module.json").read_text())
    (wrong / "module.json").write_text(json.dumps({**manifest, "num_heads": 2}))
    outside = broken("outside")
    files = {**manifest["files"], "../modules/mha/model.onnx": "0" * 64}
    (outside / "module.json").write_text(json.dumps({**manifest, "files": files}))
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    before = contents(folder)
    for source, words in {
        cut: "model.onnx does not have the checksum that module.json says",
        wrong: "where module.json says [1, 2, 2, 2]",
        outside: "which is not in this folder",
        nothing: f"attention-service export {nothing} --name mha",
        tmp_path / "absent": "there is no module.json in it",
        folder / "mha" / "module.json": "is no module",
    }.items():
        message = fails_here(
            "modules", "add", source, "--name", "mha", "--force", "--modules", folder
        )
        assert words in message, source
        assert contents(folder) == before
        assert listed(folder) == ["mha"]
    taken = fails_here("modules", "add", folder / "mha", "--name", "sdpa", "--modules", folder)
    assert "'sdpa' is what /v2 calls plain attention; choose another name" in taken
    for name in ("../mha", ".hidden", "", "a b", "a" * 65):
        message = fails_here("modules", "add", folder / "mha", "--name", name, "--modules", folder)
        assert "cannot name a module" in message
        assert contents(folder) == before
    file = tmp_path / "file"
    file.touch()
    message = fails_here("modules", "add", folder / "mha", "--modules", file / "modules")
    assert "reading or writing failed" in message


@pytest.mark.parametrize(
    ("name", "words"), [("loop", "loop is no module: "), ("a" * 300, "File name too long")]
)
def test_add_of_a_path_that_cannot_be_seen(folder: Path, name: str, words: str) -> None:
    (folder.parent / "loop").symlink_to("loop")
    before = contents(folder)
    given = ("--name", "mine") if name != "loop" else ()
    message = fails_here("modules", "add", folder.parent / name, *given, "--modules", folder)
    assert words in message
    assert contents(folder) == before


# --- remove ----------------------------------------------------------------------------------


def test_remove_asks_first(folder: Path) -> None:
    words = ("modules", "remove", "mha", "--modules", folder)
    before = contents(folder)
    for stdin in ("n\n", ""):
        result = run_here(*words, stdin=stdin)
        assert result.exit_code == 1
        assert f"Delete {folder / 'mha'}?" in result.stderr
        assert "removed" not in result.output
        last = result.stderr.splitlines()[-1]
        assert last == "attention-service: nothing was deleted; --yes deletes without asking"
        assert contents(folder) == before
    result = run_here(*words, stdin="y\n")
    assert result.exit_code == 0
    assert result.stdout.endswith(f"removed mha from {folder}\n")
    assert not listed(folder)


def test_remove_of_a_link_and_of_a_broken_folder(modules: Path, folder: Path) -> None:
    (folder / "linked").symlink_to(modules / "mha")
    (folder / "broken").mkdir()
    for name in ("linked", "broken"):
        result = run_here("modules", "remove", name, "--yes", "--modules", folder)
        assert (result.exit_code, result.stderr) == (0, "")
    assert listed(folder) == ["mha"]
    assert (modules / "mha" / "module.json").exists()


def test_remove_of_what_cannot_be_renamed(folder: Path) -> None:
    name = "a" * 250  # with what is written around it, longer than file systems take
    shutil.copytree(folder / "mha", folder / name)
    before = contents(folder)
    message = fails_here("modules", "remove", name, "--yes", "--modules", folder)
    assert f"{folder / name} cannot be removed: File name too long" in message
    assert contents(folder) == before


def test_remove_of_what_is_not_there(folder: Path) -> None:
    before = contents(folder)
    for name in ("absent", "..", "../modules", "."):
        message = fails_here("modules", "remove", name, "--yes", "--modules", folder)
        assert f"there is no module {name!r} in {folder}; there are: mha" in message
        assert contents(folder) == before
