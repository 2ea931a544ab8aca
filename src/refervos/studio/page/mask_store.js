/** Keeps masks by frame and fetches those that were computed before the page was opened. */

/** @import {FrameMasks} from "./types.js" */

const CHUNK = 100;
const MOST_FRAMES = 20000;

/** The masks of a recording that the page holds; the server has all of them. */
export class MaskStore {
  /** @type {Map<number, FrameMasks>} */ #frames = new Map();
  /** @type {Set<number>} */ #fetching = new Set();
  #generation = 0;

  /**
   * @param {(from: number, to: number) => Promise<FrameMasks[]>} fetchFrames Fetches frames from one to before another.
   * @param {() => void} onChange Called when fetched masks have arrived, or may be fetched again.
   */
  constructor(fetchFrames, onChange) {
    this.fetchFrames = fetchFrames;
    this.onChange = onChange;
  }

  /**
   * @param {number} frame
   * @returns {FrameMasks | undefined}
   */
  get(frame) {
    return this.#frames.get(frame);
  }

  /**
   * @param {FrameMasks} masks
   */
  put(masks) {
    if (this.#frames.size >= MOST_FRAMES) {
      const [oldest] = this.#frames.keys();
      this.#frames.delete(oldest);
    }
    this.#frames.set(masks.frame, masks);
  }

  /**
   * Forget the masks of a frame and of those after it, which are computed again.
   *
   * @param {number} frame
   */
  forgetFrom(frame) {
    this.#generation++;
    for (const known of this.#frames.keys()) if (known >= frame) this.#frames.delete(known);
  }

  /**
   * Fetch the masks around a computed frame if they are missing here.
   *
   * @param {number} frame
   * @param {number} newest Newest computed frame.
   */
  async want(frame, newest) {
    const chunk = Math.floor(frame / CHUNK);
    if (frame < 0 || frame > newest || this.#frames.has(frame) || this.#fetching.has(chunk)) return;
    this.#fetching.add(chunk);
    const generation = this.#generation;
    /** @type {FrameMasks[]} */
    let missing = [];
    try {
      const fetched = await this.fetchFrames(chunk * CHUNK, Math.min(newest + 1, (chunk + 1) * CHUNK));
      missing = fetched.filter((masks) => !this.#frames.has(masks.frame));
    } finally {
      this.#fetching.delete(chunk);
    }
    const outdated = generation !== this.#generation; // the session has computed frames again in the meantime
    if (!outdated) for (const masks of missing) this.put(masks);
    if (outdated || missing.length) this.onChange();
  }
}
