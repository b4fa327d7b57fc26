// The elements that a heat map consists of: two canvases, buttons to zoom, and the legend.

import { css, ramp } from "./colours.js";
import { make } from "./dom.js";
import { readable } from "./numbers.js";

export const hint = "Arrow keys read cells, plus and minus zoom, 0 shows all.";

/**
 * @param {HTMLElement} container
 * @returns {object} the elements, and what is done to them.
 */
export function makeStage(container) {
  const canvas = make("canvas", {
    class: "matrix-cells",
    role: "application",
    ariaRoledescription: "heat map",
    tabindex: 0,
  });
  const over = make("canvas", { class: "matrix-over", ariaHidden: "true" });
  const box = make("div", { class: "matrix-box" }, canvas, over);
  const button = (label, text) => make("button", { type: "button", ariaLabel: label, title: label }, text);
  const buttons = {
    in: button("Zoom in", "+"),
    out: button("Zoom out", "−"),
    all: button("Show all of the matrix", "⤢"),
  };
  const zooms = make("div", { class: "zooms", role: "group", ariaLabel: "Zoom" }, ...Object.values(buttons));
  const legend = make("div", { class: "legend" });
  const tools = make("div", { class: "matrix-tools" }, legend, zooms);
  container.replaceChildren(make("div", { class: "matrix" }, tools, box));
  const ratio = () => Math.min(3, window.devicePixelRatio || 1);

  const context = (of) => {
    const drawn = of.getContext("2d");
    drawn.setTransform(ratio(), 0, 0, ratio(), 0, 0);
    return drawn;
  };

  return {
    canvas,
    buttons,
    width: () => Math.max(160, Math.min(980, box.parentElement.clientWidth || 640)),
    context: () => context(canvas),
    overContext: () => context(over),
    describe(words) {
      canvas.setAttribute("aria-label", words);
    },
    /** Makes both canvases as large as a frame. */
    resize(frame) {
      const width = Math.ceil(frame.left + frame.width + 4);
      const height = Math.ceil(frame.top + frame.height + 4);
      for (const one of [canvas, over]) {
        const [w, h] = [Math.round(width * ratio()), Math.round(height * ratio())];
        if (one.width !== w || one.height !== h) Object.assign(one, { width: w, height: h });
        Object.assign(one.style, { width: `${width}px`, height: `${height}px` });
      }
      Object.assign(box.style, { width: `${width}px`, height: `${height}px` });
      canvas.style.touchAction = frame.zoom > 1 ? "none" : "pan-y";
    },
    legend(scale, theme) {
      legend.replaceChildren(...legendOf(scale, theme));
    },
    /** What is seen, without the cursor. @returns {Promise<Blob>} */
    picture() {
      return new Promise((resolve, reject) => {
        canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("No picture was made."))));
      });
    },
  };
}

/** The scale: a bar of its colours, and the values at its ends and in its middle. */
export function legendOf(scale, theme) {
  const bar = make("canvas", { width: 256, height: 1, class: "legend-bar", ariaHidden: "true" });
  const drawn = bar.getContext("2d");
  const table = ramp(theme);
  for (let step = 0; step < 256; step += 1) {
    drawn.fillStyle = css(table, step / 255);
    drawn.fillRect(step, 0, 1, 1);
  }
  const ticks = [0, 0.5, 1].map((share) => make("span", {}, readable(scale.value(share))));
  const words = scale.isRoot ? "Colour scale, by square root" : "Colour scale";
  return [
    make("span", { class: "legend-name" }, words),
    make("div", { class: "legend-scale" }, bar, make("div", { class: "legend-ticks" }, ...ticks)),
  ];
}
