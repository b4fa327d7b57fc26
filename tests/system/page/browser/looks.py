"""Scenarios of narrow windows, of people who cannot see the page, of attacks and of keys."""

from __future__ import annotations

from typing import Any

from axe_playwright_python.sync_playwright import Axe
from visit import Visit

VIEWS = ("head", "matrix", "model", "statistics", "rollout", "tensors")
GRAVE = ("serious", "critical")


def views(visit: Visit, text: str, pair: str) -> dict[str, Any]:
    """In each view: whether the page rolls sideways, and what axe-core finds of grave faults."""
    visit.open()
    visit.write(text, pair)
    told: dict[str, Any] = {}
    for view in VIEWS:
        visit.click(f"tab-{view}")
        found = Axe().run(visit.page).response["violations"]
        faults = [
            [one["id"], [node["target"] for node in one["nodes"]][:5]]
            for one in found
            if one["impact"] in GRAVE
        ]
        visit.page.screenshot(path=visit.folder / f"{view}.png", full_page=True)
        told[view] = {"sideways": visit.rolls_sideways(), "faults": faults}
    return told


def themes(visit: Visit) -> list[Any]:
    """The ground's colour as the system has it, and after each click of the button."""
    visit.open()
    ground = "getComputedStyle(document.body).backgroundColor"
    seen = [visit.page.evaluate(ground)]
    for _ in range(2):
        visit.click("theme")
        seen.append(visit.page.evaluate(ground))
    return seen


def hostile(visit: Visit, text: str) -> dict[str, Any]:
    """A text that would do harm if it were taken for markup, in every view and in files."""
    ran: list[str] = []
    visit.page.on("dialog", lambda dialog: (ran.append(dialog.message), dialog.dismiss()))
    visit.open()
    visit.write(text)
    told: dict[str, Any] = {"elements": {}}
    selector = "main img, main iframe, main b, main script, main svg script, main [onerror]"
    for view in ("head", "matrix", "model", "statistics", "rollout"):
        visit.click(f"tab-{view}")
        told["elements"][view] = visit.page.locator(selector).count()
    visit.click("tab-head")
    told["labels"] = visit.tokens("query").all_text_contents()
    told["bidi"] = visit.tokens("query").evaluate_all(
        "(all) => all.map((token) => [token.dir, getComputedStyle(token).unicodeBidi])"
    )
    for type_ in ("svg", "csv", "json"):
        visit.saved(f"export-{type_}")
    ran += visit.page.evaluate("Object.keys(window.harm ?? {})")
    visit.page.reload()
    visit.settle()
    told["again"] = visit.tokens("query").all_text_contents()
    told["ran"] = [*ran, *(visit.page.evaluate("Object.keys(window.harm ?? {})"))]
    return told


def inline(visit: Visit) -> dict[str, Any]:
    """Scripts and styles that somebody managed to put into the page."""
    visit.open()
    script = """() => {
      const script = document.createElement("script");
      script.textContent = "window.harm = 1";
      const box = document.createElement("div");
      box.innerHTML = `<img src="data:image/png;base64,none" onerror="window.harm = 2">
        <style>* { color: red !important }</style>`;
      document.body.append(script, box);
    }"""
    visit.page.evaluate(script)
    visit.settle()
    colour = visit.page.evaluate("getComputedStyle(document.querySelector('h1')).color")
    return {"harm": visit.page.evaluate("window.harm ?? null"), "colour": colour}


def key(visit: Visit, key: str) -> dict[str, Any]:
    """A service that asks for a key: one that is wrong, then the right one."""
    visit.open()
    told: dict[str, Any] = {"asked": visit.hook("key").is_visible(), "lines": [visit.lines()]}
    for given in ("wrong", key):
        visit.hook("key").fill(given)
        visit.hook("key").press("Enter")
        visit.settle()
        told["lines"].append(visit.lines())
        told.setdefault("again", visit.hook("key").is_visible())
    told["left"] = visit.hook("key").is_visible()
    stored = "JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie])"
    told["kept"] = visit.page.evaluate(stored) + visit.page.url
    return told
