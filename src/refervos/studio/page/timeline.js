/** The timeline: a ruler and, for each sentence, a lane with its presence over time. */

import { byId, clock } from "./dom.js";
import { VISIBLE } from "./session.js";

/** @import {Session} from "./session.js" */

const LIVE_FRAMES = 600;
const MARK = 4.5;

/**
 * Return the frames that the timeline spans.
 *
 * @param {Session} session
 * @returns {[number, number]} First frame and the one after the last.
 */
export function span(session) {
  if (!session.live) return [0, Math.max(1, session.state.frame_count ?? 1)];
  const end = Math.max(LIVE_FRAMES, session.newest + 1);
  return [end - LIVE_FRAMES, end];
}

/**
 * The timeline. It dispatches `seek` with a frame as detail.
 */
export class Timeline extends EventTarget {
  /** @type {Session | null} */ session = null;
  shown = -1;
  #ruler = byId("ruler", HTMLDivElement);
  #canvas = byId("ruler-canvas", HTMLCanvasElement);
  #area = byId("lanes", HTMLDivElement);
  #head = byId("playhead", HTMLDivElement);
  #scheduled = false;

  constructor() {
    super();
    this.#ruler.addEventListener("pointerdown", (event) => this.#scrub(event));
    new ResizeObserver(() => this.schedule()).observe(this.#ruler);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.schedule());
  }

  /**
   * @param {Session} session
   */
  show(session) {
    this.session = session;
    for (const event of ["state", "masks", "frame"]) session.addEventListener(event, () => this.schedule());
    this.schedule();
  }

  /**
   * Move the playhead.
   *
   * @param {number} frame
   * @param {number} time Seconds.
   */
  moveTo(frame, time) {
    this.shown = frame;
    if (!this.session) return;
    const [first, end] = span(this.session);
    this.#head.style.setProperty("--at", String(Math.max(0, Math.min(1, (frame + 0.5 - first) / (end - first)))));
    this.#ruler.setAttribute("aria-valuemin", String(first));
    this.#ruler.setAttribute("aria-valuemax", String(end - 1));
    this.#ruler.setAttribute("aria-valuenow", String(Math.max(first, frame)));
    this.#ruler.setAttribute("aria-valuetext", `frame ${Math.max(0, frame)}, ${clock(time)}`);
  }

  /**
   * Let a lane be scrubbed like the ruler.
   *
   * @param {HTMLElement} lane
   */
  adopt(lane) {
    lane.addEventListener("pointerdown", (event) => this.#scrub(event));
  }

  /**
   * @param {PointerEvent} event
   */
  #scrub(event) {
    if (event.button > 0 || !this.session || this.session.live) return;
    const target = /** @type {HTMLElement} */ (event.currentTarget);
    target.setPointerCapture(event.pointerId);
    const move = (/** @type {PointerEvent} */ { clientX }) => {
      if (!this.session) return;
      const { left, width } = this.#ruler.getBoundingClientRect();
      const [first, end] = span(this.session);
      const frame = Math.floor(first + ((clientX - left) / width) * (end - first));
      this.dispatchEvent(new CustomEvent("seek", { detail: Math.max(first, Math.min(end - 1, frame)) }));
    };
    const stop = () => {
      target.removeEventListener("pointermove", move);
      target.removeEventListener("pointerup", stop);
      target.removeEventListener("pointercancel", stop);
    };
    target.addEventListener("pointermove", move);
    target.addEventListener("pointerup", stop);
    target.addEventListener("pointercancel", stop);
    move(event);
  }

  /** Draw before the screen is next drawn. */
  schedule() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#draw();
    });
  }

  #draw() {
    if (!this.session) return;
    this.#drawRuler(this.session);
    for (const canvas of /** @type {NodeListOf<HTMLCanvasElement>} */ (this.#area.querySelectorAll("canvas[data-track]"))) {
      drawLane(canvas, this.session, Number(canvas.dataset.track));
    }
    if (this.session.live) this.moveTo(this.shown, 0);
  }

  /**
   * @param {Session} session
   */
  #drawRuler(session) {
    const { context, width, height } = fitted(this.#canvas);
    const [first, end] = span(session);
    const at = (/** @type {number} */ frame) => ((frame - first) / (end - first)) * width;
    const style = getComputedStyle(this.#canvas);
    const [from, to] = session.range;
    context.fillStyle = style.getPropertyValue("--track");
    context.beginPath();
    context.roundRect(0, height / 2 - 3, width, 6, 3);
    context.fill();
    if (session.newest >= first && session.state.tracks.length) {
      context.fillStyle = style.getPropertyValue("--accent");
      context.beginPath();
      context.roundRect(at(Math.max(first, from)), height / 2 - 3, Math.max(0, at(session.newest + 1) - at(Math.max(first, from))), 6, 3);
      context.fill();
    }
    if (!session.live && (from > 0 || to < end - 1)) {
      context.fillStyle = style.color;
      for (const [frame, direction] of [[from, 1], [to + 1, -1]]) {
        const x = Math.max(0, Math.min(width - 3, at(frame) - (direction < 0 ? 3 : 0)));
        context.fillRect(x, 2, 3, height - 4);
        context.fillRect(direction > 0 ? x : x - 4, 2, 7, 3);
        context.fillRect(direction > 0 ? x : x - 4, height - 5, 7, 3);
      }
    }
    drawCuts(context, session, at, height, style.color);
  }
}

/**
 * Return a canvas's context with one unit per pixel of the page, cleared.
 *
 * @param {HTMLCanvasElement} canvas
 */
function fitted(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = window.devicePixelRatio;
  const [wide, high] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
  }
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Session} session
 * @param {(frame: number) => number} at
 * @param {number} height
 * @param {string} colour
 */
function drawCuts(context, session, at, height, colour) {
  context.strokeStyle = colour;
  context.setLineDash([3, 3]);
  for (const event of session.state.events) {
    if (event.kind !== "cut" && event.kind !== "outage") continue;
    const x = Math.round(at(event.frame)) + 0.5;
    context.beginPath();
    context.moveTo(x, 0);
    context.lineTo(x, height);
    context.stroke();
  }
  context.setLineDash([]);
}

/**
 * Draw the presence of a track: as high as it is likely, in its colour where it is visible and grey where it is not there.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {Session} session
 * @param {number} id
 */
export function drawLane(canvas, session, id) {
  const { context, width, height } = fitted(canvas);
  const track = session.track(id);
  if (!track || !width) return;
  const style = getComputedStyle(canvas);
  const [first, end] = span(session);
  const at = (/** @type {number} */ frame) => ((frame - first) / (end - first)) * width;
  const base = height - 3;
  const full = height - 8;
  context.fillStyle = style.getPropertyValue("--track");
  context.fillRect(0, base, width, 1);
  const grey = style.getPropertyValue("--absent");
  for (let x = 0; x < width; x++) {
    const frame = Math.floor(first + (x / width) * (end - first));
    const presence = session.presenceAt(id, frame);
    if (presence === undefined || presence === null) continue;
    context.fillStyle = presence >= VISIBLE ? track.colour : grey;
    const high = Math.max(3, full * presence);
    context.globalAlpha = 0.4;
    context.fillRect(x, base - high, 1, high);
    context.globalAlpha = 1;
    context.fillRect(x, base - high, 1, 2);
  }
  drawCuts(context, session, at, height, grey);
  for (const event of session.state.events) if (event.track === id) drawMark(context, event.kind, at(event.frame + 0.5), style);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {string} kind
 * @param {number} x
 * @param {CSSStyleDeclaration} style
 */
function drawMark(context, kind, x, style) {
  if (kind !== "correction" && kind !== "switch" && kind !== "alert") return;
  const y = MARK + 2;
  context.beginPath();
  if (kind === "correction") {
    context.arc(x, y, MARK, 0, 2 * Math.PI);
  } else {
    // A switch is a diamond, an alert a triangle.
    context.moveTo(x, y - MARK - 1);
    context.lineTo(x + MARK + 1, kind === "switch" ? y : y + MARK);
    if (kind === "switch") context.lineTo(x, y + MARK + 1);
    context.lineTo(x - MARK - 1, kind === "switch" ? y : y + MARK);
    context.closePath();
  }
  context.fillStyle = style.color;
  context.strokeStyle = style.getPropertyValue("--surface");
  context.lineWidth = 1.5;
  context.fill();
  context.stroke();
}
