// Small helpers to make elements; text is only ever set as text.

/**
 * @param {string} tag
 * @param {object} [attributes] a `data…` or `aria…` name with capitals stands for its dashes; true
 *   stands for an empty attribute, false and null for none.
 * @param {...(Node|string)} children
 * @returns {HTMLElement}
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  set(element, attributes);
  element.append(...children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** As `make`, for SVG, whose attributes are written as they are. @returns {SVGElement} */
export function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    const dashed = /^(data|aria)[A-Z]/.test(name)
      ? name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
      : name;
    element.setAttribute(dashed, value === true ? "" : String(value));
  }
}

/** An element of the page by its test id. @returns {HTMLElement} */
export function hook(name) {
  return document.querySelector(`[data-testid="${name}"]`);
}

/**
 * One of a group can be reached by Tab, the others from it by arrow keys.
 *
 * @param {HTMLElement} group
 * @param {string} selector of its items.
 * @param {(item: HTMLElement, key: string) => HTMLElement|null|undefined} next where a key leads.
 */
export function rove(group, selector, next) {
  group.addEventListener("keydown", (event) => {
    const item = event.target.closest(selector);
    if (!item || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = next(item, event.key);
    if (!to) return;
    event.preventDefault();
    to.focus();
  });
  group.addEventListener("focusin", (event) => {
    const item = event.target.closest(selector);
    if (!item) return;
    for (const other of group.querySelectorAll(`${selector}[tabindex="0"]`)) other.tabIndex = -1;
    item.tabIndex = 0;
  });
}
