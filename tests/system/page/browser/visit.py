"""One visit of the page: what is done there, and all that goes wrong meanwhile."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Locator, Page, Request

# Two frames later, what was asked for in the first is drawn.
FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
# Scrolls a line of an element into the window and tells where the element's corner is then.
IN_SIGHT = """(element, top) => {
  const at = element.getBoundingClientRect().y + top;
  const isOut = at < 20 || at > innerHeight - 20;
  if (isOut) scrollBy({ top: at - innerHeight / 2, behavior: "instant" });
  return element.getBoundingClientRect().toJSON();
}"""
QUIET_SECONDS = 0.05


class Visit:
    """A page of the browser, by the hooks that docs/explorer.md lists.

    Attributes:
        page: Playwright's page.
        url: of the service.
        folder: where files may be put.
        faults: what was thrown in the page and not caught.
        errors: what the console has been told as an error.
        foreign: requests to another origin than the service's.
    """

    def __init__(self, page: Page, url: str, folder: Path) -> None:
        self.page, self.url, self.folder = page, url, folder
        self.faults: list[str] = []
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self._flying: set[Request] = set()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._log)
        page.on("request", self._request)
        page.on("requestfinished", self._landed)
        page.on("requestfailed", self._landed)

    def _log(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme in ("blob", "data"):
            return
        self._flying.add(request)
        if f"{address.scheme}://{address.netloc}" != self.url:
            self.foreign.append(request.url)

    def _landed(self, request: Request) -> None:
        self._flying.discard(request)

    def open(self, fragment: str = "") -> None:
        """Opens the page, and waits until it is drawn."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.url}/{fragment}")
        self.settle()

    def settle(self) -> None:
        """Waits until no call is under way and what came of it is drawn."""
        quiet_since = time.monotonic()
        deadline = quiet_since + 30
        while time.monotonic() - quiet_since < QUIET_SECONDS:
            assert time.monotonic() < deadline, [request.url for request in self._flying]
            self.page.evaluate(FRAMES)
            if self._flying:
                quiet_since = time.monotonic()
        self.page.evaluate(FRAMES)

    def hook(self, name: str) -> Locator:
        return self.page.get_by_test_id(name)

    def click(self, name: str) -> None:
        self.hook(name).click()
        self.settle()

    def choose(self, name: str, value: str | int) -> None:
        self.hook(name).select_option(str(value))
        self.settle()

    def choose_at(self, name: str, index: int) -> None:
        self.hook(name).select_option(index=index)
        self.settle()

    def slide(self, name: str, value: float) -> None:
        self.hook(name).fill(str(value))
        self.settle()

    def write(self, text: str, pair: str = "") -> None:
        """Puts a text in and looks at it."""
        self.hook("text").fill(text)
        if pair or self.hook("pair").is_visible():
            self.hook("pair").fill(pair)
        self.click("run")

    def texts(self, name: str) -> list[str]:
        return self.hook(name).all_inner_texts()

    def saved(self, name: str) -> Path:
        """The file that a button gives."""
        with self.page.expect_download() as download:
            self.hook(name).click()
        path = self.folder / f"{name}{Path(download.value.suggested_filename).suffix}"
        download.value.save_as(path)
        return path

    # --- What is drawn ---------------------------------------------------------------

    def lines(self) -> list[list[float]]:
        """Lines of the head view that can be seen: query, key, weight, opacity."""
        script = """(all) => all.map((line) => {
          const { display, visibility, strokeOpacity, opacity } = getComputedStyle(line);
          const seen = display !== "none" && visibility !== "hidden" ? strokeOpacity * opacity : 0;
          const { query, key, weight } = line.dataset;
          return [query, key, weight, seen].map(Number);
        }).filter(([, , , seen]) => seen > 0.001)"""
        lines = self.hook("head-view").locator("[data-weight]")
        return list(lines.evaluate_all(script))

    def tokens(self, side: str) -> Locator:
        return self.hook("head-view").locator(f'[data-side="{side}"]')

    def held(self) -> list[list[Any]]:
        script = "(all) => all.map(({ dataset }) => [dataset.side, Number(dataset.index)])"
        held = self.hook("head-view").locator('[aria-pressed="true"]')
        return list(held.evaluate_all(script))

    def canvas(self) -> Locator:
        """The heat map that is seen."""
        return self.page.locator("canvas.matrix-cells:visible").first

    def place(self, canvas: Locator, row: int, column: int) -> tuple[float, float]:
        """The middle of a cell, in CSS pixels from the canvas' corner."""
        at = canvas.evaluate("({ dataset }) => ({ ...dataset })")
        left = float(at["left"]) + (column + 0.5) * float(at["cellWidth"])
        return left, float(at["top"]) + (row + 0.5) * float(at["cellHeight"])

    def point(self, canvas: Locator, row: int, column: int) -> None:
        """Moves the mouse to a cell."""
        left, top = self.place(canvas, row, column)
        corner = canvas.evaluate(IN_SIGHT, top)
        self.page.mouse.move(corner["x"] + left, corner["y"] + top)
        self.page.evaluate(FRAMES)

    def colours(self, canvas: Locator, cells: list[list[int]]) -> list[list[int]]:
        """The colours of the middles of cells, [r, g, b] each."""
        script = """(canvas, places) => places.map(([left, top]) => {
          const ratio = canvas.width / canvas.clientWidth;
          const context = canvas.getContext("2d");
          return [...context.getImageData(left * ratio, top * ratio, 1, 1).data.slice(0, 3)];
        })"""
        places = [self.place(canvas, *cell) for cell in cells]
        return list(canvas.evaluate(script, places))

    def rolls_sideways(self) -> bool:
        root = "document.documentElement"
        return bool(self.page.evaluate(f"{root}.scrollWidth > {root}.clientWidth"))
