// NumPy's .npy format, versions 1 to 3: numpy.lib.format in NumPy's documentation.

import { fromFloat16, toNumbers } from "./halves.js";

const MAGIC = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59]; // \x93NUMPY

/** What the header calls a dtype → what safetensors calls it, bytes of an element, how it is read. */
const DTYPES = {
  "<f2": ["F16", 2, (buffer) => fromFloat16(new Uint16Array(buffer))],
  "<f4": ["F32", 4, (buffer) => new Float32Array(buffer)],
  "<f8": ["F64", 8, (buffer) => new Float64Array(buffer)],
  "<i4": ["I32", 4, (buffer) => new Int32Array(buffer)],
  "<i8": ["I64", 8, (buffer) => toNumbers(new BigInt64Array(buffer))],
  "|b1": ["BOOL", 1, (buffer) => new Uint8Array(buffer)],
};

/**
 * Reads one array.
 *
 * @param {ArrayBuffer} buffer the whole file.
 * @returns {{dtype: string, shape: number[], data: ArrayBufferView}} as parseSafetensors gives
 *   them, row-major whatever the order in the file.
 * @throws {Error} in words, where it is none or of another dtype.
 */
export function parseNpy(buffer) {
  const bytes = new Uint8Array(buffer);
  if (bytes.length < 12 || MAGIC.some((byte, i) => bytes[i] !== byte)) {
    throw new Error("This is no .npy file: it does not begin as one. Write it with numpy.save.");
  }
  const version = bytes[6];
  if (version < 1 || version > 3) {
    throw new Error(`This .npy file has version ${version}; this page reads 1, 2 and 3.`);
  }
  const view = new DataView(buffer);
  const [begin, length] = version === 1 ? [10, view.getUint16(8, true)] : [12, view.getUint32(8, true)];
  const start = begin + length;
  if (start > bytes.length) throw new Error("This .npy file is cut off in its header.");
  const decoder = new TextDecoder(version === 3 ? "utf-8" : "latin1");
  const { descr, isFortran, shape } = headerOf(decoder.decode(bytes.subarray(begin, start)));
  if (!Object.hasOwn(DTYPES, descr)) {
    throw new Error(
      `This .npy file has the dtype ${descr}; this page reads ${Object.keys(DTYPES).join(", ")}. ` +
        "In NumPy: numpy.save(name, array.astype('<f4')).",
    );
  }
  const [dtype, width, read] = DTYPES[descr];
  const size = shape.reduce((product, one) => product * one, width);
  if (bytes.length - start !== size) {
    throw new Error(`This .npy file has ${bytes.length - start} bytes of data; its shape [${shape}] needs ${size}.`);
  }
  const data = read(buffer.slice(start));
  return { dtype, shape, data: isFortran ? rowMajor(data, shape) : data };
}

/**
 * @param {string} text a Python dictionary with descr, fortran_order and shape.
 * @returns {{descr: string, isFortran: boolean, shape: number[]}}
 */
function headerOf(text) {
  const descr = /'descr':\s*'([^']*)'/.exec(text);
  const order = /'fortran_order':\s*(True|False)/.exec(text);
  const sizes = /'shape':\s*\(([\d,\s]*)\)/.exec(text);
  if (!descr || !order || !sizes) {
    throw new Error("The header of this .npy file tells no plain dtype, order and shape; this page reads no other.");
  }
  const shape = (sizes[1].match(/\d+/g) ?? []).map(Number);
  return { descr: descr[1], isFortran: order[1] === "True", shape };
}

/**
 * @param {ArrayBufferView} data the first index runs fastest.
 * @param {number[]} shape
 * @returns {ArrayBufferView} a copy in which the last one does.
 */
function rowMajor(data, shape) {
  const copy = new data.constructor(data.length);
  const index = shape.map(() => 0);
  const strides = shape.map((_, axis) => shape.slice(0, axis).reduce((product, size) => product * size, 1));
  for (let to = 0; to < copy.length; to++) {
    copy[to] = data[index.reduce((sum, one, axis) => sum + one * strides[axis], 0)];
    for (let axis = shape.length - 1; axis >= 0 && ++index[axis] === shape[axis]; axis--) index[axis] = 0;
  }
  return copy;
}
