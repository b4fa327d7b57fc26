"""Module folders that are broken: refused at start by name with the reason, while others serve."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attention_service.settings import Settings
from tests.api.support import TEXT, Caller, check_problem
from tests.conftest import TEXT_MODULE, RunningService


def manifest(folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((folder / "module.json").read_text(encoding="utf-8"))
    return fields


def set_manifest(folder: Path, **change: Any) -> None:
    fields = {**manifest(folder), **change}
    (folder / "module.json").write_text(json.dumps(fields), encoding="utf-8")


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Another content, with a checksum to match, so that something else must notice."""
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    checksum = hashlib.sha256(content).hexdigest()
    set_manifest(folder, files={**manifest(folder)["files"], name: checksum})


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)


def cut_the_model(folder: Path) -> None:
    content = (folder / "model.onnx").read_bytes()
    replace_file(folder, "model.onnx", content[: len(content) // 2])


def take_an_output_away(folder: Path) -> None:
    set_manifest(folder, outputs={"output": "output", "weights": ["other"]})


def name_a_file_outside(folder: Path) -> None:
    files = manifest(folder)["files"]
    set_manifest(folder, files={**files, "../example/model.onnx": files["model.onnx"]})


# What is done to a copy of a good multi-head module, and what the reason says.
BREAKAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no-manifest": (lambda f: (f / "module.json").unlink(), ("module.json", "No such file")),
    "empty-manifest": (lambda f: (f / "module.json").write_bytes(b""), ("module.json", "valid")),
    "junk-manifest": (lambda f: (f / "module.json").write_bytes(b"\xff"), ("module.json", "valid")),
    "other-format": (lambda f: set_manifest(f, format=2), ("module.json", "format")),
    "unknown-field": (lambda f: set_manifest(f, heads=4), ("module.json", "heads")),
    "no-heads": (lambda f: set_manifest(f, num_heads=0), ("module.json", "num_heads")),
    "no-checksum": (lambda f: set_manifest(f, files={}), ("no checksum for model.onnx",)),
    "file-outside": (name_a_file_outside, ("../example/model.onnx", "not in this folder")),
    "missing-model": (lambda f: (f / "model.onnx").unlink(), ("model.onnx is missing",)),
    "bad-checksum": (flip_a_bit, ("model.onnx", "checksum", "damaged or changed")),
    "truncated-model": (cut_the_model, ("model.onnx cannot be loaded",)),
    "empty-model": (lambda f: replace_file(f, "model.onnx", b""), ("model.onnx cannot be loaded",)),
    "junk-model": (lambda f: replace_file(f, "model.onnx", bytes(99)), ("model.onnx", "loaded")),
    "other-output": (take_an_output_away, ("model.onnx has no output other",)),
    "other-kind": (lambda f: set_manifest(f, kind="text"), ("no checksum for tokenizer.json",)),
    "other-heads": (lambda f: set_manifest(f, num_heads=8), ("module.json says", "[1, 8, 2, 2]")),
    "other-width": (lambda f: set_manifest(f, embed_dim=17), ("model.onnx", "does not run")),
}  # fmt: skip
TEXT_BREAKAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "text-no-tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(), ("tokenizer.json is missing",)
    ),
    "text-junk-tokenizer": (
        lambda f: replace_file(f, "tokenizer.json", b"{}"), ("tokenizer.json cannot be read",)
    ),
    "text-longer-than-it-is": (
        lambda f: set_manifest(f, max_length=10_000), ("model.onnx", "does not run")
    ),
}  # fmt: skip
REASONS = {name: says for name, (_, says) in (BREAKAGES | TEXT_BREAKAGES).items()}


@pytest.fixture(scope="module")
def broken_url(
    modules: Path,
    tmp_path_factory: pytest.TempPathFactory,
    start_service: Callable[[Settings], RunningService],
) -> str:
    """A service over a folder in which most modules are broken."""
    folder = tmp_path_factory.mktemp("broken")
    for name in ("mha", TEXT_MODULE):
        shutil.copytree(modules / name, folder / name)
    for name, (breakage, _) in BREAKAGES.items():
        shutil.copytree(folder / "mha", folder / name)
        breakage(folder / name)
    for name, (breakage, _) in TEXT_BREAKAGES.items():
        # Linked, for the model is large, and none of these writes to it.
        shutil.copytree(folder / TEXT_MODULE, folder / name, copy_function=os.link)
        (folder / name / "module.json").unlink()
        shutil.copy(folder / TEXT_MODULE / "module.json", folder / name)
        breakage(folder / name)
    (folder / "a-file").write_text("no module")
    (folder / ".unfinished").mkdir()
    return start_service(Settings(modules=folder, provider="cpu")).url


@pytest.fixture
def broken(broken_url: str) -> Iterator[Caller]:
    """Calls that service, which still serves afterwards."""
    caller = Caller(broken_url)
    yield caller
    caller.must_serve()
    caller.close()


def test_every_broken_folder_is_refused_by_name_and_no_other(broken: Caller) -> None:
    told = broken.ask("GET", "/v1/modules").json()
    assert {module["name"] for module in told["modules"]} == {"mha", TEXT_MODULE}
    assert {module["name"] for module in told["refused"]} == set(REASONS)


@pytest.mark.parametrize("name", REASONS)
def test_a_refused_module_says_why_wherever_it_is_called(broken: Caller, name: str) -> None:
    told = broken.ask("GET", "/v1/modules").json()["refused"]
    (reason,) = (module["reason"] for module in told if module["name"] == name)
    for words in REASONS[name]:
        assert words in reason, reason
    says = (repr(name), "was refused", reason)
    check_problem(broken.ask("GET", f"/v1/modules/{name}"), 404, "unknown_module", says=says)
    answer = broken.post(f"/v1/modules/{name}/attention", {"query": [[[0] * 16]]})
    check_problem(answer, 404, "unknown_module", says=says)
    answer = broken.post(TEXT, {"text": "a", "module": name})
    check_problem(answer, 404, "unknown_module", "module", says=says)


def test_the_others_serve(broken: Caller) -> None:
    assert broken.ask("GET", "/readyz").status_code == 200
    answer = broken.post("/v1/modules/mha/attention", {"query": [[[1] * 16, [0] * 16]]})
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(np.sum(answer.json()["weights"], axis=-1), 1, atol=1e-5)
    answer = broken.post(TEXT, {"text": "a cat", "layers": [0], "heads": [0]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["module"] == TEXT_MODULE  # the only one that was not refused


@pytest.mark.slow
def test_several_text_modules_ask_for_a_choice_unless_one_is_the_default(
    modules: Path, tmp_path: Path, start_service: Callable[[Settings], RunningService]
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).symlink_to((modules / TEXT_MODULE).resolve())
    fields = {"text": "a", "layers": [0], "heads": [0]}
    caller = Caller(start_service(Settings(modules=tmp_path, provider="cpu")).url)
    check_problem(caller.post(TEXT, fields), 422, "module_not_chosen", "module", says=("one, two",))
    assert caller.post(TEXT, fields | {"module": "two"}).json()["module"] == "two"
    caller.close()
    default = Settings(modules=tmp_path, provider="cpu", text_module="two")
    caller = Caller(start_service(default).url)
    assert caller.post(TEXT, fields).json()["module"] == "two"
    assert caller.post(TEXT, fields | {"module": "one"}).json()["module"] == "one"
    caller.close()


def test_a_default_text_module_that_is_not_there_says_so(
    tmp_path: Path, start_service: Callable[[Settings], RunningService]
) -> None:
    settings = Settings(modules=tmp_path, provider="cpu", text_module="gone")
    caller = Caller(start_service(settings).url)
    check_problem(caller.post(TEXT, {"text": "a"}), 404, "unknown_module", says=("'gone'",))
    caller.must_serve()
    caller.close()
