// Starts the page: its parts put together.

import { onKeyNeeded } from "./api.js";
import { hook } from "./dom.js";
import { Explorer } from "./explorer.js";
import { createKeyForm } from "./key_form.js";
import { listenToKeys } from "./keys.js";
import { onSystemTheme, shownTheme } from "./theme.js";

onKeyNeeded(createKeyForm());
const explorer = new Explorer();

const form = hook("text").form;
form.noValidate = true; // the page says in words what is missing
form.addEventListener("submit", (event) => {
  event.preventDefault();
  explorer.run();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) explorer.run();
});

hook("truncate").addEventListener("click", () => explorer.change({ truncate: true }));
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
