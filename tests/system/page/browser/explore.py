"""Scenarios of the views of a text."""

from __future__ import annotations

from typing import Any

from visit import Visit

Cells = list[list[int]]


def lines(visit: Visit, text: str, pair: str = "", layer: int = 0, head: int = 0) -> dict[str, Any]:
    """The head view: all lines, those of a token that is pointed at, and of tokens held."""
    visit.open()
    visit.write(text, pair)
    visit.click("tab-head")
    visit.choose("layer", layer)
    visit.choose("head", head)
    told: dict[str, Any] = {side: visit.tokens(side).all_inner_texts() for side in ("query", "key")}
    told["all"] = visit.lines()
    visit.tokens("query").nth(5).hover()
    visit.settle()
    told["hovered"] = {"readout": visit.hook("readout").inner_text(), "lines": visit.lines()}
    visit.page.mouse.move(0, 0)
    visit.settle()
    told["left"] = visit.lines()
    steps = [("query", 2), ("key", 4), ("query", 2)]
    told["clicked"] = []
    for side, index in steps:
        visit.tokens(side).nth(index).click()
        visit.page.mouse.move(0, 0)
        visit.settle()
        told["clicked"].append({"held": visit.held(), "lines": visit.lines()})
    told["sliders"] = []
    visit.tokens("key").nth(4).click()
    visit.page.mouse.move(0, 0)
    for topk, threshold in [(2, 0), (32, 0.1), (3, 0.05)]:
        visit.slide("topk", topk)
        visit.slide("threshold", threshold)
        told["sliders"].append({"topk": topk, "threshold": threshold, "lines": visit.lines()})
    return told


def matrices(visit: Visit, text: str, steps: list[dict[str, Any]], cells: Cells) -> list[Any]:
    """The matrix after each step of choices: read-outs of cells, and the colours of all."""
    visit.open()
    visit.write(text)
    visit.click("tab-matrix")
    seen = []
    for step in steps:
        for name, value in step.items():
            if name == "view":
                visit.click(f"tab-{value}")
            elif name == "heads_off":
                for head in value:
                    visit.click(f"heads-{head}")
            else:
                visit.choose(name, value)
        seen.append(_matrix(visit, cells))
    return seen


def _matrix(visit: Visit, cells: Cells) -> dict[str, Any]:
    canvas = visit.canvas()
    place = canvas.evaluate("({ dataset }) => ({ ...dataset })")
    rows, columns = int(place["rows"]), int(place["columns"])
    read = []
    for row, column in cells:
        visit.point(canvas, row, column)
        read.append([row, column, visit.hook("readout").inner_text()])
    visit.page.mouse.move(0, 0)
    every = [[row, column] for row in range(rows) for column in range(columns)]
    return {"rows": rows, "columns": columns, "read": read, "colours": visit.colours(canvas, every)}


def zoomed(visit: Visit, text: str, cell: list[int]) -> dict[str, Any]:
    """A cell before and after the wheel has been turned over it, and after a pan."""
    visit.open()
    visit.write(text)
    visit.click("tab-matrix")
    visit.choose("layer", 0)
    visit.choose("head", 0)
    canvas = visit.canvas()
    read = []
    visit.point(canvas, *cell)
    read.append(visit.hook("readout").inner_text())
    visit.page.mouse.wheel(0, -400)
    visit.settle()
    zoom = float(canvas.get_attribute("data-zoom") or 0)
    visit.page.mouse.move(0, 0)
    visit.point(canvas, *cell)
    read.append(visit.hook("readout").inner_text())
    visit.page.mouse.down()
    visit.page.mouse.move(*_moved(visit, 30, 20), steps=4)
    visit.page.mouse.up()
    visit.settle()
    visit.page.mouse.move(0, 0)
    visit.point(canvas, *cell)
    read.append(visit.hook("readout").inner_text())
    return {"zoom": zoom, "read": read}


def _moved(visit: Visit, across: int, down: int) -> tuple[float, float]:
    """A place beside that of the last cell that was pointed at."""
    box = visit.canvas().bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2 + across, box["y"] + box["height"] / 2 + down


def heads(visit: Visit, text: str, opened: list[int]) -> dict[str, Any]:
    """All heads: the pixels of every thumbnail, and what opens when one is clicked."""
    visit.open()
    visit.write(text)
    visit.click("tab-model")
    thumbnails = visit.hook("model-view").locator("[data-head]")
    pictures: dict[str, Any] = {}
    script = """(button) => {
      const canvas = button.querySelector("canvas");
      const { width, height } = canvas;
      const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
      const pixels = Array.from({ length: width * height }, (_, at) => at * 4);
      return { width, height, colours: pixels.map((at) => [...data.slice(at, at + 3)]) };
    }"""
    for index in range(thumbnails.count()):
        thumbnail = thumbnails.nth(index)
        thumbnail.scroll_into_view_if_needed()
        visit.settle()
        pictures[str(thumbnail.get_attribute("data-testid"))] = thumbnail.evaluate(script)
    visit.click(f"thumb-{opened[0]}-{opened[1]}")
    # A token that comes to lie under the mouse would have its lines alone.
    visit.page.mouse.move(0, 0)
    visit.settle()
    chosen = [visit.hook(name).input_value() for name in ("layer", "head")]
    return {"pictures": pictures, "chosen": chosen, "lines": visit.lines()}


def statistics(visit: Visit, text: str) -> dict[str, Any]:
    """The table of numbers as it is first, and sorted by two columns; then one head is opened."""
    visit.open()
    visit.write(text)
    visit.click("tab-statistics")
    table = visit.hook("statistics-table")
    orders = [_table(visit)]
    for column in ("entropy", "entropy", "class"):
        table.locator(f'th[data-column="{column}"] button').click()
        visit.settle()
        orders.append(_table(visit))
    header = table.locator("thead th").all_inner_texts()
    sort = table.locator('th[data-column="class"]').get_attribute("aria-sort")
    table.locator("tbody tr").nth(3).get_by_role("button").click()
    visit.settle()
    chosen = [visit.hook(name).input_value() for name in ("layer", "head")]
    return {"header": header, "orders": orders, "sort": sort, "chosen": chosen}


def _table(visit: Visit) -> list[list[str]]:
    script = """(all) => all.map((row) =>
      [...row.cells].map((cell) => cell.dataset.value ?? cell.textContent))"""
    return list(visit.hook("statistics-table").locator("tbody tr").evaluate_all(script))


def first(visit: Visit) -> dict[str, Any]:
    """What somebody sees who comes for the first time, and each example."""
    visit.open()
    told = {"text": visit.hook("text").input_value(), "lines": visit.lines(), "examples": []}
    examples = visit.page.locator('[data-testid^="example-"]')
    for index in range(examples.count()):
        visit.click(f"example-{index}")
        texts = [visit.hook(name).input_value() for name in ("text", "pair")]
        problem = visit.hook("problem").is_visible()
        told["examples"].append({"texts": texts, "problem": problem})
    return told


def refused(visit: Visit, text: str, long: str) -> dict[str, Any]:
    """After a text that is shown: one that is too long, its first tokens, and no text at all."""
    visit.open()
    visit.write(text)
    told: dict[str, Any] = {"shown": _offer(visit)}
    visit.write(long)
    told["refused"] = _offer(visit)
    visit.click("truncate")
    told["cut"] = _offer(visit)
    visit.open("#" + visit.page.url.partition("#")[2])
    told["linked"] = _offer(visit)
    visit.write(long + " And more.")
    told["another"] = _offer(visit)
    visit.write("")
    told["empty"] = _offer(visit)
    return told


def _offer(visit: Visit) -> dict[str, Any]:
    """What is shown, said and offered."""
    script = "(all) => all.filter((one) => !one.disabled).map((one) => one.textContent)"
    cure = visit.hook("truncate")
    return {
        "tokens": visit.tokens("query").count(),
        "status": visit.hook("status").inner_text(),
        "problem": visit.hook("problem").locator("p").inner_text(),
        "cure": cure.inner_text() if cure.is_visible() else "",
        "files": visit.page.locator(".actions button").evaluate_all(script),
    }


def linked(visit: Visit, fragment: str) -> dict[str, Any]:
    """What a link opens, and what stands in the address bar then."""
    visit.open(fragment)
    chosen = [visit.hook(name).input_value() for name in ("module", "layer", "head")]
    return {**_offer(visit), "chosen": chosen, "fragment": visit.page.url.partition("#")[2]}


def ledes(visit: Visit, text: str) -> dict[str, list[str]]:
    """What stands above each view of words, and how the page stands."""
    told = {}
    for view in ("head", "matrix", "rollout"):
        visit.open(f"#view={view}&unit=word&layer=3&text={text}")
        told[view] = [visit.hook(name).inner_text() for name in ("lede", "status")]
    return told


def places(visit: Visit, text: str) -> dict[str, Any]:
    """Where layer and head stand; they step to the next; and where the view is after Show."""
    visit.open()
    bottoms = []
    for name in ("layer", "head"):
        box = visit.hook(name).bounding_box()
        assert box is not None
        bottoms.append(box["y"] + box["height"])
    steps = []
    for name in ("Layer after", "Head after", "Head before", "Layer before"):
        visit.page.get_by_label(name).click()
        visit.settle()
        steps.append([visit.hook(one).input_value() for one in ("layer", "head")])
    visit.page.evaluate("scrollTo(0, 0)")
    visit.write(text)
    top = visit.page.evaluate("document.getElementById('viewer').getBoundingClientRect().top")
    return {"bottoms": bottoms, "steps": steps, "top": top}
