// The page's conductor: keeps what is looked at, and lets a view show it.

import { ApiError, call } from "./api.js";
import { createControls } from "./controls.js";
import { hook, make } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { exportAs } from "./files.js";
import { copied } from "./link.js";
import { createMatrix } from "./matrix.js";
import { Messages, NO_TEXT_MODULE } from "./messages.js";
import { Source } from "./source.js";
import { DEFAULTS, fitted, readState, subject, writeState } from "./state.js";
import { createTabs } from "./tabs.js";
import { applyTheme, shownTheme } from "./theme.js";
import { summaryOf } from "./titles.js";
import { VIEW_MAKERS } from "./views.js";

const FILES = ["png", "svg", "csv", "json"];
/** Milliseconds in which changes by a slider become one entry of the address bar. */
const SOON = 250;

export class Explorer {
  /** @type {import("./state.js").State} */
  #state = readState(location.hash);
  /** The text modules; null before the service told them. */
  #modules = null;
  /** @type {Source|null} */
  #source = null;
  /** The view that is shown, and its name. */
  #view = null;
  #name = "";
  #turn = 0;
  #writing = 0;
  #tensors = null;
  #messages = new Messages();
  #panel = createTabs((view) => this.change({ view }));
  #controls = createControls({ change: (change, options) => this.change(change, options) });

  /** Shows the link's view, or an example where it has none. */
  start() {
    if (location.hash.length < 2) {
      this.#state = { ...this.#state, ...EXAMPLES[0].state };
      this.#write("replaceState");
    }
    return this.follow();
  }

  /** Shows what the address bar says, after back, forward or another link. */
  follow() {
    this.#state = readState(location.hash);
    this.#fillTexts();
    return this.#render();
  }

  /** Shows the texts that stand in the fields. */
  run() {
    const [text, pair] = [hook("text").value, hook("pair").value];
    return this.change({ text, pair, held: [] });
  }

  /** @param {import("./examples.js").Example} example */
  example({ state }) {
    const { module, theme } = this.#state;
    this.#state = { ...DEFAULTS, module, theme };
    const shown = this.change(state);
    this.#fillTexts();
    return shown;
  }

  /**
   * Looks at something else.
   *
   * @param {Partial<import("./state.js").State>} change
   * @param {{replace: boolean}} [options] whether it is no step that "back" undoes.
   */
  change(change, { replace = false } = {}) {
    const before = subject(this.#state);
    this.#state = { ...this.#state, ...change };
    if (subject(this.#state) !== before && !change.held) this.#state.held = [];
    if (replace) this.#writeSoon();
    else this.#write("pushState");
    return this.#render();
  }

  /** The next or previous layer or head. @param {"layer"|"head"} name @param {number} by */
  step(name, by) {
    const info = this.#info();
    if (!info || this.#state.view === "tensors") return;
    const count = name === "layer" ? info.num_layers : info.num_heads;
    const from = this.#state[name] === "mean" ? -1 : this.#state[name];
    this.change({ [name]: (from + by + count) % count });
  }

  async export(type) {
    const [view, source, state] = [this.#view, this.#source, this.#state];
    if (!view || !source) return;
    try {
      await exportAs(type, view, source, state);
    } catch (error) {
      this.#fail(error);
    }
  }

  async copyLink() {
    this.#write("replaceState");
    this.#messages.tell(await copied(location.href));
  }

  #info() {
    return this.#modules?.find(({ name }) => name === this.#state.module) ?? this.#modules?.[0];
  }

  /** Asks what models there are. @returns {Promise<boolean>} whether that is known now. */
  async #learn() {
    try {
      const { modules } = await (await call("v1/modules")).json();
      this.#modules = modules.filter(({ kind }) => kind === "text");
    } catch (error) {
      this.#fail(error);
      return false;
    }
    this.#controls.fill(this.#modules);
    return true;
  }

  /** Says which model is shown in place of one that is not there; links may be of another service. */
  #fit(info) {
    const { module } = this.#state;
    if (module && module !== info.name) {
      this.#messages.fail(`There is no text module “${module}” here; this is shown with ${info.name}.`);
    }
    this.#state = fitted(this.#state, info);
  }

  async #render() {
    this.#turn += 1;
    const turn = this.#turn;
    applyTheme(this.#state.theme);
    hook("theme").textContent = shownTheme() === "dark" ? "Light" : "Dark";
    document.body.dataset.view = this.#state.view;
    const panel = this.#panel(this.#state.view);
    this.#messages.fail("");
    if (this.#state.view === "tensors") return this.#showTensors(panel);
    if (!this.#modules && !(await this.#learn())) return undefined;
    if (turn !== this.#turn) return undefined;
    const info = this.#info();
    document.body.classList.toggle("without-model", !info);
    if (!info) return this.#messages.fail(NO_TEXT_MODULE);
    this.#fit(info);
    this.#controls.show(this.#state, info);
    if (!this.#state.text.trim()) {
      this.#leave();
      return this.#messages.tell("Type a text, or click an example.");
    }
    if (!this.#source || subject(this.#source.state) !== subject(this.#state)) {
      this.#source?.end();
      this.#source = new Source(this.#state, info);
    }
    return this.#show(panel, turn);
  }

  async #show(panel, turn) {
    const [state, source] = [this.#state, this.#source];
    const view = this.#viewIn(panel);
    this.#messages.wait("Asking the model …");
    panel.setAttribute("aria-busy", "true");
    try {
      const loaded = await view.load(source, state);
      if (turn !== this.#turn) return;
      view.show(loaded, source, state);
      this.#drawn();
      this.#messages.tell(summaryOf(state, source));
    } catch (error) {
      if (turn === this.#turn) this.#fail(error);
    } finally {
      if (turn === this.#turn) panel.removeAttribute("aria-busy");
    }
  }

  /** The view of the state, made anew where another was shown. */
  #viewIn(panel) {
    const { view: name } = this.#state;
    if (this.#name === name) return this.#view;
    this.#leave();
    const { lede, create } = VIEW_MAKERS[name];
    const stage = make("div", { class: "stage" });
    panel.replaceChildren(stage);
    hook("lede").textContent = lede;
    this.#view = create(stage, {
      read: (words) => this.#messages.read(words),
      fail: (error) => this.#fail(error),
      drawn: () => this.#drawn(),
      hold: (held) => this.change({ held }, { replace: true }),
      sort: (sort) => this.change({ sort }, { replace: true }),
      open: (layer, head) => this.#open(layer, head),
    });
    this.#name = name;
    for (const type of FILES) hook(`export-${type}`).disabled = !this.#view.files.includes(type);
    return this.#view;
  }

  /** Shows a head's lines; who chose it by a key goes on from there. */
  #open(layer, head) {
    this.change({ view: "head", layer, head, aggregate: "none", held: [] });
    hook("tab-head").focus();
  }

  #leave() {
    this.#view?.destroy?.();
    if (this.#name) document.getElementById(this.#name).replaceChildren();
    [this.#view, this.#name] = [null, ""];
    this.#messages.read("");
  }

  async #showTensors(panel) {
    this.#leave();
    this.#messages.tell("");
    this.#tensors ??= import("./tensor_tab.js");
    const { mountTensorTab } = await this.#tensors;
    if (!panel.firstChild) await mountTensorTab(panel, { createMatrix, call });
  }

  #drawn() {
    requestAnimationFrame(() => performance.mark("drawn"));
  }

  #fail(error) {
    if (error.name === "AbortError") return; // nobody waits for that answer
    this.#messages.fail(error.message);
    if (!(error instanceof ApiError)) throw error;
  }

  #fillTexts() {
    hook("text").value = this.#state.text;
    hook("pair").value = this.#state.pair;
  }

  #write(how) {
    clearTimeout(this.#writing);
    if (writeState(this.#state) === location.hash) return;
    history[how](null, "", writeState(this.#state));
  }

  #writeSoon() {
    clearTimeout(this.#writing);
    this.#writing = setTimeout(() => this.#write("replaceState"), SOON);
  }
}
