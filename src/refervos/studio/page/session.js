/** The model of one session: its state, its masks and its connection. It knows no element of the page. */

import { fetchMasks } from "./api.js";
import { Connection } from "./connection.js";
import { FrameTimes } from "./frame_times.js";
import { MaskStore } from "./mask_store.js";
import { decodeMaskLines } from "./messages.js";
import { readState } from "./server_state.js";

/** @import {FrameMessage} from "./messages.js" */
/** @import {FrameMasks, SessionEvent, SessionState, Track} from "./types.js" */

/** Presence from which an object counts as visible. */
export const VISIBLE = 0.5;

const MOST_LIVE_MASKS = 300;
/** A live source that sends no frame for so many milliseconds does not answer. */
const SILENCE = 3000;

/**
 * One session of the server.
 *
 * It dispatches `state` (anything but masks has changed), `masks` (masks that the page holds have changed), `frame` (a frame was
 * segmented; detail: FrameMessage), `silence` (a live source has begun or ceased not to answer), `alert` (detail: a sentence), `notice` (detail: a sentence) and `connection` (detail: open, waiting or gone).
 */
export class Session extends EventTarget {
  /**
   * @param {SessionState} state
   */
  constructor(state) {
    super();
    this.state = state;
    this.times = state.video ? new FrameTimes(state.video) : null;
    this.masks = new MaskStore(
      async (from, to) => decodeMaskLines(await fetchMasks(state.id, from, to)),
      () => this.#dispatch("masks"),
    );
    /** @type {Map<number, [number, number][]>} */
    this.presence = new Map();
    this.#readPresence(state);
    /** Whether a live source sends no frames. */
    this.silent = false;
    this.#expectFrame();
    this.connection = new Connection(state.id, {
      onFrame: (message) => this.#receiveFrame(message),
      onEvent: (event) => this.#receiveEvent(event),
      onStatus: (status) => this.#dispatch("connection", status), // the server sends the state first
    });
  }

  get id() {
    return this.state.id;
  }

  get live() {
    return this.state.live;
  }

  /** Newest computed frame, -1 before the first. */
  get newest() {
    return this.state.frame;
  }

  /** First and last frame of the part that is segmented. */
  get range() {
    return this.state.range;
  }

  /**
   * @param {number} id
   * @returns {Track | undefined}
   */
  track(id) {
    return this.state.tracks.find((track) => track.id === id);
  }

  /**
   * Return the presence of a track in a frame; null if it is not followed there, undefined if the frame is not computed.
   *
   * @param {number} track
   * @param {number} frame
   * @returns {number | null | undefined}
   */
  presenceAt(track, frame) {
    if (frame > this.newest) return undefined;
    const exact = this.masks.get(frame)?.tracks.find(({ id }) => id === track);
    if (exact) return exact.presence;
    const steps = this.presence.get(track) ?? [];
    let low = 0;
    let high = steps.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (steps[middle][0] <= frame) low = middle;
      else high = middle - 1;
    }
    return high < 0 || steps[0][0] > frame ? null : steps[Math.max(0, low)][1];
  }

  /**
   * Whether a frame without masks is going to have them without another command.
   *
   * @param {number} frame
   * @returns {boolean}
   */
  computes(frame) {
    const { status, until } = this.state;
    return frame > this.newest && frame <= this.range[1] && (status === "running" || frame <= until);
  }

  /**
   * Send a command once all commands before it have been answered.
   *
   * @param {string} command
   * @param {Record<string, unknown>} [parameters]
   * @returns {Promise<any>} Its result; undefined after a failure, which is a notice.
   */
  do(command, parameters = {}) {
    return this.decide(() => [command, parameters]);
  }

  /**
   * Send the command that a function chooses once all commands before it have been answered. What a command does may depend on
   * the state, as in showing what is hidden; chosen earlier, a second press of a key would act on the state before the first.
   *
   * @param {() => [string, Record<string, unknown>] | null} choose Returns the command with its parameters, or null for none.
   * @returns {Promise<any>} Its result; undefined without a command or after a failure, which is a notice.
   */
  decide(choose) {
    const result = this.#answered.then(async () => {
      const chosen = this.#closed ? null : choose();
      return chosen === null ? undefined : this.connection.do(...chosen);
    });
    const reported = result.catch((error) => {
      if (!this.#closed) this.notify(error instanceof Error ? error.message : String(error));
    });
    this.#answered = reported;
    return reported;
  }

  /**
   * Wait until all commands so far have been answered.
   *
   * @returns {Promise<void>}
   */
  settled() {
    return this.#answered;
  }

  /**
   * Wait until a frame has masks.
   *
   * @param {number} frame
   * @returns {Promise<boolean>} Whether it has; false as soon as nothing is going to compute them.
   */
  async reach(frame) {
    await this.#answered;
    while (this.computes(frame)) await this.#change();
    return frame <= this.newest;
  }

  /** Wait until the state or the newest frame changes. */
  #change() {
    const changed = new AbortController();
    return new Promise((resolve) => {
      for (const type of ["state", "frame"]) this.addEventListener(type, resolve, { signal: changed.signal });
    }).finally(() => changed.abort());
  }

  /**
   * Dispatch a notice.
   *
   * @param {string} sentence
   */
  notify(sentence) {
    this.#dispatch("notice", sentence);
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#silence);
    this.connection.close();
  }

  /**
   * Resolved when the newest command has been answered.
   *
   * @type {Promise<any>}
   */
  #answered = Promise.resolve();
  #closed = false;
  /**
   * @type {ReturnType<typeof setTimeout> | undefined}
   */
  #silence;

  #expectFrame() {
    if (!this.live) return;
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.#setSilent(this.state.status === "running"), SILENCE);
    this.#setSilent(false);
  }

  /**
   * @param {boolean} silent
   */
  #setSilent(silent) {
    if (silent === this.silent) return;
    this.silent = silent;
    this.#dispatch("silence");
  }

  /**
   * @param {string} type
   * @param {unknown} [detail]
   */
  #dispatch(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /**
   * @param {FrameMessage} message
   */
  #receiveFrame(message) {
    const { masks } = message;
    // Of recordings every frame is kept, whether it is on view or not; a live view acknowledges what it has painted.
    if (!this.live) this.connection.acknowledge(masks.frame);
    else this.#expectFrame();
    this.masks.put(masks);
    this.#addPresence(masks);
    this.state.frame = Math.max(this.state.frame, masks.frame);
    this.state.fps = message.fps || this.state.fps;
    this.#dispatch("frame", message);
  }

  /**
   * @param {{event: string} & Record<string, any>} event
   */
  #receiveEvent(event) {
    switch (event.event) {
      case "state":
        this.#replaceState(readState(event, this.state.video));
        return;
      case "problem":
        this.#dispatch("notice", event.problem.detail);
        return;
      case "alert":
      case "cut":
      case "outage":
        this.#addEvent(event.event, event);
        return;
      default:
        // The end of a recording is also in the state that follows.
        this.#dispatch("masks");
    }
  }

  /**
   * Add an event that the next state will have, too.
   *
   * @param {SessionEvent["kind"]} kind
   * @param {Record<string, any>} event
   */
  #addEvent(kind, { frame, time = null, track = null, ...alert }) {
    const text = kind === "alert" ? `${alert.when} ${Math.round(100 * alert.threshold)} %` : undefined;
    this.state.events.push({ kind, frame, time, track, text });
    this.#dispatch("state");
    if (kind === "alert") this.#dispatch("alert", `${alert.expression}: ${text}`);
  }

  /**
   * @param {SessionState} state
   */
  #replaceState(state) {
    // After a correction the session is at an earlier frame; the frames after it are computed again.
    if (state.frame < this.state.frame) this.masks.forgetFrom(state.frame + 1);
    this.state = state;
    this.#readPresence(state);
    this.#dispatch("state");
  }

  /**
   * @param {SessionState} state
   */
  #readPresence(state) {
    this.presence = new Map(state.tracks.map((track) => [track.id, track.presence.filter(([frame]) => frame <= state.frame)]));
  }

  /**
   * @param {FrameMasks} masks
   */
  #addPresence(masks) {
    for (const { id, presence } of masks.tracks) {
      const steps = this.presence.get(id);
      if (!steps) {
        this.presence.set(id, [[masks.frame, presence]]);
      } else if (!steps.length || steps[steps.length - 1][0] < masks.frame) {
        steps.push([masks.frame, presence]);
      }
    }
    if (this.live && masks.frame % MOST_LIVE_MASKS === 0) this.#forgetOldPresence(masks.frame - 20 * MOST_LIVE_MASKS);
  }

  /**
   * @param {number} frame
   */
  #forgetOldPresence(frame) {
    for (const [track, steps] of this.presence) {
      const first = steps.findIndex(([start]) => start >= frame);
      if (first > 0) this.presence.set(track, steps.slice(first));
    }
  }
}

/**
 * Return the newest events first, at most so many.
 *
 * @param {SessionEvent[]} events
 * @param {number} most
 * @returns {SessionEvent[]}
 */
export const newestEvents = (events, most) => events.slice(-most).reverse();
