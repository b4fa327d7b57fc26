"""Containers by buildah: the base image, and how a build reaches this machine's package index."""

from __future__ import annotations

import ast
import configparser
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tests.system.harness import CONTAINED, REPOSITORY, run

IMAGES = REPOSITORY / "build/images"
BASE = "localhost/attention-base:bookworm"
BUILDAH = {
    "CONTAINERS_STORAGE_CONF": str(IMAGES / "storage.conf"),
    "BUILDAH_ISOLATION": "chroot",
    "TMPDIR": str(IMAGES / "tmp"),
}


def make_base() -> None:
    """The base image, if it was not made before: a plain Debian with Python."""
    run([*CONTAINED, "scripts/image_base.sh", IMAGES], timeout=300)


def buildah(*words: str, timeout: float = 120) -> str:
    return run(["buildah", *words], env=BUILDAH, timeout=timeout).strip()


def host_network(folder: Path) -> list[str]:
    """What a build needs to reach this machine's package index, as options of the build.

    pip's settings here, wherever they come from, become the build's /etc/pip.conf; the files
    and folders that they name are mounted where they are.
    """
    config = configparser.RawConfigParser()
    mounts = set()
    settings = run([sys.executable, "-m", "pip", "config", "list"]).splitlines()
    # The last one counts, and to pip a variable comes before its files.
    for line in sorted(settings, key=lambda line: line.startswith(":env:")):
        name, value = line.split("=", 1)
        value = ast.literal_eval(value)
        section, option = name.removeprefix(":env:").rsplit(".", 1)
        section = section or "global"
        if not config.has_section(section):
            config.add_section(section)
        config.set(section, option, value)
        mounts |= {path for word in value.split() if (path := local_path(word))}
    certificates = os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
    if certificates and not config.has_option("global", "cert"):
        config.setdefault("global", {})
        config.set("global", "cert", certificates)
        mounts.add(certificates)

    pip_conf = folder / "pip.conf"
    with pip_conf.open("w") as file:
        config.write(file)
    volumes = [f"{path}:{path}:ro" for path in sorted(mounts)] + [f"{pip_conf}:/etc/pip.conf:ro"]
    return ["--network", "host", *(word for volume in volumes for word in ("--volume", volume))]


def local_path(word: str) -> str | None:
    """The folder or file of this machine that a setting of pip names, if it is one."""
    url = urlsplit(word)
    if url.scheme not in {"", "file"} or not url.path.startswith("/"):
        return None
    path = Path(url.path)
    # The pages of a local index link to files beside it.
    if url.scheme == "file" and path.is_dir():
        path = path.parent
    return str(path) if path.exists() else None
