// The colour scale: one gradient for each theme, in even steps of lightness, from the page's own
// ground (0) to what stands out of it most. Colours are mixed in OKLab,
// https://bottosson.github.io/posts/oklab/.

const STEPS = 256;

/** Lightness 0–1, chroma and hue in degrees, at 0, ½ and 1 of the scale. */
const STOPS = {
  light: [[0.985, 0.006, 230], [0.68, 0.115, 225], [0.29, 0.13, 275]],
  dark: [[0.205, 0.02, 275], [0.56, 0.15, 265], [0.95, 0.075, 190]],
};
/** Of numbers that are none. */
export const NOT_A_NUMBER = [128, 128, 128];

const tables = new Map();

/**
 * The gradient of a theme.
 *
 * @param {"light"|"dark"} theme
 * @returns {Uint8ClampedArray} [256,3], sRGB.
 */
export function ramp(theme) {
  if (!tables.has(theme)) {
    const table = new Uint8ClampedArray(STEPS * 3);
    for (let step = 0; step < STEPS; step += 1) {
      table.set(srgb(...mixed(STOPS[theme], step / (STEPS - 1))), step * 3);
    }
    tables.set(theme, table);
  }
  return tables.get(theme);
}

/**
 * @param {Uint8ClampedArray} table of `ramp`.
 * @param {number} share 0 to 1.
 * @returns {string} a CSS colour.
 */
export function css(table, share) {
  const at = 3 * stepOf(share);
  return `rgb(${table[at]}, ${table[at + 1]}, ${table[at + 2]})`;
}

/** Index into a ramp of a share from 0 to 1. */
export function stepOf(share) {
  return Math.round(Math.min(1, Math.max(0, share)) * (STEPS - 1));
}

/**
 * How values become shares of the scale. Weights have many small values and a few large ones, so
 * that the scale of what is never negative goes by square roots; its legend says so.
 *
 * @param {ArrayLike<number>} values
 * @returns {{low: number, high: number, isRoot: boolean, share: (value: number) => number,
 *   value: (share: number) => number}}
 */
export function scaleOf(values) {
  let low = 0;
  let high = 0;
  for (let index = 0; index < values.length; index += 1) {
    const value = values[index];
    if (!Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const range = high - low || 1;
  const isRoot = low === 0;
  const share = (value) => (isRoot ? Math.sqrt(Math.max(0, value) / range) : (value - low) / range);
  const value = (part) => (isRoot ? range * part * part : low + range * part);
  return { low, high, isRoot, share, value };
}

/** Each part by straight lines between the stops; hues are near each other. */
function mixed(stops, share) {
  const at = share * (stops.length - 1);
  const first = Math.min(Math.floor(at), stops.length - 2);
  return stops[first].map((part, index) => part + (at - first) * (stops[first + 1][index] - part));
}

/** OKLCH → sRGB, 0 to 255. */
function srgb(lightness, chroma, hue) {
  const a = chroma * Math.cos((hue * Math.PI) / 180);
  const b = chroma * Math.sin((hue * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((linear) => {
    const bounded = Math.max(0, linear);
    return 255 * (bounded <= 0.0031308 ? 12.92 * bounded : 1.055 * bounded ** (1 / 2.4) - 0.055);
  });
}
