"""The pictures of the page for the README: start the service, visit it, write docs/images.

Usage: python scripts/screenshots.py SERVICE MODULES, with the environment that drives the browser,
the command that starts the service, and the folder of its modules.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from playwright.sync_api import Browser, sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"
MOST_BYTES = 300_000
ANIMAL = "The animal didn't cross the street because it was too tired."
PARROT = "The parrot repeats every word. The parrot repeats every word."


class Shot(NamedTuple):
    """One picture: its name, the theme, the window, and the state in the page's link."""

    name: str
    theme: str
    height: int
    state: dict[str, str | int]


SHOTS = (
    Shot(
        "explorer-lines.png",
        "light",
        800,
        {"view": "head", "text": ANIMAL, "layer": 5, "head": 11, "held": "q10"},
    ),
    Shot(
        "explorer-heads.png", "dark", 860, {"view": "model", "text": PARROT, "layer": 2, "head": 9}
    ),
)


@contextmanager
def running_service(command: str, modules: str) -> Iterator[str]:
    """A service on a free port; its address."""
    words = [command, "serve", "--port", "0", "--modules", modules, "--drain-delay", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield _address(process)
        finally:
            process.terminate()


def _address(process: subprocess.Popen[str]) -> str:
    log: list[str] = []
    for line in process.stderr or ():
        log.append(line)
        if found := re.search(r"running on (http://\S+)", line):
            return found[1]
    sys.exit("the service did not start:\n" + "".join(log))


def take(browser: Browser, url: str, shot: Shot) -> None:
    """Writes one picture, once the page has drawn all that it asked for.

    Raises:
        SystemExit: the picture is too large for a README.
    """
    size = {"width": 1280, "height": shot.height}
    context = browser.new_context(viewport=size, color_scheme=shot.theme, reduced_motion="reduce")
    page = context.new_page()
    page.goto(f"{url}/#{urlencode(shot.state)}", wait_until="networkidle")
    page.wait_for_function("performance.getEntriesByName('drawn').length > 0")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    path = IMAGES / shot.name
    page.screenshot(path=path)
    context.close()
    written = path.stat().st_size
    print(f"{path.relative_to(IMAGES.parents[1])}: {written} bytes")
    if written > MOST_BYTES:
        sys.exit(f"{shot.name} has {written} bytes, more than {MOST_BYTES}: show less in it")


def main(command: str, modules: str) -> None:
    """Takes all pictures."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("there is no chromium: install it (on Debian: apt-get install chromium)")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with running_service(command, modules) as url, sync_playwright() as playwright:
        # Chromium has no sandbox for root.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for shot in SHOTS:
            take(browser, url, shot)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
