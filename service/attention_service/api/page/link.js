// The link: it stands in the address bar, and can be copied.

import { writeState } from "./state.js";

/** Milliseconds in which changes by a slider become one entry. */
const SOON = 250;

/** The address bar, which says what is looked at. */
export class AddressBar {
  #writing = 0;

  /** @param {import("./state.js").State} state @param {"pushState"|"replaceState"} how */
  write(state, how) {
    clearTimeout(this.#writing);
    const link = writeState(state);
    if (link !== location.hash) history[how](null, "", link);
  }

  /** In place of what stands there, once nothing has changed for a moment. */
  writeSoon(state) {
    clearTimeout(this.#writing);
    this.#writing = setTimeout(() => this.write(state, "replaceState"), SOON);
  }
}

/**
 * @param {string} link
 * @returns {Promise<string>} what became of it, in words.
 */
export async function copied(link) {
  try {
    // Browsers have no clipboard for pages that came unencrypted from another machine.
    if (!navigator.clipboard) throw new DOMException("no clipboard", "NotAllowedError");
    await navigator.clipboard.writeText(link);
    return "The link is copied. It holds the text, and sends it to nobody.";
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    return "The browser does not let this page copy: copy the link from the address bar.";
  }
}
