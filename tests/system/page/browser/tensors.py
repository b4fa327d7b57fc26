"""Scenarios of the tensor tab."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator
from visit import Visit

# Files come from outside of the browser: an event stands for the hand that drops them.
DROP = """(tab, files) => {
  const dataTransfer = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
    dataTransfer.items.add(new File([bytes], name));
  }
  for (const type of ["dragenter", "dragover", "drop"]) {
    tab.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
  }
}"""


def example(visit: Visit) -> dict[str, Any]:
    """What stands there before anything was done, and what the files of it hold."""
    visit.open("#view=tensors")
    for ending in ("csv", "json", "safetensors"):
        visit.saved(f"tensor-export-{ending}")
    return {**_seen(visit), "input": visit.hook("tensor-input").input_value()}


def files(
    visit: Visit, dropped: list[str], chosen: list[str], fields: dict[str, str], **options: Any
) -> dict[str, Any]:
    """Drops files, chooses others by the button, says what they are, and sends them."""
    visit.open("#view=tensors")
    if dropped:
        contents = [
            [Path(name).name, base64.b64encode(Path(name).read_bytes()).decode()]
            for name in dropped
        ]
        visit.hook("tensor-input").evaluate(DROP, contents)
        visit.settle()
    if chosen:
        visit.hook("tensor-file").set_input_files(chosen)
        visit.settle()
    read = visit.hook("tensor-status").inner_text()
    before = ""
    if fields:
        visit.click("tensor-run")
        before = visit.hook("tensor-status").inner_text()
    for name, field in fields.items():
        visit.page.get_by_label(f"Field that {name} is").select_option(field)
    _set(visit, options)
    visit.click("tensor-run")
    heads = visit.hook("tensor-head").locator("option").count()
    batches = visit.hook("tensor-batch").locator("option").count()
    seen = []
    for batch in range(batches):
        visit.choose_at("tensor-batch", batch)
        for head in range(heads):
            visit.choose_at("tensor-head", head)
            seen.append({"batch": batch, "head": head, **_seen(visit)})
    return {"read": read, "before": before, "seen": seen, "brought": visit.texts("tensor-brought")}


def pasted(visit: Visit, request: str, kind: int = 0, **options: Any) -> dict[str, Any]:
    """Pastes a request, reads how the options stand then, sets others and sends it."""
    visit.open("#view=tensors")
    visit.hook("tensor-input").fill(request)
    visit.hook("tensor-input").press("Tab")
    names = ("is_causal", "output", "weights", "lse", "entropy")
    checked = {name: visit.hook(f"tensor-options-{name}").is_checked() for name in names}
    names = ("scale", "softcap", "left_window_size", "top_k", "scores")
    values = {name: visit.hook(f"tensor-options-{name}").input_value() for name in names}
    _set(visit, options)
    visit.click("tensor-run")
    if kind:
        visit.choose_at("tensor-kind", kind)
    return {"checked": checked, "values": values, **_seen(visit)}


def refused(visit: Visit, requests: list[str], files: list[str]) -> dict[str, Any]:
    """What is said of requests and of files that are wrong."""
    visit.open("#view=tensors")
    told: dict[str, Any] = {"requests": [], "files": [], "bottoms": []}
    for file in files:
        visit.page.evaluate("scrollTo(0, 0)")
        visit.hook("tensor-file").set_input_files(file)
        visit.settle()
        box = visit.hook("tensor-status").bounding_box()
        assert box is not None
        told["bottoms"].append(box["y"] + box["height"])
        told["files"].append(visit.hook("tensor-status").inner_text())
    for request in requests:
        visit.hook("tensor-input").fill(request)
        visit.click("tensor-run")
        told["requests"].append(visit.hook("tensor-status").inner_text())
    return told


def _set(visit: Visit, options: dict[str, Any]) -> None:
    for name, value in options.items():
        control = visit.hook(f"tensor-options-{name}")
        if isinstance(value, bool):
            control.set_checked(value)
        elif name == "scores":
            control.select_option(value)
        else:
            control.fill(str(value))


def _seen(visit: Visit) -> dict[str, Any]:
    """What the tab shows of an answer: text, numbers of the table, cells of the matrix."""
    cells = _cells(visit) if visit.hook("tensor-matrix").is_visible() else []
    rows = visit.hook("tensor-output").locator("tr")
    table = rows.evaluate_all("(all) => all.map((row) => [...row.cells].map((c) => c.textContent))")
    return {
        "status": visit.hook("tensor-status").inner_text(),
        "shapes": visit.hook("tensor-shapes").locator("li").all_inner_texts(),
        "table": table,
        "cells": cells,
    }


def _cells(visit: Visit) -> list[list[Any]]:
    """Row, column and read-out of every cell."""
    canvas: Locator = visit.hook("tensor-matrix").locator("canvas.matrix-cells")
    place = canvas.evaluate("({ dataset }) => ({ ...dataset })")
    read = []
    for row in range(int(place["rows"])):
        for column in range(int(place["columns"])):
            visit.point(canvas, row, column)
            read.append([row, column, visit.hook("tensor-readout").inner_text()])
    return read
