// The tabs of the views.

import { hook, rove } from "./dom.js";
import { VIEWS } from "./state.js";

/**
 * Wires the tabs; arrow keys go from one to the next and open it.
 *
 * @param {(view: string) => void} open
 * @returns {(view: string) => HTMLElement} shows a view's panel, and gives it.
 */
export function createTabs(open) {
  const tabs = VIEWS.map((view) => hook(`tab-${view}`));
  const list = tabs[0].parentElement;
  tabs.forEach((tab, index) => tab.addEventListener("click", () => open(VIEWS[index])));
  rove(list, '[role="tab"]', (tab, key) => {
    const at = tabs.indexOf(tab);
    const count = tabs.length;
    const moves = { ArrowLeft: at - 1 + count, ArrowRight: at + 1, Home: 0, End: count - 1 };
    if (!(key in moves)) return null;
    const to = moves[key] % count;
    open(VIEWS[to]);
    return tabs[to];
  });
  return (view) => {
    VIEWS.forEach((other, index) => {
      const isShown = other === view;
      tabs[index].setAttribute("aria-selected", String(isShown));
      tabs[index].tabIndex = isShown ? 0 : -1;
      document.getElementById(other).hidden = !isShown;
      if (isShown) tabs[index].scrollIntoView({ block: "nearest", inline: "nearest" });
    });
    return document.getElementById(view);
  };
}
