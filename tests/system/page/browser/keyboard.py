"""The main path by keys alone."""

from __future__ import annotations

from typing import Any

from visit import Visit

MOST_TABS = 60
FOCUS = """() => {
  const element = document.activeElement;
  const { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(element);
  const outlined = outlineStyle !== "none" && parseFloat(outlineWidth) > 0;
  return { name: element.dataset.testid ?? element.className, tag: element.tagName,
    shown: outlined || boxShadow !== "none" };
}"""


def path(visit: Visit, text: str) -> dict[str, Any]:
    """Types a text and goes through the views; says what had the focus on the way."""
    visit.open()
    keys = visit.page.keyboard
    focused: list[Any] = []

    def tab_to(wanted: str, key: str = "Tab") -> None:
        for _ in range(MOST_TABS):
            keys.press(key)
            focus = visit.page.evaluate(FOCUS)
            focused.append(focus)
            if visit.page.evaluate("(s) => document.activeElement.matches(s)", wanted):
                return
        raise AssertionError(f"{MOST_TABS} × {key} do not come to {wanted}: {focused}")

    def press(*names: str) -> None:
        for name in names:
            keys.press(name)
            visit.settle()

    told: dict[str, Any] = {}
    tab_to('[data-testid="text"]')
    press("Control+A")
    keys.type(text)
    tab_to('[data-testid="run"]')
    press("Enter")
    tab_to('[data-testid="layer"]')
    press("Home", "ArrowDown", "ArrowDown")
    tab_to('[data-testid="head"]')
    press("Home", "ArrowDown")
    told["chosen"] = [visit.hook(name).input_value() for name in ("layer", "head")]
    tab_to('[role="tab"]', "Shift+Tab")
    press("Home")
    tab_to("[data-side]")
    press("ArrowDown", "ArrowDown", "Enter")
    told["held"] = visit.held()
    told["readout"] = visit.hook("readout").inner_text()
    press("ArrowDown", "Enter", "ArrowRight", "Space")
    told["three"] = visit.held()
    press("Escape")
    told["none"] = visit.held()
    tab_to('[role="tab"]', "Shift+Tab")
    press("ArrowRight")
    tab_to("canvas")
    press("ArrowDown", "ArrowRight", "ArrowRight", "+")
    told["cell"] = visit.hook("readout").inner_text()
    told["zoom"] = float(visit.canvas().get_attribute("data-zoom") or 0)
    tab_to('[role="tab"]', "Shift+Tab")
    press("ArrowRight")
    tab_to("[data-head]")
    press("Home", "ArrowRight", "ArrowDown")
    thumbnail = visit.page.evaluate("document.activeElement.dataset.testid")
    press("Enter")
    told["opened"] = [
        thumbnail,
        *(visit.hook(name).input_value() for name in ("layer", "head")),
    ]
    # Past the last element the focus is the browser's own, not the page's.
    told["unseen"] = [one for one in focused if not one["shown"] and one["tag"] != "BODY"]
    return told
