// Small pictures of heads.

import { ramp, scaleOf, stepOf } from "./colours.js";

/** Most pixels of a side. */
const SIDE = 64;
/** Sides that the browser does not smooth: each cell is some pixels large. */
const SHARP = 40;

/**
 * One head's matrix with at most SIDE rows and columns; where cells are joined, their largest counts.
 *
 * @param {Map} tensors of `Source.layer`: `weights` [1,H,U,U], or the top k of each row.
 * @param {number} head
 * @param {number} count U.
 * @returns {{values: Float32Array, side: number}} side × side, row-major.
 */
export function sampled(tensors, head, count) {
  const side = Math.min(SIDE, count);
  const values = new Float32Array(side * side);
  const place = (index) => Math.floor((index * side) / count);
  const put = (query, key, weight) => {
    const at = place(query) * side + place(key);
    if (weight > values[at]) values[at] = weight;
  };
  const whole = tensors.get("weights");
  if (whole) {
    const start = head * count * count;
    for (let cell = 0; cell < count * count; cell += 1) {
      put(Math.floor(cell / count), cell % count, whole.data[start + cell]);
    }
    return { values, side };
  }
  const { data: weights, shape } = tensors.get("weights.values");
  const { data: indices } = tensors.get("weights.indices");
  const k = shape.at(-1);
  const start = head * count * k;
  for (let one = 0; one < count * k; one += 1) {
    put(Math.floor(one / k), Number(indices[start + one]), weights[start + one]);
  }
  return { values, side };
}

/**
 * Draws such a matrix, each on its own scale: thumbnails show where a head looks, not how hard.
 *
 * @param {HTMLCanvasElement} canvas resized.
 * @param {{values: Float32Array, side: number}} matrix
 * @param {"light"|"dark"} theme
 */
export function drawThumbnail(canvas, { values, side }, theme) {
  const table = ramp(theme);
  const { share } = scaleOf(values);
  const pixels = new ImageData(side, side);
  values.forEach((value, cell) => {
    const at = 3 * stepOf(share(value));
    pixels.data.set(table.subarray(at, at + 3), 4 * cell);
    pixels.data[4 * cell + 3] = 255;
  });
  Object.assign(canvas, { width: side, height: side });
  canvas.classList.toggle("sharp", side <= SHARP);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}
