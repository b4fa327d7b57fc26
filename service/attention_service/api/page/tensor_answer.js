// What the tensor tab shows of an answer: shapes, a head's matrix, its rows in numbers, files.

import { make } from "./dom.js";
import { exact } from "./numbers.js";

// What a table shows; the files have it all.
const MOST_ROWS = 64;
const MOST_COLUMNS = 16;

/** The part of the tab below the form. */
export class AnswerView {
  #answer;
  #matrix;

  /**
   * @param {(container: HTMLElement, options: object) => object} createMatrix of matrix.js.
   */
  constructor(createMatrix) {
    this.batch = this.#select("tensor-batch", "Batch element");
    this.head = this.#select("tensor-head", "Head");
    this.kind = this.#select("tensor-kind", "Matrix");
    this.shapes = make("ul", { class: "tensor-shapes", dataTestid: "tensor-shapes" });
    this.readout = make("output", { class: "readout", dataTestid: "tensor-readout" });
    this.container = make("div", { class: "tensor-matrix", dataTestid: "tensor-matrix" });
    const region = { tabindex: 0, role: "region", ariaLabel: "Numbers of each query" };
    this.output = make("div", { class: "tensor-output", dataTestid: "tensor-output", ...region });
    this.note = make("p", { class: "hint" });
    this.csv = this.#button("csv", "Matrix as CSV", () => this.#matrix.csv(), "text/csv");
    const files = make(
      "p",
      { class: "tensor-files" },
      this.csv,
      this.#button("json", "Answer as JSON", () => JSON.stringify(this.#answer), "application/json"),
      this.#button("safetensors", "Answer as safetensors", () => this.#answer.bytes, "application/octet-stream"),
    );
    const choices = [this.batch, this.head, this.kind].map((select) => select.parentElement);
    const controls = make("div", { class: "tensor-choices" }, ...choices);
    const title = make("h3", {}, "Answer");
    this.element = make("div", { class: "tensor-answer", hidden: true }, title);
    this.element.append(this.shapes, controls, this.container, this.readout, this.output, this.note, files);
    this.#matrix = createMatrix(this.container, { onRead: (read) => this.#tell(read) });
  }

  /** @param {import("./tensor_call.js").Answer} answer that stands in the view from now on. */
  show(answer) {
    this.#answer = answer;
    fill(this.batch, Array.from({ length: answer.batches }, (_, i) => `${i}`));
    fill(this.head, Array.from({ length: answer.heads }, (_, i) => answer.headName(i)));
    fill(this.kind, answer.matrices);
    const told = [...answer.sentShapes, ...[...answer.tensors].map(([name, { shape }]) => [name, shape])];
    this.shapes.replaceChildren(...told.map(([name, shape]) => make("li", {}, `${name} [${shape.join(", ")}]`)));
    this.element.hidden = false;
    this.draw();
  }

  /** Draws the head that is chosen. */
  draw() {
    const [batch, head] = [this.batch.selectedIndex, this.head.selectedIndex];
    const has = this.#answer.matrices.length > 0;
    this.container.hidden = this.readout.hidden = this.csv.hidden = !has;
    this.kind.parentElement.hidden = this.#answer.matrices.length < 2;
    this.readout.textContent = "";
    if (has) this.#matrix.show(this.#answer.matrix(this.#answer.matrices[this.kind.selectedIndex], batch, head));
    this.#drawTable(this.#answer.table(batch, head));
  }

  #drawTable({ names, rows }) {
    this.output.hidden = names.length === 0;
    const shown = names.slice(0, MOST_COLUMNS);
    const heads = ["query", ...shown].map((name) => make("th", { scope: "col" }, name));
    const body = rows.slice(0, MOST_ROWS).map((row, i) => {
      const cells = row.slice(0, shown.length).map((number) => make("td", {}, digits(number)));
      return make("tr", {}, make("th", { scope: "row" }, `${i}`), ...cells);
    });
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...body));
    this.output.replaceChildren(table);
    const left = names.length > MOST_COLUMNS || rows.length > MOST_ROWS;
    this.note.textContent = left
      ? `The table shows ${body.length} of ${rows.length} queries, ${shown.length} of ${names.length} columns.`
      : "";
  }

  #select(testid, text) {
    const select = make("select", { dataTestid: testid });
    select.addEventListener("change", () => this.draw());
    make("label", { class: "field" }, make("span", {}, text), select);
    return select;
  }

  #button(ending, text, content, type) {
    const button = make("button", { type: "button", class: "quiet", dataTestid: `tensor-export-${ending}` }, text);
    button.addEventListener("click", () => save(`attention.${ending}`, new Blob([content()], { type })));
    return button;
  }

  /** @param {import("./matrix.js").Read|null} read the cell under pointer or cursor. */
  #tell(read) {
    this.readout.textContent = read ? `${read.rowName} → ${read.columnName}: ${exact(read.value)}` : "";
  }
}

/** Puts choices in a select, the one chosen before if it is still there. */
function fill(select, texts) {
  const before = select.selectedIndex;
  select.replaceChildren(...texts.map((text) => make("option", {}, text)));
  if (before > 0 && before < texts.length) select.selectedIndex = before;
}

/** A number for a table, or nothing where a query has none. */
function digits(number) {
  return Number.isNaN(number) ? "" : String(Number(number.toPrecision(6)));
}

/** Gives a file to the person. */
function save(name, blob) {
  const href = URL.createObjectURL(blob);
  make("a", { href, download: name }).click();
  // The browser has begun to read it by then.
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}
