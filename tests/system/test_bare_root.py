"""The README's two commands in a plain Debian that has Python, venv and make, and nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.system.buildah import BASE, BUILDAH, buildah, host_network, make_base
from tests.system.harness import CONTAINED, REPOSITORY, free_port, run, running, wait_until_ready

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

FOLDER = "/attention"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What a command begins with that runs in the root, in a copy of what was committed."""
    make_base()
    container = buildah("from", "--pull-never", BASE)
    try:
        enter = [*CONTAINED, "buildah", "run", *host_network(tmp_path_factory.mktemp("bare"))]
        install = "apt-get update && apt-get install --yes --no-install-recommends make"
        run([*enter, container, "--", "sh", "-ec", install], env=BUILDAH, timeout=300)
        root = Path(buildah("mount", container))
        archive = ["git", "archive", "--format=tar", f"--prefix={FOLDER[1:]}/", "HEAD"]
        files = subprocess.run(archive, cwd=REPOSITORY, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(root)], input=files, check=True)
        yield [*enter, "--workingdir", FOLDER, container, "--"]
    finally:
        buildah("rm", container)


def test_make_demo_sets_everything_up_and_draws_a_map(bare: list[str]) -> None:
    printed = run([*bare, "make", "demo"], env=BUILDAH, timeout=500)
    assert "rows: queries, columns: keys" in printed
    assert "→ animal" in printed


def test_make_serve_serves(bare: list[str], tmp_path: Path) -> None:
    port = free_port()
    with running([*bare, "make", "serve", f"PORT={port}"], tmp_path / "serve.log", BUILDAH) as it:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, it)
        asked = {"text": "The cat sat.", "layers": [0], "heads": [0]}
        answer = httpx.post(f"{url}/v1/text/attention", json=asked, trust_env=False)
    assert answer.raise_for_status().json()["results"][0]["tokens"][2] == "cat"
