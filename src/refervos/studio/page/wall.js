/** Several cameras side by side, each a session of its own. */

import { conditionOf } from "./alerts.js";
import { addAlert } from "./api.js";
import { byId, create } from "./dom.js";
import { Painter } from "./painter.js";
import { Session } from "./session.js";
import { describe } from "./stage.js";
import { LiveView } from "./views.js";

/** @import {SessionState} from "./types.js" */

const EFFECT = /** @type {const} */ ({ kind: "colour", area: "object", strength: 0.5 });
const ALERT_SHOWN = 10000;

/** One camera of the wall. */
class Tile {
  #canvas = create("canvas", { role: "img", "aria-label": "No picture yet." });
  #status = create("span", { class: "tile-status" });
  #painter = new Painter(this.#canvas);

  /**
   * @param {SessionState} state
   * @param {number} position Its position on the wall, from 0.
   */
  constructor(state, position) {
    this.session = new Session(state);
    this.view = new LiveView(this.session);
    this.name = `${position + 1} · ${state.source.name}`;
    const name = create("a", { href: `?session=${state.id}` }, this.name);
    this.element = create("li", { class: "tile" }, this.#canvas, create("div", { class: "tile-bar" }, name, this.#status));
    this.view.addEventListener("shown", () => requestAnimationFrame(() => this.#paint()));
    for (const event of ["state", "silence"]) this.session.addEventListener(event, () => this.#showStatus());
    this.session.addEventListener("connection", (event) => {
      if (/** @type {CustomEvent} */ (event).detail === "open") this.session.do("play");
    });
  }

  #paint() {
    const { view, session } = this;
    const masks = session.masks.get(view.shown);
    const { tracks } = session.state;
    const { picture, width, height } = view;
    this.#painter.paint({ picture, drawPicture: true, width, height, masks, tracks, selected: null, effect: EFFECT });
    const text = tracks.map((track) => describe(track, session.presenceAt(track.id, view.shown))).join("; ");
    this.#canvas.setAttribute("aria-label", text || "No object is being followed yet.");
    this.#canvas.dataset.frame = String(view.shown);
    this.#showStatus();
  }

  #showStatus() {
    const { state } = this.session;
    const text = this.session.silent ? "no answer" : state.frame < 0 ? "connecting" : `${state.fps.toFixed(1)} frames per second`;
    if (this.#status.textContent !== text) this.#status.textContent = text;
  }

  /** Mark the tile for a while. */
  raiseAlert() {
    this.element.classList.add("alerting");
    setTimeout(() => this.element.classList.remove("alerting"), ALERT_SHOWN);
  }

  close() {
    this.view.close();
    this.session.close();
  }
}

/** The wall. It dispatches `notice` with a sentence as detail. */
export class Wall extends EventTarget {
  /** @type {Tile[]} */ #tiles = [];
  #list = byId("tiles", HTMLUListElement);
  #form = byId("wall-form", HTMLFormElement);
  #sentence = byId("wall-sentence", HTMLInputElement);
  #alerts = byId("wall-alerts", HTMLOListElement);

  constructor() {
    super();
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#alertAll();
    });
    byId("wall-ask", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      this.#askAll(this.#sentence.value.trim());
    });
  }

  /**
   * Look for one object in all cameras.
   *
   * @param {string} expression
   */
  #askAll(expression) {
    if (!expression) return;
    for (const { session } of this.#tiles) {
      session.decide(() => {
        const [track] = session.state.tracks;
        return track ? ["set_prompt", { track: track.id, expression }] : ["add", { expression }];
      });
    }
  }

  /**
   * @param {SessionState[]} states
   */
  show(states) {
    this.close();
    this.#tiles = states.map((state, k) => new Tile(state, k));
    this.#sentence.value = states[0]?.tracks[0]?.expression ?? "";
    this.#list.replaceChildren(...this.#tiles.map(({ element }) => element));
    this.#alerts.replaceChildren();
    for (const tile of this.#tiles) {
      tile.session.addEventListener("alert", (event) => {
        tile.raiseAlert();
        const line = `${new Date().toLocaleTimeString()} · ${tile.name}: ${/** @type {CustomEvent} */ (event).detail}`;
        this.#alerts.prepend(create("li", {}, line));
      });
      tile.session.addEventListener("notice", (event) => {
        this.dispatchEvent(new CustomEvent("notice", { detail: /** @type {CustomEvent} */ (event).detail }));
      });
    }
  }

  async #alertAll() {
    const common = conditionOf(this.#form);
    if (!this.#tiles.some(({ session }) => session.state.tracks.length)) {
      this.#sentence.focus();
      return;
    }
    try {
      for (const { session } of this.#tiles) {
        for (const track of session.state.tracks) await addAlert(session.id, { track: track.id, ...common });
      }
      this.dispatchEvent(new CustomEvent("notice", { detail: "Alerts are on for all cameras." }));
    } catch (error) {
      this.dispatchEvent(new CustomEvent("notice", { detail: error instanceof Error ? error.message : String(error) }));
    }
  }

  close() {
    for (const tile of this.#tiles) tile.close();
    this.#tiles = [];
    this.#list.replaceChildren();
  }
}
