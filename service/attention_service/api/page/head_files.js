// The head view as files.

import { makeSvg } from "./dom.js";
import { drawLines, ROW } from "./head_lines.js";
import { svgDocument } from "./matrix_files.js";
import { widthOf } from "./matrix_frame.js";
import { paletteOf } from "./matrix_paint.js";
import { isolated } from "./units.js";

const LINES = 260;
const FONT_FAMILY = "system-ui, 'Noto Sans', 'DejaVu Sans', sans-serif";
/** Most pixels of a side, which all browsers can draw. */
const LONGEST = 16_000;

/**
 * @param {object} drawn
 * @param {import("./units.js").Unit[]} drawn.units
 * @param {import("./head_lines.js").Line[]} drawn.lines
 * @param {number} drawn.largest
 * @param {string} drawn.title
 * @param {HTMLElement} drawn.stage whose colours are taken.
 * @returns {SVGSVGElement}
 */
function drawing({ units, lines, largest, title, stage }) {
  const { ground, ink, accent } = paletteOf(stage);
  const names = Math.max(...units.map(({ label }) => widthOf(label))) * (14 / 12) + 24;
  const [width, height] = [2 * names + LINES, units.length * ROW + 24];
  const root = makeSvg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  const text = makeSvg("g", { fill: ink, "font-size": 14, "font-family": FONT_FAMILY });
  units.forEach(({ label }, index) => {
    const y = (index + 0.5) * ROW;
    const centred = { y, "dominant-baseline": "central" };
    text.append(
      makeSvg("text", { x: names - 10, "text-anchor": "end", ...centred }, isolated(label)),
      makeSvg("text", { x: names + LINES + 10, ...centred }, isolated(label)),
    );
  });
  const drawn = drawLines(lines, largest, LINES);
  drawn.setAttribute("stroke", accent);
  drawn.setAttribute("transform", `translate(${names} 0)`);
  const body = makeSvg("g", { transform: "translate(0 12)" }, drawn, text);
  root.append(makeSvg("title", {}, title), makeSvg("rect", { width, height, fill: ground }), body);
  return root;
}

/** @returns {string} a whole SVG document. */
export function headSvg(drawn) {
  return svgDocument(drawing(drawn));
}

/** @returns {Promise<Blob>} a PNG. */
export async function headPng(drawn) {
  const root = drawing(drawn);
  const [width, height] = ["width", "height"].map((name) => Number(root.getAttribute(name)));
  const scale = Math.min(2, LONGEST / height);
  const url = URL.createObjectURL(new Blob([svgDocument(root)], { type: "image/svg+xml" }));
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: Math.ceil(width * scale), height: Math.ceil(height * scale) });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((resolve, reject) => {
      canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("No picture was made."))));
    });
  } finally {
    URL.revokeObjectURL(url);
  }
}
