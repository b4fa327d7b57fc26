// The page's conductor: keeps what is looked at, and lets a view show it.

import { Actions } from "./actions.js";
import { ApiError, call } from "./api.js";
import { createControls } from "./controls.js";
import { hook, make } from "./dom.js";
import { createExampleList } from "./example_list.js";
import { EXAMPLES } from "./examples.js";
import { AddressBar } from "./link.js";
import { createMatrix } from "./matrix.js";
import { Messages, NO_TEXT_MODULE, refusal } from "./messages.js";
import { Source } from "./source.js";
import { DEFAULTS, fitted, readState, subject } from "./state.js";
import { createTabs } from "./tabs.js";
import { applyTheme, shownTheme } from "./theme.js";
import { summaryOf } from "./titles.js";
import { VIEW_MAKERS } from "./views.js";

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
  #tensors = null;
  #messages = new Messages();
  #address = new AddressBar();
  #examples = createExampleList((example) => this.example(example));
  #panel = createTabs((view) => this.change({ view }));
  #controls = createControls({
    change: (change, options) => this.change(change, options),
    step: (name, by) => this.step(name, by),
  });
  #actions = new Actions({
    tell: (words) => this.#messages.tell(words),
    fail: (error) => this.#fail(error),
    link: () => {
      this.#address.write(this.#state, "replaceState");
      return location.href;
    },
  });

  /** Shows the link's view, or an example where it has none. */
  start() {
    if (location.hash.length > 1) return this.follow();
    this.#state = { ...this.#state, ...EXAMPLES[0].state };
    this.#address.write(this.#state, "replaceState");
    this.#fillTexts();
    return this.#render();
  }

  /** Shows what the address bar says, after back, forward or another link. */
  follow() {
    this.#state = readState(location.hash);
    this.#fillTexts();
    return this.#render({ isLink: true });
  }

  /** Shows the texts that stand in the fields. Another text is not cut before somebody has said so. */
  run() {
    const [text, pair] = [hook("text").value, hook("pair").value];
    const isSame = text === this.#state.text && pair === this.#state.pair;
    const shown = this.change({ text, pair, held: [], truncate: isSame && this.#state.truncate });
    this.#bringIntoSight();
    return shown;
  }

  /** @param {import("./examples.js").Example} example */
  example({ state }) {
    const { module, theme } = this.#state;
    this.#state = { ...DEFAULTS, module, theme };
    const shown = this.change(state);
    this.#fillTexts();
    this.#bringIntoSight();
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
    if (replace) this.#address.writeSoon(this.#state);
    else this.#address.write(this.#state, "pushState");
    return this.#render();
  }

  /** The next or previous layer or head. @param {"layer"|"head"} name @param {number} by */
  step(name, by) {
    const info = this.#info();
    const isOneHead = this.#state.aggregate === "none";
    if (!info || this.#state.view === "tensors" || (name === "head" && !isOneHead)) return;
    const count = name === "layer" ? info.num_layers : info.num_heads;
    const from = this.#state[name] === "mean" ? -1 : this.#state[name];
    this.change({ [name]: (from + by + count) % count });
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

  /** Says what is shown in place of what a link asks for; it may be of another service. */
  #fit(info, isLink) {
    const { state, changes } = fitted(this.#state, info);
    this.#state = state;
    if (changes.length) this.#address.write(state, "replaceState");
    if (isLink) this.#messages.fail(changes.join("\n"));
  }

  async #render({ isLink = false } = {}) {
    this.#turn += 1;
    const turn = this.#turn;
    applyTheme(this.#state.theme);
    hook("theme").textContent = shownTheme() === "dark" ? "Light" : "Dark";
    document.body.dataset.view = this.#state.view;
    const panel = this.#panel(this.#state.view);
    this.#examples(this.#state);
    this.#messages.fail("");
    if (this.#state.view === "tensors") return this.#showTensors(panel);
    if (!this.#modules && !(await this.#learn())) return undefined;
    if (turn !== this.#turn) return undefined;
    const info = this.#info();
    document.body.classList.toggle("without-model", !info);
    if (!info) return this.#messages.fail(NO_TEXT_MODULE);
    this.#fit(info, isLink);
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
      this.#actions.offer({ view, source, state });
      this.#drawn();
      this.#messages.tell(summaryOf(state, source));
    } catch (error) {
      if (turn !== this.#turn) return;
      this.#leave(); // what was shown is of something else
      this.#fail(error);
    } finally {
      if (turn === this.#turn) panel.removeAttribute("aria-busy");
    }
  }

  /** The view of the state, made anew where another was shown. */
  #viewIn(panel) {
    const { view: name, unit } = this.#state;
    const { lede, create } = VIEW_MAKERS[name];
    hook("lede").textContent = lede(unit);
    if (this.#name === name) return this.#view;
    this.#leave();
    const stage = make("div", { class: "stage" });
    panel.replaceChildren(stage);
    this.#view = create(stage, {
      read: (words) => this.#messages.read(words),
      fail: (error) => this.#fail(error),
      drawn: () => this.#drawn(),
      hold: (held) => this.change({ held }, { replace: true }),
      sort: (sort) => this.change({ sort }, { replace: true }),
      open: (layer, head) => this.#open(layer, head),
    });
    this.#name = name;
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
    this.#actions.offer(null);
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
    this.#messages.fail(...refusal(error, this.#state, this.#info()));
    if (!(error instanceof ApiError)) throw error;
  }

  /** In a narrow window the view lies below all choices. */
  #bringIntoSight() {
    const viewer = document.getElementById("viewer");
    if (viewer.getBoundingClientRect().top > innerHeight / 2) viewer.scrollIntoView();
  }

  #fillTexts() {
    hook("text").value = this.#state.text;
    hook("pair").value = this.#state.pair;
  }
}
