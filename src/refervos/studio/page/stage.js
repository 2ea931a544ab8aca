/** The picture with its masks, and the pointer and keys that correct them. */

import { byId, create } from "./dom.js";
import { Painter } from "./painter.js";
import { VISIBLE } from "./session.js";

/** @import {Session} from "./session.js" */
/** @import {Effect, Track} from "./types.js" */
/** @import {View} from "./views.js" */

/** A drag shorter than this is a click, in pixels of the screen. */
const SHORTEST_DRAG = 6;
const CROSSHAIR_STEP = 0.01;

/** @typedef {"add" | "remove" | "box"} Tool */

/**
 * A correction of the frame on view, in pixels of the video.
 *
 * @typedef {object} Correction
 * @property {[number, number, number][]} points x, y and 1 (on the object) or 0 (off it).
 * @property {[number, number, number, number] | null} box
 */

/**
 * A correction on its way to the server, which waits for the masks of its frame.
 *
 * @typedef {Correction & {frame: number, track: number | null, sent: boolean}} WaitingCorrection
 */

/**
 * Describe a track in a frame as text.
 *
 * @param {Track} track
 * @param {number | null | undefined} presence
 * @returns {string}
 */
export function describe(track, presence) {
  const name = track.label ?? track.expression;
  if (presence === undefined) return `${name}: not computed yet`;
  if (presence === null) return `${name}: not followed here`;
  return `${name}: ${presence >= VISIBLE ? "visible" : "not there"}, ${Math.round(100 * presence)} %`;
}

/**
 * The stage. It dispatches `correct` with a Correction as detail.
 */
export class Stage extends EventTarget {
  /** @type {View | null} */ view = null;
  /** @type {Session | null} */ session = null;
  /** @type {number | null} */ selected = null;
  /** @type {Tool} */ tool = "add";
  /** @type {Effect} */ effect = { kind: "colour", area: "object", strength: 0.5 };
  /**
   * Corrections that the server has not made yet; they are marked, too.
   *
   * @type {WaitingCorrection[]}
   */
  waiting = [];
  /** Time of the last painted frame with masks, for measurements. */
  painted = { frame: -1, at: 0 };

  #box = byId("stage-box", HTMLDivElement);
  #canvas = byId("stage-canvas", HTMLCanvasElement);
  #live = byId("stage-live", HTMLParagraphElement);
  #hint = byId("stage-hint", HTMLParagraphElement);
  #marks = byId("stage-marks", HTMLDivElement);
  #painter = new Painter(this.#canvas);
  #scheduled = false;
  #said = "";
  /**
   * Corner where a drag began, in pixels of the video.
   *
   * @type {[number, number] | null}
   */
  #corner = null;
  /**
   * Position of the keyboard's crosshair, 0 to 1.
   *
   * @type {[number, number] | null}
   */
  #crosshair = null;
  #dragged = false;

  constructor() {
    super();
    this.#canvas.addEventListener("pointerdown", (event) => this.#pointerDown(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#pointerMove(event));
    this.#canvas.addEventListener("pointerup", (event) => this.#pointerUp(event));
    this.#canvas.addEventListener("pointercancel", () => this.cancel());
    this.#canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  /**
   * Show a session.
   *
   * @param {Session} session
   * @param {View} view
   */
  show(session, view) {
    this.session = session;
    this.view = view;
    this.waiting = [];
    this.painted = { frame: -1, at: 0 };
    view.addEventListener("shown", () => this.schedule());
    session.addEventListener("masks", () => this.schedule());
    session.addEventListener("state", () => this.schedule());
    session.addEventListener("frame", (event) => {
      if (/** @type {CustomEvent} */ (event).detail.masks.frame === view.shown) this.schedule();
    });
    this.schedule();
  }

  clear() {
    this.view = null;
    this.session = null;
    this.cancel();
    this.#canvas.width = this.#canvas.width;
    this.#marks.replaceChildren();
  }

  /** Paint before the screen is next drawn. */
  schedule() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#paint();
    });
  }

  #paint() {
    const { view, session } = this;
    if (!view || !session) return;
    this.#box.style.setProperty("--ratio", String(view.width / view.height));
    const masks = session.masks.get(view.shown);
    if (!masks && !session.live) session.masks.want(view.shown, session.newest).catch(() => {});
    this.#painter.paint({
      picture: view.picture,
      drawPicture: view.drawPicture,
      width: view.width,
      height: view.height,
      masks,
      tracks: session.state.tracks,
      selected: this.selected,
      effect: this.effect,
    });
    if (masks) this.painted = { frame: masks.frame, at: performance.now() };
    this.#canvas.dataset.frame = String(view.shown);
    this.#canvas.dataset.masks = masks ? masks.tracks.filter(({ id }) => session.track(id)?.visible).map(({ id }) => id).join(" ") : "";
    this.#showMarks();
    this.#describe();
  }

  #describe() {
    const { view, session } = this;
    if (!view || !session) return;
    const tracks = session.state.tracks;
    const text = tracks.length
      ? tracks.map((track) => describe(track, session.presenceAt(track.id, view.shown))).join("; ")
      : "No object is being followed yet.";
    this.#canvas.setAttribute("aria-label", `Frame ${view.shown}. ${text}`);
    const ahead = tracks.length > 0 && !session.live && view.shown > session.newest;
    this.#hint.hidden = !ahead;
    this.#hint.textContent = session.computes(view.shown) ? "Masks are on their way" : "No masks here yet";
    // While it plays, only appearing and disappearing is announced; otherwise every change.
    const said = view.playing ? text.replaceAll(/, \d+ %/g, "") : text;
    if (said !== this.#said) {
      this.#said = said;
      this.#live.textContent = text;
    }
  }

  /** Show where the frame on view was corrected, the box being drawn and the crosshair. */
  #showMarks() {
    const { view, session } = this;
    if (!view || !session) return;
    const marks = [];
    const made = session.state.events.filter(({ kind }) => kind === "correction");
    for (const { frame, track, points, box } of [...made, ...this.waiting]) {
      if (frame !== view.shown || track !== this.selected) continue;
      for (const [x, y, on] of points ?? []) marks.push(this.#mark(on ? "mark add" : "mark remove", x, y));
      if (box) marks.push(this.#boxMark(box));
    }
    if (this.#crosshair) {
      marks.push(this.#mark("mark crosshair", this.#crosshair[0] * view.width, this.#crosshair[1] * view.height));
    }
    if (this.#drawn) marks.push(this.#boxMark(this.#drawn));
    if (marks.length || this.#marks.childElementCount) this.#marks.replaceChildren(...marks);
  }

  /**
   * The box being drawn.
   *
   * @type {[number, number, number, number] | null}
   */
  #drawn = null;

  /**
   * @param {string} kind
   * @param {number} x
   * @param {number} y
   */
  #mark(kind, x, y) {
    const mark = create("span", { class: kind });
    const { width, height } = /** @type {View} */ (this.view);
    mark.style.left = `${(100 * x) / width}%`;
    mark.style.top = `${(100 * y) / height}%`;
    return mark;
  }

  /**
   * @param {[number, number, number, number]} box
   */
  #boxMark([x0, y0, x1, y1]) {
    const mark = this.#mark("mark box", x0, y0);
    const { width, height } = /** @type {View} */ (this.view);
    mark.style.width = `${(100 * (x1 - x0)) / width}%`;
    mark.style.height = `${(100 * (y1 - y0)) / height}%`;
    return mark;
  }

  /**
   * @param {PointerEvent} event
   * @returns {[number, number]} In pixels of the video.
   */
  #position(event) {
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    const view = /** @type {View} */ (this.view);
    const x = ((event.clientX - left) / width) * view.width;
    const y = ((event.clientY - top) / height) * view.height;
    return [Math.max(0, Math.min(view.width - 0.01, x)), Math.max(0, Math.min(view.height - 0.01, y))];
  }

  /**
   * @param {PointerEvent} event
   */
  #pointerDown(event) {
    if (!this.view || event.button > 0) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#corner = this.#position(event);
    this.#dragged = false;
  }

  /**
   * @param {PointerEvent} event
   */
  #pointerMove(event) {
    if (!this.#corner || !this.view) return;
    const [x, y] = this.#position(event);
    const scale = this.#canvas.getBoundingClientRect().width / this.view.width;
    const [x0, y0] = this.#corner;
    this.#dragged ||= Math.max(Math.abs(x - x0), Math.abs(y - y0)) * scale >= SHORTEST_DRAG;
    if (!this.#dragged) return;
    this.#drawn = [Math.min(x0, x), Math.min(y0, y), Math.max(x0, x), Math.max(y0, y)];
    this.#showMarks();
  }

  /**
   * @param {PointerEvent} event
   */
  #pointerUp(event) {
    if (!this.#corner) return;
    const box = this.#drawn;
    const remove = event.shiftKey || this.tool === "remove";
    this.cancel();
    if (box) this.#correct({ points: [], box });
    else if (this.tool !== "box") this.#click(this.#position(event), remove);
  }

  /**
   * @param {[number, number]} position
   * @param {boolean} remove
   */
  #click([x, y], remove) {
    this.#correct({ points: [[x, y, remove ? 0 : 1]], box: null });
  }

  /**
   * @param {Correction} correction
   */
  #correct(correction) {
    const rounded = (/** @type {number} */ value) => Math.round(10 * value) / 10;
    const points = correction.points.map(([x, y, on]) => /** @type {const} */ ([rounded(x), rounded(y), on]));
    const box = correction.box?.map(rounded) ?? null;
    this.dispatchEvent(new CustomEvent("correct", { detail: { points, box } }));
  }

  /** Forget a box or a crosshair that was begun. */
  cancel() {
    this.#corner = null;
    this.#drawn = null;
    this.#crosshair = null;
    this.#dragged = false;
    if (this.view) this.#showMarks();
  }

  get crosshairShown() {
    return this.#crosshair !== null;
  }

  /** Show the crosshair, which the arrow keys move, or hide it. */
  toggleCrosshair() {
    const shown = this.#crosshair !== null;
    this.cancel();
    this.#crosshair = shown ? null : [0.5, 0.5];
    // Enter then marks, and does not press the button that was used last; Tab leads on to the buttons.
    if (!shown) this.#canvas.focus({ preventScroll: true });
    this.#showMarks();
    this.#live.textContent = shown
      ? "Crosshair off."
      : "Crosshair on: arrows move it, Enter marks the object, Shift and Enter marks what is not the object, B begins and ends a box.";
  }

  /**
   * Handle a key while the crosshair is shown.
   *
   * @param {KeyboardEvent} event
   * @returns {boolean} Whether the key was handled.
   */
  crosshairKey(event) {
    if (!this.#crosshair || !this.view) return false;
    const directions = /** @type {Record<string, [number, number]>} */ ({
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
    });
    const at = /** @type {[number, number]} */ ([this.#crosshair[0] * this.view.width, this.#crosshair[1] * this.view.height]);
    if (event.key in directions) {
      const step = CROSSHAIR_STEP * (event.shiftKey ? 10 : 1);
      const [dx, dy] = directions[event.key];
      this.#crosshair = [
        Math.max(0, Math.min(0.999, this.#crosshair[0] + dx * step)),
        Math.max(0, Math.min(0.999, this.#crosshair[1] + dy * step)),
      ];
      this.#showMarks();
    } else if (event.key === "Enter") {
      this.#click(at, event.shiftKey);
    } else if (event.key === "b" || event.key === "B") {
      if (this.#corner) {
        const [x0, y0] = this.#corner;
        this.#corner = null;
        this.#correct({ points: [], box: [Math.min(x0, at[0]), Math.min(y0, at[1]), Math.max(x0, at[0]), Math.max(y0, at[1])] });
      } else {
        this.#corner = at;
      }
    } else {
      return false;
    }
    return true;
  }
}
