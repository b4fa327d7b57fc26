"""The installed command `attention-service`, as a process of its own."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from attention_service.cli import app
from attention_service.settings import Settings
from tests.conftest import GOLDENS, TEXT_MODULE
from tests.service.served import COMMAND, OUTPUT, TENSORS, WEIGHTS, Command

STATE_DICT = GOLDENS / "multi_head_bias.safetensors"


def run_here(*words: str | Path, stdin: str = "") -> Result:
    """The command in this process, which has long loaded all that it needs."""
    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def fails_here(*words: str | Path, stdin: str = "") -> str:
    result = run_here(*words, stdin=stdin)
    assert (result.exit_code, result.stdout) == (1, "")
    return result.stderr


@pytest.mark.slow
def test_a_provider_that_is_not_installed(command: Command) -> None:
    expected = "the provider 'coreml' is not in the installed ONNX Runtime; it has "
    assert expected in command.fails("serve", "--provider", "coreml")  # there is none for Linux
    assert expected in fails_here("check", "--provider", "coreml")
    assert expected in fails_here("attend", "text", "--provider", "coreml")


# --- export and modules ----------------------------------------------------------------------


@pytest.mark.slow
def test_export(command: Command, tmp_path: Path) -> None:
    words = ("export", STATE_DICT, "--num-heads", "4", "--name", "mha", "--modules", tmp_path)
    result = command(*words)
    assert result.returncode == 0, result
    assert result.stdout == f"exported mha to {tmp_path / 'mha'}\n"
    manifest = json.loads((tmp_path / "mha" / "module.json").read_text())
    assert (manifest["kind"], manifest["num_heads"]) == ("multi_head", 4)
    # In a pipe, too, one sees how far it is: a line a stage, each further than the one before.
    lines = result.stderr.splitlines()
    assert "reading the source" in lines[0]
    assert "building the graph" in result.stderr
    parts = [int(part) for part in re.findall(r"^ *(\d+)% \S", result.stderr, re.MULTILINE)]
    assert len(parts) == len(lines) > 3
    assert (parts, parts[0], parts[-1]) == (sorted(parts), 0, 100)

    listed = command("modules", "--modules", tmp_path)
    assert listed.returncode == 0
    assert re.search(r"│ mha +│ multi_head │ 1 +│ 4 +│", listed.stdout)
    assert not listed.stderr


def test_export_replaces_only_when_forced(tmp_path: Path) -> None:
    words = ("export", STATE_DICT, "--name", "mha", "--modules", tmp_path)
    assert run_here(*words, "--num-heads", "4").exit_code == 0
    before = (tmp_path / "mha" / "module.json").read_bytes()
    message = fails_here(*words, "--num-heads", "2")
    assert "there is a module" in message
    assert "force" in message
    assert (tmp_path / "mha" / "module.json").read_bytes() == before
    assert run_here(*words, "--num-heads", "2", "--force").exit_code == 0
    assert json.loads((tmp_path / "mha" / "module.json").read_text())["num_heads"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mha"]


@pytest.mark.slow
def test_export_draws_a_bar_in_a_terminal(environment: dict[str, str], tmp_path: Path) -> None:
    words = ["export", STATE_DICT, "--num-heads", "4", "--name", "mha", "--modules", tmp_path]
    here, there = pty.openpty()
    with subprocess.Popen(
        [str(COMMAND), *map(str, words)],
        env=environment | {"TERM": "xterm", "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=there,
    ) as process:
        os.close(there)
        seen = b""
        try:
            while part := os.read(here, 4096):
                seen += part
        except OSError:
            pass  # so ends a terminal that nobody holds open
        os.close(here)
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert process.stdout.read().startswith(b"exported mha to ")
    text = seen.decode()
    assert "━━━" in text
    assert "100%" in text
    assert "\r" in text


def test_export_says_what_it_lacks(tmp_path: Path) -> None:
    words = ("export", STATE_DICT, "--name", "mha", "--modules", tmp_path / "modules")
    message = fails_here(*words)
    assert message.splitlines()[-1].startswith("attention-service: a state dict does not hold")
    assert "--num-heads" in message
    assert not list(tmp_path.rglob("module.json"))


@pytest.mark.slow
def test_modules_lists_what_serves_and_what_is_refused(
    command: Command, modules: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a folder with a name that is long enough to be folded in a table" / "[b]"
    folder.mkdir(parents=True)
    for name, source in {"mha [b]": "mha", TEXT_MODULE: TEXT_MODULE}.items():
        (folder / name).symlink_to(modules / source)
    (folder / "broken").mkdir()
    result = command("modules", "--modules", folder)
    assert result.returncode == 1
    assert re.search(r"│ mha \[b\] +│ multi_head │ 1 +│ 4 +│ 16 +│ +│ unknown +│", result.stdout)
    assert re.search(
        rf"│ {TEXT_MODULE} +│ text +│ 6 +│ 12 +│ 384 +│ 512 +│ Apache-2\.0 +│", result.stdout
    )
    assert result.stderr == (  # once, in one line
        "attention-service: refused broken: module.json cannot be read: No such file or directory\n"
    )


@pytest.mark.slow
def test_modules_of_a_folder_that_is_not_there(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the modules of make are elsewhere
    message = command.fails("modules", "--modules", tmp_path / "missing")
    assert message == f"attention-service: the folder {tmp_path / 'missing'} does not exist\n"
    result = command("modules")  # whose default it is need not exist
    assert (result.returncode, result.stderr) == (0, "")
    folder = tmp_path / ".cache" / "attention-service" / "modules"
    assert result.stdout == f"There is no module in {folder}.\n"


def test_the_modules_of_make_are_pointed_to_and_not_taken(
    text_module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".modules").symlink_to(text_module)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    hint = f"the folder .modules here has {TEXT_MODULE}: take it with --modules .modules, or "
    assert hint in fails_here("attend", "text", "--modules", "other")
    assert hint in run_here("modules", "--modules", "other").stderr
    words = ("attend", "text", "--modules", ".modules", "--module", "absent")
    assert ".modules here" not in fails_here(*words)


# --- check -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_check(command: Command) -> None:
    result = command("check", "--provider", "cpu", ATTENTION_THREADS="1")
    assert result.returncode == 0, result
    assert result.stdout.startswith("CPUExecutionProvider, 1 threads\n")
    dtypes = [rf" {dtype} +┃" for dtype in ("float16", "bfloat16", "float32", "float64")]
    assert re.search(rf"┃ options +┃{''.join(dtypes)}", result.stdout)
    assert re.search(r"│ causal +│( \d+e-\d+ ok │){4}", result.stdout)
    assert "WRONG" not in result.stdout


# --- attend ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_attend_to_a_text(command: Command, text_module: Path) -> None:
    words = ("attend", "The cat sat.", "--json", "--modules", text_module)
    result = command(*words, "--layer", "3", "--head", "1")
    assert (result.returncode, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    assert answer["module"] == TEXT_MODULE
    assert answer["results"][0]["tokens"] == ["[CLS]", "the", "cat", "sat", ".", "[SEP]"]
    weights = np.array(answer["results"][0]["weights"])
    assert weights.shape == (1, 1, 6, 6)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    all_weights = np.array(json.loads(run_here(*words).stdout)["results"][0]["weights"])
    assert all_weights.shape == (6, 12, 6, 6)
    np.testing.assert_allclose(all_weights[3:4, 1:2], weights, rtol=1e-5)


@pytest.mark.slow
def test_attend_to_tensors_from_standard_input(command: Command) -> None:
    result = command("attend", "-", stdin=json.dumps(TENSORS))
    assert (result.returncode, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    assert set(answer) == {"output", "weights", "provider"}
    np.testing.assert_allclose(answer["output"], OUTPUT, rtol=1e-6)
    np.testing.assert_allclose(answer["weights"], WEIGHTS, rtol=1e-6)


def test_attend_to_tensors_in_a_file(tmp_path: Path) -> None:
    document = tmp_path / "request.json"
    document.write_text(json.dumps(TENSORS))
    answer = json.loads(run_here("attend", document).stdout)
    np.testing.assert_allclose(answer["output"], OUTPUT, rtol=1e-6)
    result = run_here("attend", document, "--tensor-format", "base64")
    output = json.loads(result.stdout)["output"]
    assert (output["dtype"], output["shape"]) == ("float32", [2, 2])
    data = np.frombuffer(base64.b64decode(output["data"]), "<f4").reshape(2, 2)
    np.testing.assert_array_equal(data, np.float32(answer["output"]))


@pytest.mark.slow
def test_attend_with_a_module(modules: Path) -> None:
    def attend(module: str, **fields: Any) -> Result:
        words = ("attend", "-", "--modules", modules, "--module", module)
        return run_here(*words, stdin=json.dumps({**fields, "return": {"output": False}}))

    query = np.random.default_rng(0).standard_normal((1, 3, 16)).tolist()
    answer = json.loads(attend("mha", query=query).stdout)
    assert set(answer) == {"weights", "module", "provider"}
    assert np.shape(answer["weights"]) == (1, 4, 3, 3)
    pair = json.loads(attend(TEXT_MODULE, text="a b", text_pair="c").stdout)
    assert pair["results"][0]["tokens"] == ["[CLS]", "a", "b", "[SEP]", "c", "[SEP]"]
    for module, fields, problem in (
        ("mha", {"text": "a"}, "'mha' is a multi-head module, which takes no text"),
        (TEXT_MODULE, {"query": query}, f"'{TEXT_MODULE}' is a text module, which takes no"),
        ("nobody", {"query": query}, f"there is no module 'nobody' in {modules}; there are: "),
        ("nobody", {"text": "a"}, f"there is no module 'nobody' in {modules}; there are: "),
    ):
        result = attend(module, **fields)
        assert (result.exit_code, result.stdout) == (1, "")
        assert problem in result.stderr


@pytest.mark.slow
def test_attend_says_what_is_wrong(
    text_module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "absent.json cannot be read: No such file" in fails_here("attend", "absent.json")
    no_module = fails_here("attend", "text", "--modules", tmp_path)
    assert f"attention-service export sentence-transformers/{TEXT_MODULE} " in no_module
    layer = fails_here("attend", "text", "--modules", text_module, "--layer", "6")
    assert layer.startswith("attention-service: --layer: there is no layer 6: ")
    for stdin, words in {
        '{"query": [[1]]}': ["key: is missing", "value: is missing"],
        '{"query": [[1]], "query": [[1]]}': ["query: given more than once"],
        '{"query": [[1],': ["not valid JSON"],
    }.items():
        message = fails_here("attend", "-", stdin=stdin)
        assert all(word in message for word in words), message
    monkeypatch.setenv("ATTENTION_MAX_ANSWER_BYTES", "1024")
    assert "at most 1024 are sent" in fails_here("attend", "-", stdin=json.dumps(TENSORS))
    monkeypatch.delenv("ATTENTION_MAX_ANSWER_BYTES")
    monkeypatch.setenv("ATTENTION_MEMORY_BUDGET_BYTES", str(2**20))
    one_head = ("--modules", text_module, "--layer", "0", "--head", "0")
    long = fails_here("attend", "word " * 500, *one_head)
    assert "of memory; at most 1048576 may be taken" in long


# --- The command itself ----------------------------------------------------------------------


@pytest.mark.slow
def test_version_and_help(command: Command) -> None:
    assert command("--version").stdout == f"attention-service {version('attention-service')}\n"
    text = command("--help").stdout
    for name in ("serve", "export", "modules", "check", "attend"):
        assert re.search(rf"│ {name} ", text)
    serve = command("serve", "--help", COLUMNS="160").stdout
    for name in Settings.model_fields:
        assert re.search(rf"ATTENTION_{name.upper()}\b", serve)


BLOCKER = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""
EXTRA = ["fastapi", "onnxruntime", "pydantic_settings", "rich", "starlette", "typer", "uvicorn"]


@pytest.mark.slow
@pytest.mark.parametrize("missing", [EXTRA, ["onnxruntime"]], ids=["all", "onnxruntime"])
def test_without_the_extra_it_says_what_to_install(
    command: Command, tmp_path: Path, missing: list[str]
) -> None:
    """As in the base install; Python imports a sitecustomize at its start."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(missing=missing))
    for words in ([], ["--help"], ["serve"]):
        message = command.fails(*words, PYTHONPATH=str(tmp_path))
        assert re.search(rf"the package '({'|'.join(missing)})' is not installed", message)
        assert "pip install 'attention-service[server]'" in message
        assert "[server-gpu]" in message


@pytest.mark.slow
def test_a_missing_part_of_our_own_is_not_blamed_on_the_extra(
    command: Command, tmp_path: Path
) -> None:
    missing = BLOCKER.replace('.partition(".")[0]', "").format(missing=["attention_service.cli"])
    (tmp_path / "sitecustomize.py").write_text(missing)
    result = command("--help", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "No module named 'attention_service.cli'" in result.stderr
    assert "pip install" not in result.stderr
