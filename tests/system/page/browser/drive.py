"""Visits the page with a headless Chromium and prints what a scenario saw there.

Usage: drive.py CHROMIUM FILE.FUNCTION URL FOLDER OPTIONS, the last as JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright
from visit import Visit


def main(chromium: str, scenario: str, url: str, folder: str, options: str) -> None:
    file, function = scenario.split(".")
    given = json.loads(options)
    size = {"width": given.pop("width", 1280), "height": given.pop("height", 900)}
    scheme = "dark" if given.pop("dark", False) else "light"
    given.pop("errors", None)
    with sync_playwright() as playwright:
        # Chromium has no sandbox for root, and the memory that it shares is small in containers.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        context = browser.new_context(viewport=size, color_scheme=scheme, accept_downloads=True)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        context.set_default_timeout(15_000)
        visit = Visit(context.new_page(), url, Path(folder))
        told = getattr(importlib.import_module(file), function)(visit, **given)
        browser.close()
    seen = {"told": told, "faults": visit.faults}
    print(json.dumps({**seen, "errors": visit.errors, "foreign": visit.foreign}))


if __name__ == "__main__":
    main(*sys.argv[1:])
