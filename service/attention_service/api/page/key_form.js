// Asks for a key, where the service wants one.

import { hook } from "./dom.js";

/**
 * @returns {(words: string) => Promise<string>} shows the form and waits for a key; calls that need
 *   one meanwhile wait for the same.
 */
export function createKeyForm() {
  const input = hook("key");
  const form = input.closest("form");
  const words = form.querySelector("[data-key-words]");
  let waiting = null;

  return (asked) => {
    waiting ??= new Promise((resolve) => {
      words.textContent = asked;
      form.hidden = false;
      input.focus();
      form.onsubmit = (event) => {
        event.preventDefault();
        const key = input.value.trim();
        if (!key) return;
        input.value = "";
        form.hidden = true;
        waiting = null;
        resolve(key);
      };
    });
    return waiting;
  };
}
