// What the page says: how it stands, what went wrong, and what is pointed at.

import { hook } from "./dom.js";

export const NO_TEXT_MODULE = `This service has no text model yet. Whoever runs it can add one:

attention-service export sentence-transformers/all-MiniLM-L6-v2 --name minilm --modules MODULES

where MODULES is the folder that the service was started with. It finds the new model by itself; \
then reload this page. The tab “Tensors” works without a model.`;

/** The places where the page says something. */
export class Messages {
  #status = hook("status");
  #problem = hook("problem");
  #readout = hook("readout");
  #later = 0;

  /** @param {string} words */
  tell(words) {
    clearTimeout(this.#later);
    this.#status.textContent = words;
    this.#status.classList.remove("busy");
  }

  /** Says that something is awaited, where it takes longer than an eye's blink. */
  wait(words) {
    clearTimeout(this.#later);
    this.#later = setTimeout(() => {
      this.#status.textContent = words;
      this.#status.classList.add("busy");
    }, 150);
  }

  /** @param {string} words "" takes away what was said. */
  fail(words) {
    this.#problem.textContent = words;
    this.#problem.hidden = words === "";
    if (words) this.tell("");
  }

  /** @param {string} words what is pointed at. */
  read(words) {
    this.#readout.textContent = words;
  }
}
