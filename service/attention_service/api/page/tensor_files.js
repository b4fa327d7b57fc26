// What a person brings to the tensor tab: files and pasted JSON, as tensors and other fields.

import { parseNpy } from "./npy.js";
import { parseSafetensors } from "./safetensors.js";

/** The fields of POST /v1/attention that are tensors, and short names that files have for them. */
const SHORT_NAMES = {
  query: ["q", "queries"],
  key: ["k", "keys"],
  value: ["v", "values"],
  attn_mask: ["mask", "attention_mask", "bias"],
  past_key: ["past_k"],
  past_value: ["past_v"],
  sinks: [],
  alibi_slopes: ["alibi"],
  nonpad_kv_seqlen: [],
  query_document_ids: [],
  key_document_ids: [],
};

export const TENSOR_FIELDS = Object.keys(SHORT_NAMES);

/**
 * @typedef {import("./safetensors.js").Tensor} Tensor
 * @typedef {object} Brought
 * @property {{name: string, field: string, tensor: Tensor}[]} tensors `field` is "" where nobody
 *   has said yet which field it is.
 * @property {object} fields members of the request that are no tensors of a file.
 */

/**
 * The field that a name most likely means: "layer3_q.npy" is a query.
 *
 * @param {string} name of a file or of a tensor in one.
 * @returns {string} "" where it tells none.
 */
export function fieldOf(name) {
  const words = name.toLowerCase().replace(/\.[a-z]+$/, "");
  const ends = (short) => words === short || new RegExp(`[^a-z]${short}$|^${short}[^a-z]`).test(words);
  // The longest name first: past_key is no key.
  const names = TENSOR_FIELDS.flatMap((field) => [field, ...SHORT_NAMES[field]].map((short) => [short, field]));
  names.sort(([a], [b]) => b.length - a.length);
  return names.find(([short]) => ends(short))?.[1] ?? "";
}

/**
 * Reads a file by the end of its name.
 *
 * @param {File} file .json, .npy or .safetensors.
 * @returns {Promise<Brought>}
 * @throws {Error} in words, with the file's name.
 */
export async function readFile(file) {
  const kind = /\.([^.]+)$/.exec(file.name)?.[1].toLowerCase();
  const readers = { json: readJson, npy: readNpy, safetensors: readSafetensors };
  if (!Object.hasOwn(readers, kind ?? "")) {
    throw new Error(`${file.name} is none of .json, .npy and .safetensors.`);
  }
  try {
    return await readers[kind](file);
  } catch (error) {
    throw new Error(`${file.name}: ${error.message}`, { cause: error });
  }
}

/** @param {File} file @returns {Promise<Brought>} */
async function readJson(file) {
  return { tensors: [], fields: parseRequest(await file.text()) };
}

/** @param {File} file @returns {Promise<Brought>} */
async function readNpy(file) {
  const tensor = sendable(parseNpy(await file.arrayBuffer()));
  return { tensors: [{ name: file.name, field: fieldOf(file.name), tensor }], fields: {} };
}

/** @param {File} file a request as docs/wire-format.md has it, or tensors by name. */
async function readSafetensors(file) {
  const { tensors, metadata } = parseSafetensors(await file.arrayBuffer());
  const named = [...tensors].map(([name, tensor]) => ({ name, field: fieldOf(name), tensor: sendable(tensor) }));
  return { tensors: named, fields: metadata.request ? parseRequest(metadata.request) : {} };
}

/** A tensor that was read, in a dtype that its data are in and the service takes. */
function sendable({ dtype, shape, data }) {
  return { dtype: data instanceof Float32Array ? "F32" : dtype, shape, data };
}

/**
 * The members of a request that was pasted; none of an empty text.
 *
 * @param {string} text JSON.
 * @returns {object}
 * @throws {Error} in words, where it is no JSON object.
 */
export function parseRequest(text) {
  if (!text.trim()) return {};
  let fields;
  try {
    fields = JSON.parse(text);
  } catch (error) {
    throw new Error(`The request is no JSON: ${error.message}`, { cause: error });
  }
  if (fields === null || typeof fields !== "object" || Array.isArray(fields)) {
    throw new Error('The request is no JSON object: write {"query": …, "key": …, "value": …}.');
  }
  return fields;
}

/**
 * The shape of a tensor in a JSON form; what is wrong with one, the service says.
 *
 * @param {*} tensor nested lists, or {dtype, shape, data}.
 * @returns {number[]}
 */
export function shapeOf(tensor) {
  if (!Array.isArray(tensor)) return tensor?.shape ?? [];
  return [tensor.length, ...(Array.isArray(tensor[0]) ? shapeOf(tensor[0]) : [])];
}
