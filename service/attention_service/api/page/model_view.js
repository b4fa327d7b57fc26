// The model view: every head of every layer as a small picture, fetched by layers as they come into
// sight.

import { make, rove } from "./dom.js";
import { layersRequest } from "./requests.js";
import { shownTheme } from "./theme.js";
import { drawThumbnail, sampled } from "./thumbnails.js";

export const lede = () =>
  "Every head of the model, layer by layer: rows attend to columns, each picture on its own scale. " +
  "Click one to open it.";

const GAP = 8;
const BESIDE = 16;

/**
 * @param {HTMLElement} stage
 * @param {{open: (layer: number, head: number) => void, fail: (error: Error) => void,
 *   read: (words: string) => void, drawn: () => void}} page
 * @returns {object} a view, as views.js has them.
 */
export function createView(stage, page) {
  const own = { source: null, thumbnails: [], wanted: [], isFetching: false, isNamed: false };
  const note = make("p", { class: "hint" });
  const box = make("div", { class: "model-view", dataTestid: "model-view" });
  stage.replaceChildren(box, note);

  const seen = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        seen.unobserve(target);
        own.wanted.push(Number(target.dataset.layer));
      }
      fetchAll();
    },
    { rootMargin: "200px" },
  );
  const themed = new MutationObserver(() => own.thumbnails.flat().forEach(draw));
  themed.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });

  box.addEventListener("click", (event) => {
    const thumbnail = event.target.closest("[data-head]");
    if (thumbnail) page.open(Number(thumbnail.dataset.layer), Number(thumbnail.dataset.head));
  });
  for (const type of ["pointerover", "focusin"]) {
    box.addEventListener(type, (event) => {
      const thumbnail = event.target.closest("[data-head]");
      if (thumbnail) page.read(thumbnail.getAttribute("aria-label"));
    });
  }
  rove(box, "[data-head]", (item, key) => {
    const [layer, head] = [Number(item.dataset.layer), Number(item.dataset.head)];
    const to = {
      ArrowLeft: [layer, head - 1],
      ArrowRight: [layer, head + 1],
      ArrowUp: [layer - 1, head],
      ArrowDown: [layer + 1, head],
      Home: [layer, 0],
      End: [layer, own.thumbnails[layer].length - 1],
    }[key];
    return to && own.thumbnails[to[0]]?.[to[1]]?.button;
  });

  /** Layers one after the other, so that the first is there soon; the names of heads come last. */
  async function fetchAll() {
    if (own.isFetching) return;
    own.isFetching = true;
    while (own.wanted.length) await fetchLayer(own.wanted.shift());
    own.isFetching = false;
    if (!own.isNamed && own.source) fetchLabels();
  }

  async function fetchLayer(layer) {
    const { source } = own;
    try {
      const tensors = await source.layer(layer);
      if (own.source !== source) return;
      own.thumbnails[layer].forEach((thumbnail, head) => {
        thumbnail.matrix = sampled(tensors, head, source.units.length);
        draw(thumbnail);
      });
      page.drawn();
    } catch (error) {
      if (!source.isEnded) page.fail(error);
    }
  }

  /** Names heads by what they do; that may come after the pictures. */
  async function fetchLabels() {
    const { source } = own;
    own.isNamed = true;
    try {
      const { labels } = await source.statistics();
      if (own.source !== source) return;
      own.thumbnails.forEach((heads, layer) => heads.forEach((thumbnail, head) => label(thumbnail, labels[layer][head])));
    } catch (error) {
      if (!source.isEnded) page.fail(error);
    }
  }

  return {
    files: ["png", "json"],
    load: (source) => source.know(),
    show(_, source, state) {
      if (own.source !== source) {
        Object.assign(own, { source, wanted: [], isNamed: false });
        seen.disconnect();
        own.thumbnails = build(box, source.info);
        box.querySelectorAll(".layer").forEach((layer) => seen.observe(layer));
        note.textContent =
          source.topK !== null
            ? `Of each of the ${source.units.length} rows, the pictures show the ${source.topK} strongest columns; open a head for all of them.`
            : "";
      }
      for (const { button, layer, head } of own.thumbnails.flat()) {
        const isChosen = layer === state.layer && head === state.head && state.aggregate === "none";
        button.setAttribute("aria-current", String(isChosen));
        button.tabIndex = isChosen ? 0 : -1;
      }
      if (!box.querySelector('[data-head][tabindex="0"]')) own.thumbnails[0][0].button.tabIndex = 0;
    },
    request: (state, source) => layersRequest(state, "all", source.topK),
    async png() {
      for (const [layer, thumbnails] of own.thumbnails.entries()) {
        if (!thumbnails[0].matrix) await fetchLayer(layer); // never came into sight
      }
      return sheet(own.thumbnails, getComputedStyle(box));
    },
    destroy() {
      Object.assign(own, { source: null, wanted: [] });
      seen.disconnect();
      themed.disconnect();
    },
  };
}

function build(box, { num_layers: layers, num_heads: heads }) {
  const rows = Array.from({ length: layers }, (_, layer) =>
    Array.from({ length: heads }, (_, head) => {
      const canvas = make("canvas", { width: 1, height: 1, ariaHidden: "true" });
      const kind = make("span", { class: "kind" });
      const caption = make("span", { class: "caption" }, String(head), kind);
      const attributes = { dataLayer: layer, dataHead: head, dataTestid: `thumb-${layer}-${head}` };
      const button = make("button", { type: "button", class: "thumbnail", tabindex: -1, ...attributes }, canvas, caption);
      button.setAttribute("aria-label", `Layer ${layer}, head ${head}`);
      return { button, canvas, kind, layer, head, matrix: null };
    }),
  );
  box.replaceChildren(
    ...rows.map((thumbnails, layer) => {
      const name = make("h3", { id: `layer-${layer}` }, `Layer ${layer}`);
      const grid = make("div", { class: "thumbnails" }, ...thumbnails.map(({ button }) => button));
      grid.style.setProperty("--heads", String(heads));
      const group = { class: "layer", role: "group", ariaLabelledby: `layer-${layer}`, dataLayer: layer };
      return make("section", group, name, grid);
    }),
  );
  return rows;
}

function draw({ canvas, matrix }) {
  if (matrix) drawThumbnail(canvas, matrix, shownTheme());
}

function label({ button, kind, layer, head }, name) {
  if (!name) return;
  kind.textContent = name;
  button.title = name;
  button.setAttribute("aria-label", `Layer ${layer}, head ${head}: ${name}`);
}

/** All pictures on one sheet, a layer a line. @returns {Promise<Blob>} */
function sheet(rows, style) {
  const side = 96;
  const top = 28;
  const canvas = document.createElement("canvas");
  canvas.width = 72 + rows[0].length * (side + GAP) + BESIDE;
  canvas.height = top + rows.length * (side + GAP) + BESIDE;
  const context = canvas.getContext("2d");
  context.fillStyle = style.getPropertyValue("--surface");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = false;
  context.font = "13px system-ui, sans-serif";
  context.fillStyle = style.getPropertyValue("--ink-soft");
  rows[0].forEach((_, head) => context.fillText(`head ${head}`, 72 + head * (side + GAP), top - 8));
  rows.forEach((thumbnails, layer) => {
    const y = top + layer * (side + GAP);
    context.fillText(`layer ${layer}`, BESIDE, y + side / 2);
    thumbnails.forEach(({ canvas: picture, matrix }, head) => {
      if (matrix) context.drawImage(picture, 72 + head * (side + GAP), y, side, side);
    });
  });
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("No picture was made."))));
  });
}
