// Light or dark: the system's, or as the button says.

const SYSTEM = matchMedia("(prefers-color-scheme: dark)");

/**
 * @param {""|"light"|"dark"} chosen "" for the system's.
 * @returns {"light"|"dark"}
 */
export function themeOf(chosen) {
  return chosen || (SYSTEM.matches ? "dark" : "light");
}

/** Shows a theme. @param {""|"light"|"dark"} chosen */
export function applyTheme(chosen) {
  document.documentElement.dataset.theme = themeOf(chosen);
}

/** The theme that is shown. @returns {"light"|"dark"} */
export function shownTheme() {
  return document.documentElement.dataset.theme === "dark" ? "dark" : "light";
}

/** Calls back when the system changes its mind. @param {() => void} changed */
export function onSystemTheme(changed) {
  SYSTEM.addEventListener("change", changed);
}
