// The safetensors format, read and written: https://github.com/huggingface/safetensors.
// 8 bytes of header length (little-endian), a JSON header, the elements of all tensors.

import { fromBfloat16, fromFloat16, toNumbers } from "./halves.js";

const LARGEST_HEADER = 16 * 2 ** 20;

/**
 * @typedef {object} Tensor
 * @property {string} dtype as safetensors names it: F32, F16, BF16, F64, I32, I64, BOOL or U8.
 * @property {number[]} shape
 * @property {ArrayBufferView} data the elements, row-major. F16 and BF16 are a Float32Array, I64 a
 *   Float64Array where every number is safe in it, else a BigInt64Array.
 */

/** dtype → bytes of an element, and how a copy of the elements is read. */
const DTYPES = {
  F64: [8, (buffer) => new Float64Array(buffer)],
  I64: [8, (buffer) => toNumbers(new BigInt64Array(buffer))],
  F32: [4, (buffer) => new Float32Array(buffer)],
  I32: [4, (buffer) => new Int32Array(buffer)],
  F16: [2, (buffer) => fromFloat16(new Uint16Array(buffer))],
  BF16: [2, (buffer) => fromBfloat16(new Uint16Array(buffer))],
  BOOL: [1, (buffer) => new Uint8Array(buffer)],
  U8: [1, (buffer) => new Uint8Array(buffer)],
};

/**
 * Reads a file or an answer.
 *
 * @param {ArrayBuffer} buffer all of it.
 * @returns {{tensors: Map<string, Tensor>, metadata: Object<string, string>}}
 * @throws {Error} in words, where it is none.
 */
export function parseSafetensors(buffer) {
  if (buffer.byteLength < 8) throw new Error("This is no safetensors file: it ends in its first 8 bytes.");
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  if (length > LARGEST_HEADER || 8 + length > buffer.byteLength) {
    throw new Error("This is no whole safetensors file: its header would end past the file.");
  }
  const { __metadata__: metadata = {}, ...entries } = headerOf(new Uint8Array(buffer, 8, length));
  const tensors = new Map();
  for (const [name, entry] of Object.entries(entries)) {
    tensors.set(name, tensorOf(name, entry, buffer, 8 + length));
  }
  return { tensors, metadata };
}

/** @param {Uint8Array} bytes the header's. @returns {object} */
function headerOf(bytes) {
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new Error("This is no safetensors file: its header is no JSON.", { cause: error });
  }
  if (header === null || typeof header !== "object" || Array.isArray(header)) {
    throw new Error("This is no safetensors file: its header is no JSON object.");
  }
  return header;
}

/**
 * @param {string} name
 * @param {{dtype: string, shape: number[], data_offsets: [number, number]}} entry
 * @param {ArrayBuffer} buffer
 * @param {number} start first byte of the data.
 * @returns {Tensor}
 */
function tensorOf(name, entry, buffer, start) {
  const { dtype, shape, data_offsets: offsets } = entry ?? {};
  if (!Object.hasOwn(DTYPES, dtype)) {
    throw new Error(`${name} has the dtype ${dtype}; this page reads ${Object.keys(DTYPES).join(", ")}.`);
  }
  const isSize = (size) => Number.isSafeInteger(size) && size >= 0;
  if (!Array.isArray(shape) || !shape.every(isSize)) {
    throw new Error(`The shape of ${name} is no list of sizes.`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize)) {
    throw new Error(`${name} does not say where its data are.`);
  }
  const [width, read] = DTYPES[dtype];
  const [from, to] = offsets;
  const bytes = shape.reduce((product, size) => product * size, width);
  if (to - from !== bytes || start + to > buffer.byteLength) {
    throw new Error(`${name} has not the ${bytes} bytes that ${dtype} [${shape}] needs: the file is damaged.`);
  }
  return { dtype, shape, data: read(buffer.slice(start + from, start + to)) };
}

/**
 * Writes tensors, by falling size of their elements and the data at a multiple of 8, so that the
 * service reads them in place.
 *
 * @param {Map<string, Tensor>} tensors F16 and BF16 must hold their bits, as a Uint16Array.
 * @param {Object<string, string>} [metadata]
 * @returns {Uint8Array}
 * @throws {Error} where a tensor has not the elements that its shape needs.
 */
export function writeSafetensors(tensors, metadata = {}) {
  const sorted = [...tensors].sort(([, a], [, b]) => DTYPES[b.dtype][0] - DTYPES[a.dtype][0]);
  const header = Object.keys(metadata).length ? { __metadata__: metadata } : {};
  let end = 0;
  const parts = sorted.map(([name, { dtype, shape, data }]) => {
    const part = dtype === "I64" && data instanceof Float64Array ? BigInt64Array.from(data, BigInt) : data;
    const bytes = shape.reduce((product, size) => product * size, DTYPES[dtype][0]);
    if (part.byteLength !== bytes) {
      throw new Error(`${name} has ${part.byteLength} bytes; ${dtype} [${shape}] needs ${bytes}.`);
    }
    header[name] = { dtype, shape, data_offsets: [end, end + bytes] };
    end += bytes;
    return part;
  });
  const text = new TextEncoder().encode(JSON.stringify(header));
  const start = 8 * Math.ceil((8 + text.length) / 8);
  const written = new Uint8Array(start + end).fill(0x20, 8, start);
  new DataView(written.buffer).setBigUint64(0, BigInt(start - 8), true);
  written.set(text, 8);
  let at = start;
  for (const { buffer, byteOffset, byteLength } of parts) {
    written.set(new Uint8Array(buffer, byteOffset, byteLength), at);
    at += byteLength;
  }
  return written;
}
