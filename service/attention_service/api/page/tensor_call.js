// One call of POST /v1/attention from the tensor tab, and its answer by batch and head.

import { TENSOR_FIELDS, shapeOf } from "./tensor_files.js";
import { parseSafetensors, writeSafetensors } from "./safetensors.js";

const TYPE = "application/x-safetensors";

/**
 * @typedef {import("./safetensors.js").Tensor} Tensor
 * @typedef {{rows: string[], columns: string[], values: Float32Array, title: string}} Shown
 */

/** What a call answered, and how to look at one head of it. */
export class Answer {
  /**
   * @param {object} request the fields that were sent; tensors of files stand in `sent`.
   * @param {Map<string, Tensor>} sent
   * @param {ArrayBuffer} bytes of the answer.
   */
  constructor(request, sent, bytes) {
    const { tensors, metadata } = parseSafetensors(bytes);
    this.bytes = bytes;
    this.tensors = tensors;
    this.told = JSON.parse(metadata.response);
    this.selection = Object(request.return?.weights);
    const given = TENSOR_FIELDS.filter((name) => sent.has(name) || request[name]);
    this.sentShapes = new Map(given.map((name) => [name, sent.get(name)?.shape ?? shapeOf(request[name])]));
    const query = this.sentShapes.get("query");
    this.length = query.at(-2);
    this.batches = query.length === 2 ? 1 : query[0];
    this.allHeads = query.length === 4 ? query[1] : (request.q_num_heads ?? 1);
    const { heads, reduce } = this.selection;
    this.heads = reduce ? 1 : (heads?.length ?? this.allHeads);
  }

  /** @returns {string[]} the matrices that there are: weights, scores or both. */
  get matrices() {
    const names = [...this.tensors.keys()].map((name) => (name === "weights.values" ? "weights" : name));
    return names.filter((name) => name === "weights" || name === "scores").sort().reverse();
  }

  /** @param {number} index of the head in the answer. @returns {string} */
  headName(index) {
    const { reduce } = this.selection;
    return reduce ? `${reduce} of heads` : `head ${this.#realHeads(index)[0]}`;
  }

  /** @param {number} index of the row in the answer. @returns {string} */
  rowName(index) {
    return `query ${this.#query(index)}`;
  }

  /**
   * A head's matrix. Of top k only those are known; the others are drawn as 0.
   *
   * @param {string} name weights or scores.
   * @param {number} batch
   * @param {number} head
   * @returns {Shown}
   */
  matrix(name, batch, head) {
    const indices = name === "weights" ? this.tensors.get("weights.indices") : undefined;
    const tensor = this.tensors.get(indices ? "weights.values" : name);
    const [rows, width] = tensor.shape.slice(-2);
    const found = this.#slice(tensor, batch, head, this.heads, rows * width);
    const count = indices ? this.#keys() : width;
    let values = Float32Array.from(found);
    if (indices) {
      const keys = this.#slice(indices, batch, head, this.heads, rows * width);
      values = new Float32Array(rows * count);
      found.forEach((weight, i) => (values[Math.floor(i / width) * count + keys[i]] = weight));
    }
    const part = indices ? `, the ${width} largest of each row` : "";
    const title = `${name}${part}, batch ${batch}, ${this.headName(head)}`;
    return {
      rows: Array.from({ length: rows }, (_, i) => this.rowName(i)),
      columns: Array.from({ length: count }, (_, i) => `key ${i}`),
      values,
      title,
      threshold: -Infinity, // scores may be negative
    };
  }

  /** The heads of the tensors that one of the answer's weights is made of. */
  #realHeads(index) {
    const { heads, reduce } = this.selection;
    const chosen = heads ?? Array.from({ length: this.allHeads }, (_, head) => head);
    return reduce ? chosen : [chosen[index]];
  }

  /** The query of a row of the answer's weights. */
  #query(index) {
    const { queries } = this.selection;
    return Array.isArray(queries) ? queries[index] : index + (queries?.start ?? 0);
  }

  /** All keys, a past's too: T. */
  #keys() {
    const key = this.sentShapes.get("key");
    const past = this.sentShapes.get("past_key");
    return key.at(-2) + (past ? past.at(-2) : 0);
  }

  #slice({ data }, batch, head, heads, size) {
    const start = (batch * heads + head) * size;
    return data.subarray(start, start + size);
  }

  /**
   * What belongs to each query: numbers of its rows of a head, and its output.
   *
   * @param {number} batch
   * @param {number} head as in the weights; where those were reduced, all that they are made of.
   * @returns {{names: string[], rows: number[][]}} a column each; none where none was asked for.
   */
  table(batch, head) {
    const columns = this.#realHeads(head).flatMap((real) => this.#columns(batch, real));
    const rest = this.tensors.get("weights.rest");
    if (rest) {
      const column = Array(this.length).fill(NaN);
      const size = rest.shape.at(-1);
      this.#slice(rest, batch, head, this.heads, size).forEach((mass, i) => (column[this.#query(i)] = mass));
      columns.unshift(["other keys", column]);
    }
    const names = columns.map(([name]) => name);
    const length = columns.length ? this.length : 0;
    return { names, rows: Array.from({ length }, (_, row) => columns.map(([, column]) => column[row])) };
  }

  /** @returns {[string, number[]][]} */
  #columns(batch, head) {
    const of = this.selection.reduce ? ` of head ${head}` : "";
    const columns = [];
    for (const name of ["lse", "entropy"]) {
      const tensor = this.tensors.get(name);
      if (!tensor) continue;
      columns.push([name + of, Array.from(this.#slice(tensor, batch, head, this.allHeads, this.length))]);
    }
    const output = this.tensors.get("output");
    if (!output) return columns;
    // Rank 3 has the heads side by side in its rows.
    const width = output.shape.at(-1);
    const isMerged = output.shape.length === 3;
    const count = isMerged ? width / this.allHeads : width;
    const before = isMerged ? batch * this.length : (batch * this.allHeads + head) * this.length;
    const start = before * width + (isMerged ? head * count : 0);
    for (let i = 0; i < count; i++) {
      const column = Array.from({ length: this.length }, (_, row) => output.data[start + row * width + i]);
      columns.push([`output ${i}${of}`, column]);
    }
    return columns;
  }

  /** @returns {object} every number of the answer; the elements of a tensor in one list, row-major. */
  toJSON() {
    const made = { ...this.told };
    for (const [name, { dtype, shape, data }] of this.tensors) {
      made[name] = { dtype, shape, data: Array.from(data, numeral) };
    }
    return made;
  }
}

/** A number as the wire writes it: JSON has no NaN and no infinities. */
function numeral(number) {
  return typeof number === "bigint" || !Number.isFinite(number) ? String(number) : number;
}

/**
 * Sends one call, as safetensors both ways.
 *
 * @param {object} request all fields but the tensors of files.
 * @param {Map<string, Tensor>} tensors of files, by field; they stand for the request's own.
 * @param {(path: string, options: object) => Promise<Response>} call throws ApiError.
 * @returns {Promise<Answer>}
 */
export async function send(request, tensors, call) {
  const fields = Object.fromEntries(Object.entries(request).filter(([name]) => !tensors.has(name)));
  const body = writeSafetensors(tensors, { request: JSON.stringify(fields) });
  const response = await call("v1/attention", { body, contentType: TYPE, accept: TYPE });
  return new Answer(request, tensors, await response.arrayBuffer());
}
