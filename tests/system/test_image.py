"""The image: built as it is deployed, and run as a hardened container runs it.

There may be no container engine here, so a chroot stands for one: a private mount namespace,
the image's root mounted read-only with a tmpfs at /tmp, and its own user, environment and
entrypoint, without capabilities.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import shlex
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from attention_client import AttentionClient
from tests.system.buildah import BASE, BUILDAH, buildah, host_network, make_base
from tests.system.harness import (
    CONTAINED,
    REPOSITORY,
    Service,
    free_port,
    run,
    running,
    wait_until_ready,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

MAX_MEGABYTES = 400
TEXT = "The animal didn't cross the street because it was too tired."  # a case of the goldens

# $1 is the root, the rest the command. The mounts are seen by this process alone and end with
# it; `exec` keeps its id, so the process that the test started is the service.
ENTER = """
root=$1
shift
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
exec chroot "$root" "$@"
"""


def inspect(image: str) -> Any:
    return json.loads(buildah("inspect", "--type", "image", image))


@dataclass(frozen=True)
class Image:
    """An image whose root is mounted: its configuration, and what a container would run.

    `layer_bytes` are the sizes of the layers above the base image, and `added` the files
    that are not in the base image, or not as they are there, as paths from the root.
    """

    config: dict[str, Any]
    layer_bytes: list[int]
    root: Path
    added: list[Path]

    def as_its_user(self, *command: str, **variables: str) -> list[str]:
        """A command in its root as its user, with its environment and no capabilities."""
        uid, gid = self.config["User"].split(":")
        # A container engine takes HOME from the image's list of users.
        environment = [*self.config["Env"], "HOME=/nonexistent"]
        environment += [f"{name}={value}" for name, value in variables.items()]
        user = ["--reuid", uid, "--regid", gid, "--clear-groups"]
        bounds = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        # The change of user undoes what the harness had asked the kernel for.
        bounds += ["--pdeathsig", "KILL"]
        return ["setpriv", *user, *bounds, "env", "-i", *environment, *command]


@contextmanager
def root_of(image: str) -> Iterator[Path]:
    """An image's root as a container would get it."""
    container = buildah("from", "--pull-never", image)
    try:
        yield Path(buildah("mount", container))
    finally:
        buildah("rm", container)


def files(root: Path) -> dict[Path, tuple[int, ...]]:
    """What is in a root but folders, and by what one sees that two of them are the same."""
    found = {}
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names):
            stat = path.lstat()
            found[path.relative_to(root)] = (stat.st_mode, stat.st_size, stat.st_mtime_ns)
    return found


def without_daemons(folder: Path) -> str:
    """A PATH that begins with clients of engines that do not run, as this machine may have too."""
    for name in ("docker", "podman"):
        client = folder / name
        client.write_text("#!/bin/sh\necho cannot connect to the daemon >&2\nexit 1\n")
        client.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    make_base()
    options = ["--pull-never", "--build-arg", f"BASE_IMAGE={BASE}"]
    options += host_network(tmp_path_factory.mktemp("build"))
    path = without_daemons(tmp_path_factory.mktemp("clients"))
    make = ["make", "image", f"IMAGE_OPTIONS={shlex.join(options)}"]
    printed = run([*CONTAINED, *make], env={**BUILDAH, "PATH": path}, timeout=400)
    assert re.search(r"^image: building attention-service:\S+ with buildah$", printed, re.MULTILINE)
    buildah("rmi", "--prune")  # what an earlier build was named

    base = inspect(BASE)
    built = inspect("attention-service:latest")
    layers = json.loads(built["Manifest"])["layers"][len(base["Docker"]["rootfs"]["diff_ids"]) :]
    with root_of(BASE) as root:
        before = files(root)
    with root_of("attention-service:latest") as root:
        added = [path for path, what in files(root).items() if before.get(path) != what]
        yield Image(built["Docker"]["config"], [layer["size"] for layer in layers], root, added)


@pytest.fixture(scope="module")
def service(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    port = free_port()
    command = image.as_its_user(
        *image.config["Entrypoint"], *image.config["Cmd"], ATTENTION_PORT=str(port)
    )
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", ENTER, "sh"]
    log = tmp_path_factory.mktemp("image") / "service.log"
    with running([*unshare, image.root, *command], log) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        yield Service(url, port, process)


def inside(service: Service, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command in the mounts and the root of the service, as root if it does not say."""
    return subprocess.run(
        ["nsenter", "--target", str(service.process.pid), "--mount", "--root", *command],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


# --- What the image is -----------------------------------------------------------------


def test_size(image: Image, capfd: pytest.CaptureFixture[str]) -> None:
    megabytes = sum(image.layer_bytes) / 1e6
    with capfd.disabled():  # worth reading when it passes too
        print(f"\nimage: {megabytes:.0f} MB above its base")
    assert megabytes < MAX_MEGABYTES
    # Layers are archives of the files: no compression makes them look smaller than they are.
    on_disk = sum((image.root / path).lstat().st_size for path in image.added) / 1e6
    assert on_disk <= megabytes < 1.1 * on_disk


def test_configuration(image: Image) -> None:
    config = image.config
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["attention-service"]
    assert config["Cmd"] == ["serve"]
    assert config["ExposedPorts"] == {"8080/tcp": {}}
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert "ORT_DISABLE_TELEMETRY=1" in config["Env"]

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in config["Labels"].items()
    }
    assert labels["title"] == project["name"]
    assert labels["description"] == project["description"]
    assert labels["licenses"] == project["license"]
    assert labels["version"] == project["version"]
    assert {"revision", "source"} <= labels.keys()


def test_it_holds_what_runs_and_no_more(image: Image) -> None:
    places = {
        Path(*path.parts[: 2 if path.parts[0] in {"opt", "etc"} else 1]) for path in image.added
    }
    assert places == {
        Path(place) for place in ("opt/attention", "modules", "etc/passwd", "etc/group")
    }
    # Nothing is owned by the service's user: it can change none of its own code.
    assert {(image.root / path).lstat().st_uid for path in image.added} == {0}

    assert not [path for path in image.added if path.suffix in {".safetensors", ".whl"}]
    assert not [path for path in image.added if {"pip", "tests", ".cache"} & set(path.parts)]
    # Compilers and package caches count wherever they come from, the base image included.
    names = {path.name for path in files(image.root)}
    tool = re.compile(r"(.*-)?(cc|gcc|g\+\+|c\+\+|cpp|cc1|ld|as|clang|rustc|make)(-[0-9.]+)?")
    assert not [name for name in names if tool.fullmatch(name)]
    assert not [name for name in names if name.endswith((".deb", "_Packages", "_Packages.lz4"))]


def test_it_holds_its_licences(image: Image) -> None:
    text = (REPOSITORY / "LICENSE").read_text()
    packages = next((image.root / "opt/attention/lib").glob("python3*/site-packages"))
    ours = next(packages.glob("attention_service-*.dist-info"))
    assert (ours / "licenses/LICENSE").read_text() == text

    module = image.root / "modules/all-MiniLM-L6-v2"
    assert json.loads((module / "module.json").read_text())["license"] == "Apache-2.0"
    assert "SPDX-License-Identifier: Apache-2.0" in (module / "LICENSE").read_text()
    assert (module / "Apache-2.0.txt").read_text() == text


def test_bytecode_is_there_for_a_root_that_takes_none(image: Image) -> None:
    packages = next((image.root / "opt/attention/lib").glob("python3*/site-packages"))
    for package in ("attention_service", "attention_wire", "onnxruntime", "fastapi"):
        assert list((packages / package / "__pycache__").glob("__init__.*.pyc"))


def test_its_python_has_no_pip(service: Service, image: Image) -> None:
    # From the service's own search path; the base image's Python is not what runs here.
    found = inside(service, image.as_its_user("python", "-c", "import onnxruntime, pip"))
    assert "No module named 'pip'" in found.stderr, found


def test_no_engine_is_a_clear_message() -> None:
    with pytest.raises(AssertionError, match="found no no-such-engine whose `info` succeeds"):
        run(["scripts/image.sh"], env={"ENGINE": "no-such-engine"})


# --- How it runs -----------------------------------------------------------------------


def test_its_user_has_no_rights(service: Service) -> None:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert fields["Uid"].split() == ["10001"] * 4
    assert fields["Gid"].split() == ["10001"] * 4
    assert fields["Groups"].split() == []
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


def test_its_root_is_read_only(service: Service, image: Image) -> None:
    for path in ("/file", "/modules/file", "/opt/attention/file"):
        written = inside(service, ["touch", path])  # root here: no file's mode is in the way
        assert "Read-only file system" in written.stderr, written
    assert inside(service, image.as_its_user("touch", "/tmp/file")).returncode == 0


def test_its_healthcheck_succeeds(service: Service, image: Image) -> None:
    command = image.config["Healthcheck"]["Test"][1:]
    checked = inside(service, image.as_its_user(*command, ATTENTION_PORT=str(service.port)))
    assert checked.returncode == 0, checked
    unused = inside(service, image.as_its_user(*command, ATTENTION_PORT=str(free_port())))
    assert unused.returncode == 1, unused


# --- What it answers -------------------------------------------------------------------


def qkv() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(7)
    shapes = (2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)
    query, key, value = (random.normal(size=shape).astype(np.float32) for shape in shapes)
    return query, key, value


def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> list[np.ndarray]:
    query, key, value = (array.astype(np.float64) for array in (query, key, value))
    scores = query @ np.swapaxes(key, -1, -2) / math.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return [weights @ value, weights]


def encode(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(array.astype("<f4").tobytes()).decode()
    return {"dtype": "float32", "shape": array.shape, "data": data}


def decode(tensor: dict[str, Any]) -> np.ndarray:
    assert tensor["dtype"] == "float32"
    return np.frombuffer(base64.b64decode(tensor["data"]), "<f4").reshape(tensor["shape"])


def close(actual: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def check_text(tokens: list[str], output: np.ndarray, weights: np.ndarray) -> None:
    goldens = REPOSITORY / "tests/goldens"
    cases = json.loads((goldens / "text.json").read_text())["cases"]
    assert tokens == next(case["tokens"] for case in cases if case["text"] == TEXT)
    golden = np.load(goldens / "text.npz")
    assert weights.shape == (6, 12, len(tokens), len(tokens))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(weights, golden["animal.weights"], atol=1e-5)
    np.testing.assert_allclose(output, golden["animal.output"], atol=1e-4)


def test_tensors_over_http(service: Service) -> None:
    arrays = qkv()
    names = ("query", "key", "value")
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        lists = dict(zip(names, (array.tolist() for array in arrays), strict=True))
        answer = client.post("/v1/attention", json=lists).raise_for_status().json()
        close([np.array(answer["output"]), np.array(answer["weights"])], attention(*arrays))
        assert answer["provider"] == "CPUExecutionProvider"

        encoded = dict(zip(names, map(encode, arrays), strict=True))
        request = {**encoded, "tensor_format": "base64"}
        answer = client.post("/v1/attention", json=request).raise_for_status().json()
        close([decode(answer["output"]), decode(answer["weights"])], attention(*arrays))


def test_text_over_http(service: Service) -> None:
    request = {"text": TEXT, "tensor_format": "base64"}
    answer = httpx.post(f"{service.url}/v1/text/attention", json=request, trust_env=False)
    result = answer.raise_for_status().json()["results"][0]
    check_text(result["tokens"], decode(result["output"]), decode(result["weights"]))


def test_tensors_and_text_by_the_client(service: Service) -> None:
    with AttentionClient(service.url) as client:
        answer = client.attention(*qkv())
        close([answer.output, answer.weights], attention(*qkv()))
        result = client.text_attention(TEXT)
        check_text(result.tokens, result.output, result.weights)


def test_it_stops_when_it_is_told_to(service: Service) -> None:
    """Last here, for it ends the service."""
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(timeout=20) == 0
