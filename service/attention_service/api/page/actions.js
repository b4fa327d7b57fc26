// What can be taken along of what is shown: files, and the link.

import { hook } from "./dom.js";
import { exportAs } from "./files.js";
import { copied } from "./link.js";

const FILES = ["png", "svg", "csv", "json"];

/** The buttons for that; none does anything while nothing is shown. */
export class Actions {
  #shown = null;
  #page;

  /**
   * @param {object} page
   * @param {(words: string) => void} page.tell
   * @param {(error: Error) => void} page.fail
   * @param {() => string} page.link to what is shown.
   */
  constructor(page) {
    this.#page = page;
    for (const type of FILES) hook(`export-${type}`).addEventListener("click", () => this.#export(type));
    hook("copy-link").addEventListener("click", async () => page.tell(await copied(page.link())));
  }

  /** @param {{view: object, source: object, state: object}|null} shown what is drawn; null for nothing. */
  offer(shown) {
    this.#shown = shown;
    for (const type of FILES) hook(`export-${type}`).disabled = !shown?.view.files.includes(type);
    hook("copy-link").disabled = !shown;
  }

  async #export(type) {
    const { view, source, state } = this.#shown;
    try {
      await exportAs(type, view, source, state);
    } catch (error) {
      this.#page.fail(error);
    }
  }
}
