// Starts the page: its parts put together.

import { onKeyNeeded } from "./api.js";
import { hook, make } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { Explorer } from "./explorer.js";
import { createKeyForm } from "./key_form.js";
import { listenToKeys } from "./keys.js";
import { onSystemTheme, shownTheme } from "./theme.js";

onKeyNeeded(createKeyForm());
const explorer = new Explorer();

const list = document.querySelector(".examples ul");
EXAMPLES.forEach((example, index) => {
  const name = make("span", { class: "name" }, example.name);
  const attributes = { type: "button", dataTestid: `example-${index}` };
  const button = make("button", attributes, name, make("small", {}, example.shows));
  button.addEventListener("click", () => explorer.example(example));
  list.append(make("li", {}, button));
});

const form = hook("text").form;
form.noValidate = true; // the page says in words what is missing
form.addEventListener("submit", (event) => {
  event.preventDefault();
  explorer.run();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) explorer.run();
});

for (const type of ["png", "svg", "csv", "json"]) {
  hook(`export-${type}`).addEventListener("click", () => explorer.export(type));
}
hook("copy-link").addEventListener("click", () => explorer.copyLink());
hook("theme").addEventListener("click", () => {
  explorer.change({ theme: shownTheme() === "dark" ? "light" : "dark" }, { replace: true });
});
document.querySelector("[data-skip]").addEventListener("click", (event) => {
  event.preventDefault(); // the fragment is the state's
  document.getElementById("viewer").focus();
});
window.addEventListener("popstate", () => explorer.follow());
onSystemTheme(() => explorer.change({}, { replace: true }));
listenToKeys(document.getElementById("viewer"), explorer);

await explorer.start();
