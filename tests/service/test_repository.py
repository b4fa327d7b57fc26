"""The module repository over small modules made by hand: an ONNX file, a tokenizer, a manifest.

What damage to exported modules gives over HTTP is in tests/api/test_broken_modules.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tokenizers
from onnx import TensorProto, helper, numpy_helper

from attention_service.attention.engine import Engine
from attention_service.modules.folder import ModuleFolder
from attention_service.modules.text_job import TextJob
from attention_wire.problems import Code, ProblemError
from attention_wire.schemas import TextRequest

LONGEST, WIDTH, HEADS = 6, 4, 2
WORDS = ["[PAD]", "[CLS]", "[SEP]", "the", "cat", "sat"]
TABLE = np.random.default_rng(0).standard_normal((len(WORDS), WIDTH)).astype(np.float32)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def model(
    inputs: tuple[str, ...] = INPUTS,
    element_type: int = TensorProto.INT64,
    heads: int = HEADS,
    outputs: tuple[str, ...] = ("output", "weights.0"),
) -> bytes:
    """Embeddings E; each head has the weights W = softmax(EEᵀ) [B,H,L,L], the output is WE.

    Like a real model it has no more positions than it says, and fails on a longer text.
    """
    nodes = [
        helper.make_node("Cast", [inputs[0]], ["rows_of_table"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "rows_of_table"], ["embedded"]),
        helper.make_node("Shape", ["rows_of_table"], ["length"], start=1, end=2),
        helper.make_node("Slice", ["positions", "zero", "length", "zero"], ["position"]),
        helper.make_node("Add", ["embedded", "position"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["columns"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["rows", "columns"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"]),
        helper.make_node("MatMul", ["weights", "rows"], [outputs[0]]),
        helper.make_node("Unsqueeze", ["weights", "one"], ["of_one_head"]),
        helper.make_node("Concat", ["of_one_head"] * heads, [outputs[1]], axis=1),
    ]
    constants: dict[str, np.ndarray[Any, Any]] = {
        "table": TABLE,
        "positions": np.zeros((LONGEST, WIDTH), np.float32),
        "zero": np.zeros(1, np.int64),
        "one": np.ones(1, np.int64),
    }
    shapes: dict[str, list[str | int | None]] = {
        outputs[0]: ["B", "L", WIDTH],
        outputs[1]: ["B", heads, "L", "S"],
    }
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info(name, element_type, ["B", "L"]) for name in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, dims) for n, dims in shapes.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = helper.make_operatorsetid("", 21)
    made = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.checker.check_model(made)
    content: bytes = made.SerializeToString()
    return content


def tokenizer() -> bytes:
    """Words apart, between the marks of BERT."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[PAD]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return made.to_str().encode()


FIELDS: dict[str, Any] = {
    "kind": "text",
    "num_heads": HEADS,
    "num_layers": 1,
    "embed_dim": WIDTH,
    "key_dim": WIDTH,
    "value_dim": WIDTH,
    "head_dim": 2,
    "max_length": LONGEST,
    "outputs": {"weights": ["weights.0"]},
}


def make(folder: Path, files: dict[str, bytes] | None = None, **fields: Any) -> Path:
    """A text module whose checksums match whatever its files hold."""
    folder.mkdir(parents=True)
    written = {"model.onnx": model(), "tokenizer.json": tokenizer(), **(files or {})}
    for name, content in written.items():
        (folder / name).write_bytes(content)
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
    set_manifest(folder, **{"files": checksums, **fields})
    return folder


def set_manifest(folder: Path, **fields: Any) -> None:
    path = folder / "module.json"
    old = json.loads(path.read_text()) if path.exists() else FIELDS
    path.write_text(json.dumps({**old, **fields}))


def add_file(folder: Path, name: str, checksum: str = "0" * 64) -> None:
    files = json.loads((folder / "module.json").read_text())["files"]
    set_manifest(folder, files={**files, name: checksum})


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("cpu", 1)


def reason(folder: Path, engine: Engine) -> str:
    """Why the only module of a folder is refused."""
    repository = ModuleFolder(folder, engine).look()
    assert repository.infos() == []
    (refused,) = repository.refused
    assert refused.name == next(folder.iterdir()).name
    return refused.reason


# --- What serves -----------------------------------------------------------------------------


def test_any_onnx_file_with_the_names_of_its_manifest_serves(
    tmp_path: Path, engine: Engine
) -> None:
    make(tmp_path / "mine", license="MIT", source="by hand")
    repository = ModuleFolder(tmp_path, engine).look()
    assert repository.refused == []
    (info,) = repository.infos()
    assert (info.name, info.kind, info.max_length, info.license) == ("mine", "text", 6, "MIT")
    assert info.sha256 == hashlib.sha256(model()).hexdigest()
    answer = TextJob(repository.text(None), TextRequest(text="the cat")).run()
    (result,) = answer["results"]
    assert result["tokens"] == ["[CLS]", "the", "cat", "[SEP]"]
    rows = TABLE[[1, 3, 4, 2]].astype(np.float64)
    weights = np.exp(rows @ rows.T)
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(result["weights"], np.tile(weights, (1, HEADS, 1, 1)), rtol=1e-5)
    np.testing.assert_allclose(result["output"], weights @ rows, rtol=1e-4, atol=1e-6)


def test_other_names_of_the_outputs(tmp_path: Path, engine: Engine) -> None:
    names = {"output": "last_hidden_state", "weights": ["attentions.0"]}
    other = model(outputs=("last_hidden_state", "attentions.0"))
    make(tmp_path / "mine", {"model.onnx": other}, outputs=names)
    assert ModuleFolder(tmp_path, engine).look().refused == []


@pytest.mark.parametrize("name", ["mine", "my module", "модуль", "模型", "a.b-c_d"])
def test_names(tmp_path: Path, engine: Engine, name: str) -> None:
    make(tmp_path / name)
    assert ModuleFolder(tmp_path, engine).look().text(name).info.name == name


def test_only_folders_are_modules_and_no_hidden_ones(tmp_path: Path, engine: Engine) -> None:
    make(tmp_path / ".mine.0a1b2c3d")  # an exporter at work
    (tmp_path / "README").write_text("mine")
    repository = ModuleFolder(tmp_path, engine).look()
    assert (repository.infos(), repository.refused) == ([], [])


@pytest.mark.parametrize("folder", ["", "missing"])
def test_an_empty_or_missing_folder_gives_no_modules_and_says_how_to_add_one(
    tmp_path: Path, engine: Engine, folder: str
) -> None:
    repository = ModuleFolder(tmp_path / folder, engine).look()
    assert (repository.infos(), repository.refused) == ([], [])
    with pytest.raises(ProblemError, match=f"--modules {tmp_path / folder}`") as problem:
        repository.text(None)
    assert problem.value.code == Code.UNKNOWN_MODULE


def test_what_has_become_of_the_folder_is_logged_once(
    tmp_path: Path, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "modules"
    folder = ModuleFolder(path, engine)

    def logged() -> list[tuple[str, str]]:
        caplog.clear()
        for _ in range(3):
            folder.look()
        return [(one.levelname, one.message.replace(str(path), "…")) for one in caplog.records]

    missing = ("WARNING", "module folder … does not exist: only tensors are served")
    assert logged() == [missing]
    make(path / "mine")
    held = ("INFO", "module folder … holds mine")
    assert logged() == [held, ("INFO", "module mine is taken up")]
    shutil.rmtree(path / "mine")
    empty = ("INFO", "module folder … is empty: only tensors are served")
    assert logged() == [empty, ("INFO", "module mine is gone")]
    path.rmdir()
    assert logged() == [missing]


def test_the_name_of_plain_attention_is_taken(tmp_path: Path, engine: Engine) -> None:
    make(tmp_path / "sdpa")
    assert "'sdpa' is what /v2 calls plain attention" in reason(tmp_path, engine)


# --- Which text module is meant --------------------------------------------------------------


def test_the_text_module_of_calls_that_name_none(
    tmp_path: Path, engine: Engine, modules: Path
) -> None:
    (tmp_path / "mha").symlink_to(modules / "mha")
    make(tmp_path / "b")
    assert ModuleFolder(tmp_path, engine).look().text(None).info.name == "b"  # the only one
    make(tmp_path / "a")
    repository = ModuleFolder(tmp_path, engine).look()
    says = r"several text modules: a, b; .* \(ATTENTION_TEXT_MODULE\) name the one to take"
    with pytest.raises(ProblemError, match=says) as problem:
        repository.text(None)
    assert problem.value.code == Code.MODULE_NOT_CHOSEN
    assert repository.text("a").info.name == "a"
    assert ModuleFolder(tmp_path, engine, "b").look().text(None).info.name == "b"
    assert ModuleFolder(tmp_path, engine, "b").look().text("a").info.name == "a"
    (tmp_path / "b" / "model.onnx").unlink()  # of those that are refused none is meant
    assert ModuleFolder(tmp_path, engine).look().text(None).info.name == "a"


@pytest.mark.parametrize(
    ("default", "code", "says"),
    [
        ("absent", Code.UNKNOWN_MODULE, "no module 'absent'; loaded are: a, mha"),
        ("mha", Code.MODULE_KIND, "'mha' is a multi-head module"),
        ("broken", Code.UNKNOWN_MODULE, "'broken' was refused: module.json cannot be read"),
    ],
)
def test_a_default_that_is_none_is_told_and_no_other_taken(
    tmp_path: Path, engine: Engine, modules: Path, default: str, code: Code, says: str
) -> None:
    (tmp_path / "mha").symlink_to(modules / "mha")
    (tmp_path / "broken").mkdir()
    make(tmp_path / "a")
    with pytest.raises(ProblemError, match=says) as problem:
        ModuleFolder(tmp_path, engine, default).look().text(None)
    assert problem.value.code == code


# --- What is refused, with the reason --------------------------------------------------------


def outside(folder: Path) -> None:
    (folder.parent.parent / "secret").write_text("")
    add_file(folder, "../../secret", hashlib.sha256(b"").hexdigest())


def absolute(folder: Path) -> None:
    add_file(folder, "/etc/hostname")


def linked_outside(folder: Path) -> None:
    (folder / "notes").symlink_to("/etc/hostname")
    add_file(folder, "notes")


def linked_in_a_circle(folder: Path) -> None:
    (folder / "notes").symlink_to("notes")
    add_file(folder, "notes")


def a_folder_among_the_files(folder: Path) -> None:
    (folder / "notes").mkdir()
    add_file(folder, "notes")


def a_folder_for_a_manifest(folder: Path) -> None:
    (folder / "module.json").unlink()
    (folder / "module.json").mkdir()


def fifo(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")  # reading it would wait for ever


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: (f / "model.onnx").unlink(), "model.onnx is missing"),
    "changed": (
        lambda f: (f / "tokenizer.json").write_bytes(b"{}"),
        "tokenizer.json does not have the checksum",
    ),
    "no JSON": (
        lambda f: (f / "module.json").write_text("{"), "module.json is not valid: .* Invalid JSON"
    ),
    "deep JSON": (lambda f: (f / "module.json").write_text("[" * 10**5), "Invalid JSON"),
    "no object": (lambda f: (f / "module.json").write_text("[]"), "module.json is not valid"),
    "manifest is a folder": (a_folder_for_a_manifest, "module.json cannot be read: Is a dir"),
    "outside": (outside, r"module.json names '\.\./\.\./secret', which is not in this folder"),
    "absolute": (absolute, "names '/etc/hostname', which is not in this folder"),
    "linked outside": (linked_outside, "names 'notes', which is not in this folder"),
    "the folder itself": (lambda f: add_file(f, "."), r"names '\.', which is not in this folder"),
    "circle": (linked_in_a_circle, "'notes' cannot be read: it links to itself|notes is missing"),
    "NUL": (lambda f: add_file(f, "a\0b"), "cannot be read: embedded null"),
    "long name": (lambda f: add_file(f, "a" * 5000), "cannot be read: File name too long$"),
    "subfolder": (a_folder_among_the_files, "notes is missing"),
    "fifo": (fifo, "model.onnx is missing"),
    "no checksum": (lambda f: set_manifest(f, files={}), "holds no checksum for model.onnx"),
    "two layers": (lambda f: set_manifest(f, num_layers=2), "1 weights outputs for 2 layers"),
    "other kind": (
        lambda f: set_manifest(f, kind="multi_head"), "model.onnx has no input attn_bias, key, que"
    ),
    "other output": (
        lambda f: set_manifest(f, outputs={"output": "last", "weights": ["weights.0"]}),
        "model.onnx has no output last",
    ),
    "other width": (
        lambda f: set_manifest(f, embed_dim=8),
        r"model.onnx gives output of the shape \[1, 2, 4\] where module.json says \[1, 2, 8\]",
    ),
    "other heads": (
        lambda f: set_manifest(f, num_heads=3),
        r"model.onnx gives weights.0 of the shape \[1, 2, 2, 2\] where .* says \[1, 3, 2, 2\]",
    ),
    "longer than the model": (
        lambda f: set_manifest(f, max_length=LONGEST + 1),
        "model.onnx does not run with what the other files say",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(tmp_path: Path, engine: Engine, damage: str) -> None:
    damaging, says = DAMAGES[damage]
    folder = tmp_path / "modules"
    damaging(make(folder / "mine"))
    refusal = reason(folder, engine)
    assert re.search(says, refusal), refusal
    assert str(tmp_path) not in refusal, "folders of this machine are nobody's business"
    assert len(refusal) < 1000


WRONG_FILES: dict[str, tuple[dict[str, bytes], str]] = {
    "truncated": ({"model.onnx": model()[:-100]}, "model.onnx cannot be loaded"),
    "empty": ({"model.onnx": b""}, "model.onnx cannot be loaded"),
    "no ONNX": ({"model.onnx": b"PK\x03\x04" * 50}, "model.onnx cannot be loaded"),
    "other inputs": (
        {"model.onnx": model(("ids", "attention_mask", "types"))},
        "model.onnx has no input input_ids, token_type_ids",
    ),
    "one input more": (
        {"model.onnx": model((*INPUTS, "position_ids"))},
        "model.onnx does not run with what the other files say: .*position_ids",
    ),
    "other dtype": (
        {"model.onnx": model(element_type=TensorProto.INT32)},
        "model.onnx does not run with what the other files say",
    ),
    "fewer heads": (
        {"model.onnx": model(heads=1)},
        r"weights.0 of the shape \[1, 1, 2, 2\] where module.json says \[1, 2, 2, 2\]",
    ),
    "no tokenizer": ({"tokenizer.json": b"[]"}, "tokenizer.json cannot be read"),
    "tokenizer in other characters": ({"tokenizer.json": b"\xff"}, "tokenizer.json cannot be read"),
    "tokens past the embeddings": (
        {"tokenizer.json": tokenizer().replace(b'"sat":5', b'"sat":6')},
        "model.onnx does not run with what the other files say",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_files_that_match_their_checksums_and_are_no_module(
    tmp_path: Path, engine: Engine, wrong: str
) -> None:
    files, says = WRONG_FILES[wrong]
    make(tmp_path / "mine", files)
    refusal = reason(tmp_path, engine)
    assert re.search(says, refusal), refusal
    assert str(tmp_path) not in refusal


@pytest.mark.parametrize(
    ("name", "told"), [(b"\xff", "\\udcff"), (b"a\nb", "a\\nb")], ids=["bytes", "newline"]
)
def test_a_name_that_no_log_or_url_can_hold(
    tmp_path: Path, engine: Engine, name: bytes, told: str
) -> None:
    folder = make(tmp_path / "mine")
    folder.rename(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    repository = ModuleFolder(tmp_path, engine).look()
    assert [refused.name for refused in repository.refused] == [told]
    assert "not printable" in repository.refused[0].reason
    assert repository.refused[0].model_dump_json()


def test_one_refused_module_does_not_keep_the_others_out(tmp_path: Path, engine: Engine) -> None:
    for name in "abc":
        make(tmp_path / name)
    (tmp_path / "b" / "model.onnx").unlink()
    repository = ModuleFolder(tmp_path, engine).look()
    assert [info.name for info in repository.infos()] == ["a", "c"]
    assert [refused.name for refused in repository.refused] == ["b"]


# --- Texts against the longest that a module takes -------------------------------------------


def test_a_text_is_cut_to_what_the_module_takes_and_never_sent_longer(
    tmp_path: Path, engine: Engine
) -> None:
    make(tmp_path / "mine")
    make(tmp_path / "tiny", max_length=1)
    repository = ModuleFolder(tmp_path, engine).look()
    long = TextRequest(text="the cat sat the cat sat", truncate=True)
    (result,) = TextJob(repository.text("mine"), long).run()["results"]
    assert result["tokens"] == ["[CLS]", "the", "cat", "sat", "the", "[SEP]"]
    # There is no room for its special tokens alone, and nothing that cutting could do.
    with pytest.raises(ProblemError, match="where the module takes 1, special tokens") as problem:
        TextJob(repository.text("tiny"), long)
    assert problem.value.code == Code.TEXT_TOO_LONG
