// Floats of two bytes, as the typed arrays of older browsers do not have them.

/**
 * IEEE 754 binary16 as float32, which holds every one of its numbers.
 *
 * @param {Uint16Array} bits one number each.
 * @returns {Float32Array} as many numbers.
 */
export function fromFloat16(bits) {
  return Float32Array.from(bits, (half) => {
    const sign = half & 0x8000 ? -1 : 1;
    const exponent = (half >> 10) & 0x1f;
    const fraction = half & 0x3ff;
    if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}

/**
 * bfloat16, the upper half of a binary32, as float32.
 *
 * @param {Uint16Array} bits one number each.
 * @returns {Float32Array} as many numbers.
 */
export function fromBfloat16(bits) {
  return new Float32Array(Uint32Array.from(bits, (half) => half << 16).buffer);
}

/**
 * 64-bit integers as Numbers where all of them are safe ones.
 *
 * @param {BigInt64Array} integers
 * @returns {Float64Array|BigInt64Array} the array itself where a number past ±(2^53 - 1) is in it.
 */
export function toNumbers(integers) {
  const limit = BigInt(Number.MAX_SAFE_INTEGER);
  if (integers.some((one) => one > limit || one < -limit)) return integers;
  return Float64Array.from(integers, Number);
}
