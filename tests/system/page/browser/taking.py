"""Scenarios of what can be taken along: files, and a link that opens the same again."""

from __future__ import annotations

from typing import Any

from visit import Visit


def files(visit: Visit, fragment: str, types: list[str]) -> dict[str, Any]:
    """Every file of a view, by the names they were saved under."""
    visit.open(fragment)
    return {type_: visit.saved(f"export-{type_}").name for type_ in types}


def link(visit: Visit, text: str, pair: str) -> dict[str, Any]:
    """A view that was made by hand, and the same opened by its link in another tab."""
    visit.open()
    visit.write(text, pair)
    for name, value in {"layer": 2, "head": 7, "unit": "word"}.items():
        visit.choose(name, value)
    visit.slide("threshold", 0.02)
    visit.click("tab-head")
    for index in (1, 3):
        visit.tokens("query").nth(index).click()
        visit.settle()
    visit.page.mouse.move(0, 0)
    visit.settle()
    before = _state(visit)
    visit.click("copy-link")
    copied = visit.page.evaluate("navigator.clipboard.readText()")

    visit.page.goto("about:blank")
    asked: list[str] = []
    visit.page.on("request", lambda request: asked.append(request.url))
    visit.page.goto(copied)
    visit.settle()
    after = _state(visit)
    # Back and forward go through what was looked at.
    visit.choose("head", 3)
    visit.click("tab-matrix")
    walked = []
    for step in ("go_back", "go_back", "go_forward"):
        getattr(visit.page, step)()
        visit.settle()
        tab = visit.page.locator('[role="tab"][aria-selected="true"]')
        walked.append([visit.hook("head").input_value(), tab.get_attribute("data-testid")])
    return {"copied": copied, "before": before, "after": after, "walked": walked, "asked": asked}


def _state(visit: Visit) -> dict[str, Any]:
    names = ("text", "pair", "module", "layer", "head", "aggregate", "unit", "topk", "threshold")
    controls = {name: visit.hook(name).input_value() for name in names}
    return {"controls": controls, "held": visit.held(), "lines": visit.lines()}
