"""Where weights come from, what a finished module folder holds, and what fails on the way."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attention_service.modules.exporters import ExportError, export, package
from attention_service.modules.exporters.source import read
from attention_service.modules.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, sha256
from attention_wire import safetensors

GOLDENS = Path(__file__).parents[1] / "goldens"
WEIGHTS = GOLDENS / "multi_head_bias.safetensors"


def export_one(modules: Path, name: str = "mha", **options: Any) -> Path:
    return export(options.pop("source", WEIGHTS), name, modules, num_heads=4, **options)


def manifest_of(folder: Path) -> Manifest:
    return Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())


def refusal(modules: Path, **options: Any) -> str:
    with pytest.raises(ExportError) as error:
        export_one(modules, **options)
    return str(error.value)


# --- The finished folder -------------------------------------------------------------------


def test_the_folder_is_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    stages: list[tuple[str, float]] = []
    folder = export_one(tmp_path, progress=lambda stage, done: stages.append((stage, done)))
    assert folder == tmp_path / "mha"
    assert [path.name for path in tmp_path.iterdir()] == ["mha"]
    manifest = manifest_of(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {MANIFEST_FILE, *manifest.files}
    assert all(sha256(folder / name) == digest for name, digest in manifest.files.items())
    fractions = [done for _, done in stages]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = export_one(tmp_path, "one"), export_one(tmp_path, "two")
    assert manifest_of(one) == manifest_of(two)


def test_a_module_of_that_name_stays_unless_forced(tmp_path: Path) -> None:
    folder = export_one(tmp_path, license="MIT")
    assert "force replaces it" in refusal(tmp_path)
    assert manifest_of(folder).license == "MIT"
    (folder / "old.txt").write_text("from before")
    export_one(tmp_path, license="ISC", force=True)
    assert manifest_of(folder).license == "ISC"
    assert not (folder / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mha"]


@pytest.mark.parametrize("stage", ["writing", "verifying"])
def test_an_interrupted_export_leaves_nothing(tmp_path: Path, stage: str) -> None:
    def interrupt(name: str, _done: float) -> None:
        if name.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_one(tmp_path, progress=interrupt)
    assert not list(tmp_path.iterdir())
    folder = export_one(tmp_path, license="MIT")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        export_one(tmp_path, license="ISC", force=True, progress=interrupt)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    "name", ["", ".hidden", "a/b", "..", "-x", "a" * 65, "ümlaut", "a b", "line\n"]
)
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    assert "cannot name a module" in refusal(tmp_path, name=name)


def test_the_checksum_comes_before_anything_else(tmp_path: Path) -> None:
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not safetensors at all")
    message = refusal(tmp_path / "modules", source=junk, expected_sha256="ab" * 32)
    assert sha256(junk) in message
    assert "ab" * 32 in message
    export_one(tmp_path / "modules", expected_sha256=sha256(WEIGHTS).upper())


def test_a_folder_that_cannot_be_written_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "reading or writing failed" in refusal(tmp_path / "file" / "modules")


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    folder = export_one(tmp_path)
    package._verify(folder)
    (folder / MODEL_FILE).write_bytes((folder / MODEL_FILE).read_bytes()[:-50])
    with pytest.raises(ExportError, match="not valid"):
        package._verify(folder)


def test_exporting_needs_neither_pytorch_nor_onnx_runtime() -> None:
    code = (
        "import sys, attention_service.modules.exporters as e; "
        "print([m for m in ('torch', 'onnxruntime', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_no_source_is_told_before_anything_is_downloaded(tmp_path: Path) -> None:
    stages: list[str] = []
    for source in ("a/b/c", "nowhere.safetensors"):
        progress = {"progress": lambda stage, _: stages.append(stage)}
        words = "neither a file or folder nor a Hugging Face id"
        assert words in refusal(tmp_path, source=source, **progress)
    assert stages == []
    assert not list(tmp_path.iterdir())


def test_what_is_lacking_is_told_before_the_weights_are_read(tmp_path: Path) -> None:
    stages: list[str] = []
    with pytest.raises(ExportError, match=r"does not hold num_heads.*--num-heads"):
        export(WEIGHTS, "mha", tmp_path, progress=lambda stage, _: stages.append(stage))
    assert not any("checksum" in stage for stage in stages)


# --- Sources on this machine ---------------------------------------------------------------


def test_files_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    for name, content, words in (
        ("missing", None, "no file or folder"),
        ("empty.safetensors", b"", "is empty"),
        ("short.safetensors", b"\x00\x01", "no readable safetensors"),
        ("long.safetensors", (2**40).to_bytes(8, "little") + b"{}", "no readable safetensors"),
        ("module.pt", b"PK", "pickle"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        assert words in refusal(tmp_path / "modules", source=path), name


def test_a_folder_has_to_hold_one_safetensors_file(tmp_path: Path) -> None:
    source, modules = tmp_path / "source", tmp_path / "modules"
    source.mkdir()
    assert "holds no safetensors file" in refusal(modules, source=source)
    (source / "pytorch_model.bin").write_bytes(b"PK")
    assert "pytorch_model.bin is a pickle" in refusal(modules, source=source)
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (source / name).write_bytes(WEIGHTS.read_bytes())
    assert "holds 2 safetensors files" in refusal(modules, source=source)
    (source / "model.safetensors").write_bytes(WEIGHTS.read_bytes())
    export_one(modules, source=source)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS.read_bytes())
    (tmp_path / "config.json").write_text(text)
    assert "config.json" in refusal(tmp_path / "modules", source=tmp_path)


def test_the_path_of_this_machine_is_not_in_the_module(tmp_path: Path) -> None:
    folder = export_one(tmp_path / "modules")
    assert manifest_of(folder).source == WEIGHTS.name
    folder = export_one(tmp_path / "modules", "named", origin="example/attention")
    assert manifest_of(folder).source == "example/attention"


# --- Licences ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\ntags:\n- x\n---\n# Model\n", "Apache-2.0"),
        ('---\r\nlicense: "mit"\r\n---\r\n', "MIT"),
        ("---\nlicense: cc-by-nc-sa-4.0 # a remark\n---", "CC-BY-NC-SA-4.0"),
        ("---\nlicense: llama3.1\n---\n", "LicenseRef-llama3.1"),
        ("---\nlicense: other\nlicense_name: mine\n---\n", None),
        ("---\ntags:\n- license: mit\n---\n", None),
        ("# Model\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_the_model_card_names_the_licence(tmp_path: Path, card: str, expected: str | None) -> None:
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS.read_bytes())
    (tmp_path / "README.md").write_bytes(card.encode())
    assert read(tmp_path, "label").license == expected


def test_a_licence_without_a_file_becomes_a_short_one(tmp_path: Path) -> None:
    folder = export_one(tmp_path, license="Apache-2.0", origin="example/attention")
    text = (folder / "LICENSE").read_text()
    assert "Source: example/attention" in text
    assert "SPDX-License-Identifier: Apache-2.0" in text
    assert "https://spdx.org/licenses/Apache-2.0.html" in text


def test_licence_files_are_copied(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").write_bytes(WEIGHTS.read_bytes())
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    (source / "LICENSE.txt").write_text("Permission is hereby granted")
    folder = export_one(tmp_path / "modules", source=source)
    assert (folder / "LICENSE.txt").read_text() == "Permission is hereby granted"
    assert not (folder / "LICENSE").exists()
    assert manifest_of(folder).license == "MIT"
    assert set(manifest_of(folder).files) == {MODEL_FILE, "LICENSE.txt"}


# --- The Hugging Face Hub ------------------------------------------------------------------

COMMIT = "c0ffee" + "0" * 34


class Hub(BaseHTTPRequestHandler):
    """The few routes of the Hub that a download takes, for the model example/attention."""

    files: dict[str, bytes] = {}  # noqa: RUF012 - set once by the fixture
    asked: list[str] = []  # noqa: RUF012
    tokens: set[str | None] = set()  # noqa: RUF012

    def do_GET(self) -> None:
        content, headers = self._answer()
        self.end(content, headers)

    def do_HEAD(self) -> None:
        content, headers = self._answer()
        self.end(content, headers, body=False)

    def _answer(self) -> tuple[bytes | None, dict[str, str]]:
        path = self.path.partition("?")[0]
        self.tokens.add(self.headers.get("Authorization"))
        if path.startswith("/api/models/example/gated"):
            return None, {"X-Error-Code": "GatedRepo"}
        if path == f"/api/models/example/attention/revision/{COMMIT[:4]}":
            return None, {"X-Error-Code": "RevisionNotFound"}
        if path == "/api/models/example/attention/revision/main":
            siblings = [{"rfilename": name} for name in self.files]
            return json.dumps(
                {"id": "example/attention", "sha": COMMIT, "siblings": siblings}
            ).encode(), {}
        if path == f"/api/models/example/attention/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": self._etag(content)}
                for name, content in self.files.items()
            ]
            return json.dumps(tree).encode(), {}
        prefix = f"/example/attention/resolve/{COMMIT}/"
        if path.startswith(prefix):
            name = path.removeprefix(prefix)
            self.asked.append(name)
            content = self.files[name]
            return content, {"ETag": f'"{self._etag(content)}"', "X-Repo-Commit": COMMIT}
        return None, {"X-Error-Code": "RepoNotFound"}

    @staticmethod
    def _etag(content: bytes) -> str:
        return hashlib.sha1(content).hexdigest()

    def end(self, content: bytes | None, headers: dict[str, str], *, body: bool = True) -> None:
        status = {"GatedRepo": 403}.get(headers.get("X-Error-Code", ""), 404)
        self.send_response(status if content is None else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if body and content:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    """A Hub on this machine; its address."""
    Hub.asked, Hub.tokens = [], set()
    Hub.files = {
        "attention.safetensors": WEIGHTS.read_bytes(),
        "README.md": b"---\nlicense: mit\n---\n",
        "LICENSE": b"Permission is hereby granted",
        "pytorch_model.bin": b"PK",
        "onnx/model.safetensors": b"",
        "rust_model.ot": b"",
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def export_from_hub(source: str, tmp_path: Path, **environment: str) -> tuple[bool, str]:
    """Export in a process of its own: huggingface_hub reads its environment when imported.

    Returns:
        Whether it went well, and the error's text.
    """
    code = (
        "import sys, pathlib\n"
        "from attention_service.modules.exporters import ExportError, export\n"
        "try:\n"
        "    export(sys.argv[1], 'mha', pathlib.Path(sys.argv[2]), num_heads=4)\n"
        "except ExportError as error:\n"
        "    sys.exit(f'ExportError: {error}')\n"
    )
    own = {"HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code, source, str(tmp_path / "modules")],
        env={k: v for k, v in os.environ.items() if not k.startswith("HF_")} | own,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return done.returncode == 0, done.stderr


def test_a_model_is_downloaded_from_the_hub_and_only_what_is_needed(
    hub: str, tmp_path: Path
) -> None:
    ok, error = export_from_hub("example/attention", tmp_path, HF_ENDPOINT=hub, HF_TOKEN="hf_mine")
    assert ok, error
    manifest = manifest_of(tmp_path / "modules" / "mha")
    assert manifest.source == f"example/attention@{COMMIT}"
    assert manifest.license == "MIT"
    assert set(Hub.asked) == {"attention.safetensors", "README.md", "LICENSE"}
    assert "Bearer hf_mine" in Hub.tokens
    # What the cache holds is taken from there, also without a network.
    ok, error = export_from_hub("example/attention", tmp_path, HF_HUB_OFFLINE="1")
    assert not ok
    assert "force replaces it" in error
    (tmp_path / "modules" / "mha").rename(tmp_path / "modules" / "first")
    ok, error = export_from_hub("example/attention", tmp_path, HF_HUB_OFFLINE="1")
    assert ok, error


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("example/gated", ["accept its terms", "HF_TOKEN"]),
        ("example/nothing", ["no folder here and no model", "HF_TOKEN"]),
        (f"example/attention@{COMMIT[:4]}", ["no revision", COMMIT[:4]]),
        ("example/-attention-", ["neither a file or folder nor a Hugging Face id"]),
    ],
)
def test_what_the_hub_refuses_is_told_with_what_to_do(
    hub: str, tmp_path: Path, source: str, words: list[str]
) -> None:
    ok, error = export_from_hub(source, tmp_path, HF_ENDPOINT=hub)
    assert not ok
    assert error.splitlines()[-1].startswith("ExportError: "), error
    assert all(word in error for word in words), error
    assert not (tmp_path / "modules").exists()


def test_a_model_of_the_hub_without_safetensors_is_refused(hub: str, tmp_path: Path) -> None:
    Hub.files = {"pytorch_model.bin": b"PK"}
    ok, error = export_from_hub("example/attention", tmp_path, HF_ENDPOINT=hub)
    assert not ok
    assert "holds no safetensors file" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=str
)
def test_without_a_network_the_error_says_so(tmp_path: Path, environment: dict[str, str]) -> None:
    ok, error = export_from_hub("example/attention", tmp_path, **environment)
    assert not ok
    assert "ExportError: " in error
    assert "the Hub cannot be reached: check the network" in error


def test_weights_beside_other_dtypes_of_safetensors(tmp_path: Path) -> None:
    """A dtype that the reader does not know is named with its tensor."""
    path = tmp_path / "w.safetensors"
    raw = b"".join(safetensors.write({"in_proj_weight": np.zeros(4, np.float32)}, {}))
    path.write_bytes(raw.replace(b'"F32"', b'"F33"'))
    message = refusal(tmp_path / "modules", source=path)
    assert "in_proj_weight" in message
    assert "F33" in message


def test_one_file_of_a_model_names_its_folder(tmp_path: Path) -> None:
    """Without config.json beside it, it is a state dict that nobody knows."""
    tensors = {"embeddings.weight": np.zeros((2, 2), np.float32)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"".join(safetensors.write(tensors, {})))
    assert "what can be exported: " in refusal(tmp_path / "modules", source=path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    message = refusal(tmp_path / "modules", source=path)
    assert message.endswith(f"config.json lies beside it: export the folder, {tmp_path}")
    # Nor does the folder send back to the file.
    path.rename(tmp_path / "one.safetensors")
    (tmp_path / "two.safetensors").write_bytes(b"")
    assert "add it, or leave one of them there" in refusal(tmp_path / "modules", source=tmp_path)
