// The answers about one text by one model: each is asked for once, when it is first looked at.

import { call } from "./api.js";
import {
  layersRequest,
  matrixRequest,
  rolloutRequest,
  statisticsRequest,
  unitsRequest,
} from "./requests.js";
import { parseSafetensors } from "./safetensors.js";
import { shareOf, unitsOf } from "./units.js";

const PATH = "v1/text/attention";
/** Most bytes of a layer's weights that are fetched where one head of it is asked for. */
const WHOLE_LAYER = 2 ** 20;
/** Most units whose thumbnails are made of all weights. */
const FULL_THUMBNAILS = 128;
const TOP_K = 8;
/** Answers that are kept; the oldest go first. */
const KEPT_BYTES = 96 * 2 ** 20;

/** Asks for a text's attention, and keeps what was answered. */
export class Source {
  #answers = new Map();
  #bytes = 0;
  #ended = new AbortController();

  /**
   * @param {import("./state.js").State} state the subject of it counts.
   * @param {{num_layers: number, num_heads: number}} info of the module.
   */
  constructor(state, info) {
    this.state = state;
    this.info = info;
    /** @type {import("./units.js").Unit[]} known from the first answer on. */
    this.units = [];
    /** Share of the text that the units stand for: less than 1 where it was cut. */
    this.share = 1;
  }

  /** Ends calls whose answers nobody waits for any more. */
  end() {
    this.#ended.abort();
  }

  get isEnded() {
    return this.#ended.signal.aborted;
  }

  /** Finds out the units, where no answer has told them. @returns {Promise<void>} */
  async know() {
    if (!this.units.length) await this.#ask(unitsRequest(this.state));
  }

  /**
   * The matrix that a state shows.
   *
   * @param {import("./state.js").State} state
   * @returns {Promise<Float32Array>} [U,U], row-major.
   */
  async matrix(state) {
    const { layer, head, aggregate } = state;
    const count = this.units.length;
    const layerBytes = 4 * this.info.num_heads * count * count;
    const isSmall = count > 0 && this.topK === null && layerBytes <= WHOLE_LAYER;
    if (aggregate === "none" && layer !== "mean" && isSmall) {
      const weights = (await this.layer(layer)).get("weights").data;
      return weights.subarray(head * count * count, (head + 1) * count * count);
    }
    const { tensors } = await this.#ask(matrixRequest(this.#with(state)));
    const { shape, data } = tensors.get("weights");
    return meanOverLayers(data, shape[0]);
  }

  /** Of how many keys of each row thumbnails are made; null for all. */
  get topK() {
    return this.units.length > FULL_THUMBNAILS ? TOP_K : null;
  }

  /**
   * All heads of a layer.
   *
   * @param {number} layer
   * @returns {Promise<Map>} `weights` [1,H,U,U]; above FULL_THUMBNAILS units `weights.indices` and
   *   `weights.values` [1,H,U,k].
   */
  async layer(layer) {
    return (await this.#ask(layersRequest(this.state, [layer], this.topK))).tensors;
  }

  /** @returns {Promise<{tensors: Map, labels: (string|null)[][]}>} tensors [N,H] by their names. */
  async statistics() {
    const { tensors, result } = await this.#ask(statisticsRequest(this.state));
    return { tensors, labels: result.classes.labels };
  }

  /** @returns {Promise<Float32Array>} [U,U], row-major. */
  async rollout(state, layer) {
    const { tensors } = await this.#ask(rolloutRequest(this.#with(state), layer));
    return tensors.get("rollout").data;
  }

  /** The API's own JSON for a request, as text. */
  async json(body) {
    const response = await call(PATH, { body: JSON.stringify(body), accept: "application/json" });
    return response.text();
  }

  /** What is looked at in a state, of this text. */
  #with(state) {
    const { text, pair, module, unit, truncate } = this.state;
    return { ...state, text, pair, module, unit, truncate };
  }

  #ask(body) {
    const key = JSON.stringify(body);
    if (!this.#answers.has(key)) {
      const answer = this.#fetch(key);
      this.#answers.set(key, answer);
      answer.catch(() => this.#answers.delete(key)); // a refusal may be another one next time
    }
    return this.#answers.get(key);
  }

  async #fetch(body) {
    const accept = "application/x-safetensors";
    const response = await call(PATH, { body, accept, signal: this.#ended.signal });
    const content = await response.arrayBuffer();
    const { tensors, metadata } = parseSafetensors(content);
    const [result] = JSON.parse(metadata.response).results;
    const { text, pair } = this.state;
    if (!this.units.length) {
      const texts = pair ? [text, pair] : [text];
      this.units = unitsOf(result, texts);
      this.share = shareOf(result, texts);
    }
    this.#forget(content.byteLength);
    const named = [...tensors].map(([name, tensor]) => [name.replace("results.0.", ""), tensor]);
    return { tensors: new Map(named), result, bytes: content.byteLength };
  }

  #forget(added) {
    this.#bytes += added;
    if (this.#bytes <= KEPT_BYTES) return;
    this.#answers.clear(); // what is on screen is held by its view
    this.#bytes = added;
  }
}

/** @param {Float32Array} data [N,1,U,U] @param {number} layers N @returns {Float32Array} [U,U] */
function meanOverLayers(data, layers) {
  if (layers === 1) return data;
  const size = data.length / layers;
  const mean = new Float32Array(size);
  for (let cell = 0; cell < size; cell += 1) {
    let sum = 0;
    for (let layer = 0; layer < layers; layer += 1) sum += data[layer * size + cell];
    mean[cell] = sum / layers;
  }
  return mean;
}
