// Numbers as text.

/**
 * The shortest decimal that reads back as the same float32.
 *
 * @param {number} value a float32.
 * @returns {string}
 */
export function exact(value) {
  if (!Number.isFinite(value)) return String(value);
  for (let digits = 6; digits < 9; digits += 1) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === value) return String(short);
  }
  return String(Number(value.toPrecision(9)));
}

/** For reading: four decimals, or three digits of what is smaller. */
export function readable(value) {
  if (!Number.isFinite(value)) return String(value);
  if (value === 0) return "0";
  return Math.abs(value) >= 0.001 ? value.toFixed(4) : value.toExponential(2);
}
