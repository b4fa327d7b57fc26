"""How long the page takes. Times of one try may be those of a busy machine."""

from __future__ import annotations

from typing import Any

from visit import Visit

TRIES = 3
WATCH = """() => {
  window.tasks = [];
  new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map((e) => e.duration)))
    .observe({ type: "longtask" });
}"""
# From the last answer before a drawing to that drawing, in ms.
DRAWN = """() => {
  const [drawn] = performance.getEntriesByName("drawn");
  const times = performance.getEntriesByName("answer").map(({ startTime }) => startTime);
  return drawn.startTime - times.filter((time) => time <= drawn.startTime).at(-1);
}"""


def first_drawing(visit: Visit, texts: list[str]) -> dict[str, Any]:
    """From the answer to the first drawing, in ms, of each view and try."""
    told: dict[str, Any] = {}
    for view in ("head", "matrix"):
        visit.open(f"#view={view}")
        told[view] = []
        for text in texts:
            visit.page.evaluate("performance.clearMarks()")
            visit.write(text)
            told[view].append(visit.page.evaluate(DRAWN))
    visit.click("tab-head")
    told["tokens"] = visit.tokens("query").count()
    return told


def pointer(visit: Visit, text: str) -> dict[str, Any]:
    """The longest task while the mouse goes over a matrix, in ms, of each try."""
    visit.open("#view=matrix")
    visit.write(text)
    canvas = visit.canvas()
    size = canvas.get_attribute("data-rows")
    box = canvas.bounding_box()
    assert box is not None
    read, longest = set(), []
    for number in range(TRIES):
        visit.page.evaluate(WATCH)
        for step in range(40):
            across = box["width"] * (0.2 + 0.7 * step / 40)
            down = min(box["height"], 700) * (0.2 + 0.15 * ((step * 7 + number) % 5))
            visit.page.mouse.move(box["x"] + across, box["y"] + down)
            visit.page.evaluate("() => new Promise(requestAnimationFrame)")
            read.add(visit.hook("readout").inner_text())
        longest.append(visit.page.evaluate("Math.max(0, ...window.tasks)"))
    return {"rows": size, "longest": longest, "read": len(read)}
