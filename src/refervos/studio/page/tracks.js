/** One row for each sentence: its colour, name, presence, eye, and its lane of the timeline. */

import { byId, create, icon } from "./dom.js";
import { rgb } from "./server_state.js";
import { VISIBLE } from "./session.js";

/** @import {Session} from "./session.js" */
/** @import {Timeline} from "./timeline.js" */
/** @import {Track} from "./types.js" */

/**
 * @typedef {object} Row
 * @property {HTMLLIElement} element
 * @property {HTMLInputElement} colour
 * @property {HTMLButtonElement} name
 * @property {HTMLElement} presence
 * @property {HTMLButtonElement} eye
 * @property {HTMLButtonElement} edit
 * @property {HTMLButtonElement} drop
 */

/** The list of sentences. It dispatches `select` with a track's number as detail. */
export class Tracks extends EventTarget {
  /** @type {Session | null} */ session = null;
  /** @type {number | null} */ selected = null;
  #list = byId("tracks", HTMLOListElement);
  /** @type {Map<number, Row>} */ #rows = new Map();
  #dialog = byId("edit-dialog", HTMLDialogElement);
  #expression = byId("edit-expression", HTMLInputElement);
  #label = byId("edit-label", HTMLInputElement);
  /** @type {Track | null} */ #edited = null;

  /**
   * @param {Timeline} timeline
   */
  constructor(timeline) {
    super();
    this.timeline = timeline;
    this.#dialog.addEventListener("close", () => {
      if (this.#dialog.returnValue === "save") this.#save();
    });
  }

  /**
   * @param {Session} session
   */
  show(session) {
    this.session = session;
    this.selected = null;
    this.#rows.clear();
    this.#list.replaceChildren();
    session.addEventListener("state", () => this.#update());
    this.#update();
  }

  /**
   * @param {number | null} id
   */
  select(id) {
    this.selected = id;
    for (const [track, { element, name }] of this.#rows) {
      element.classList.toggle("selected", track === id);
      name.setAttribute("aria-pressed", String(track === id));
    }
    this.dispatchEvent(new CustomEvent("select", { detail: id }));
  }

  /**
   * Select a neighbour of the selected sentence.
   *
   * @param {number} direction
   */
  selectNext(direction) {
    const ids = [...this.#rows.keys()];
    if (!ids.length) return;
    const at = this.selected === null ? -1 : ids.indexOf(this.selected);
    this.select(ids[(at + direction + ids.length) % ids.length]);
  }

  /**
   * Show a track that is hidden, or hide it.
   *
   * @param {number} id
   */
  toggleVisible(id) {
    const { session } = this;
    session?.decide(() => {
      const track = session.track(id);
      return track ? ["show", { track: id, visible: !track.visible }] : null;
    });
  }

  /**
   * Show the presence of every object in a frame.
   *
   * @param {number} frame
   */
  showPresence(frame) {
    const session = this.session;
    if (!session) return;
    for (const [id, row] of this.#rows) {
      const value = session.presenceAt(id, frame);
      const there = typeof value === "number" && value >= VISIBLE;
      const text = typeof value !== "number" ? "" : there ? `${Math.round(100 * value)} %` : "not there";
      if (row.presence.textContent !== text) row.presence.textContent = text;
      row.element.classList.toggle("absent", typeof value === "number" && !there);
    }
  }

  #update() {
    const { session } = this;
    if (!session) return;
    const tracks = session.state.tracks;
    for (const [id, row] of this.#rows) {
      if (session.track(id)) continue;
      row.element.remove();
      this.#rows.delete(id);
    }
    for (const track of tracks) {
      const row = this.#rows.get(track.id) ?? this.#addRow(track);
      const name = track.label ?? track.expression;
      row.name.textContent = name;
      row.name.title = track.label ? track.expression : "";
      row.colour.value = track.colour;
      row.colour.setAttribute("aria-label", `Colour of ${name}`);
      row.eye.setAttribute("aria-pressed", String(track.visible));
      row.eye.setAttribute("aria-label", `Show ${name}`);
      row.eye.replaceChildren(icon(track.visible ? "eye" : "eye-off"));
      row.edit.setAttribute("aria-label", `Edit ${name}`);
      row.drop.setAttribute("aria-label", `Drop ${name}`);
      row.element.classList.toggle("hidden-track", !track.visible);
    }
    if (this.selected === null || !session.track(this.selected)) {
      this.select(tracks.length ? tracks[tracks.length - 1].id : null);
    }
  }

  /**
   * @param {Track} track
   * @returns {Row}
   */
  #addRow({ id }) {
    const send = (/** @type {string} */ command, /** @type {(track: Track) => Record<string, unknown>} */ parameters = () => ({})) =>
      this.session?.decide(() => {
        const track = this.session?.track(id);
        return track ? [command, { track: id, ...parameters(track) }] : null; // it was dropped before
      });
    const recolour = (/** @type {[number, number, number]} */ colour) => send("show", ({ visible }) => ({ visible, colour }));
    const row = {
      colour: create("input", { type: "color", change: () => recolour(rgb(row.colour.value)) }),
      name: create("button", { type: "button", class: "name", click: () => this.select(id) }),
      presence: create("span", { class: "presence" }),
      eye: create("button", { type: "button", class: "quiet", click: () => this.toggleVisible(id) }),
      edit: create("button", { type: "button", class: "quiet", click: () => this.edit(id) }, icon("pencil")),
      drop: create("button", { type: "button", class: "quiet", click: () => send("drop") }, icon("cross")),
      element: create("li"),
    };
    const lane = create("div", { class: "lane", pointerdown: () => this.select(id) });
    lane.append(create("canvas", { "data-track": String(id), "aria-hidden": "true" }));
    this.timeline.adopt(lane);
    const label = create("div", { class: "label" }, row.colour, row.name, row.presence, row.eye, row.edit, row.drop);
    row.element.dataset.track = String(id);
    row.element.append(label, lane);
    this.#list.append(row.element);
    this.#rows.set(id, row);
    this.select(id);
    return row;
  }

  /**
   * Let the user change a sentence or its name.
   *
   * @param {number} id
   */
  edit(id) {
    const track = this.session?.track(id);
    if (!track) return;
    this.#edited = track;
    this.#expression.value = track.expression;
    this.#label.value = track.label ?? "";
    this.#dialog.returnValue = "";
    this.#dialog.showModal();
  }

  #save() {
    const track = this.#edited;
    if (!track || !this.session) return;
    const expression = this.#expression.value.trim();
    const label = this.#label.value.trim();
    if (expression && expression !== track.expression) this.session.do("set_prompt", { track: track.id, expression });
    if (label !== (track.label ?? "")) this.session.do("rename", { track: track.id, label: label || expression });
  }
}
