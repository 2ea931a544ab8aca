/**
 * What is on view below the masks: a recording that the browser plays, one that it cannot play, or a live source.
 *
 * Every view dispatches `shown` when another frame is on view and `playing` when playback starts or stops.
 */

import { frameAddress, videoAddress } from "./api.js";
import { pace } from "./pacing.js";

/** @import {FrameMessage} from "./messages.js" */
/** @import {Session} from "./session.js" */

/**
 * @typedef {RecordingView | PictureView | LiveView} View
 */

/** What the views have in common. */
class BaseView extends EventTarget {
  /** Frame on view, -1 before the first. */
  shown = -1;
  /** Time of that frame in seconds. */
  time = 0;
  playing = false;
  /**
   * Frame that was sought and is not on view yet.
   *
   * @type {number | null}
   */
  sought = null;
  speed = 1;
  /**
   * What effects work on.
   *
   * @type {CanvasImageSource | null}
   */
  picture = null;
  /** Whether the picture must be painted; a video element shows it already. */
  drawPicture = true;
  width = 640;
  height = 360;

  /**
   * @param {Session} session
   */
  constructor(session) {
    super();
    this.session = session;
  }

  /**
   * @param {number} frame
   * @param {number} time
   */
  present(frame, time) {
    this.shown = frame;
    this.time = time;
    this.dispatchEvent(new Event("shown"));
  }

  /**
   * @param {CanvasImageSource} picture
   */
  replacePicture(picture) {
    if (this.picture instanceof ImageBitmap && this.picture !== picture) this.picture.close();
    this.picture = picture;
  }

  /**
   * @param {boolean} playing
   */
  setPlaying(playing) {
    if (playing === this.playing) return;
    this.playing = playing;
    this.dispatchEvent(new Event("playing"));
  }

  /** Frame from which to go on: the sought one, so that no key press is lost while it is being fetched, or the one on view. */
  get target() {
    return this.sought ?? this.shown;
  }

  /**
   * @param {number | null} frame
   */
  setSought(frame) {
    this.sought = frame;
  }

  /** Whether frames of the session are being computed. */
  get computing() {
    return this.session.state.status === "running";
  }

  /** Last frame of the chosen part. */
  get last() {
    return this.session.range[1];
  }
}

/** A recording in a video element; frames are known by their presentation time. */
export class RecordingView extends BaseView {
  #held = false;
  #following = false;
  /** Whether the user went to another frame while it played, and has not caught up with the masks yet. */
  #wentBack = false;
  #closed = false;

  /**
   * @param {Session} session
   * @param {HTMLVideoElement} video
   */
  constructor(session, video) {
    super(session);
    const source = session.state.video;
    if (!source || !session.times) throw new Error("a recording needs a video");
    this.times = session.times;
    this.video = video;
    this.start = source.start_time;
    this.replacePicture(video);
    this.drawPicture = false;
    this.width = source.width;
    this.height = source.height;
    video.hidden = false;
    video.src = videoAddress(source.id);
    video.currentTime = this.start + this.times.insideOf(session.range[0]);
    video.addEventListener("ended", this.#ended);
    video.addEventListener("seeked", this.#seeked);
    this.#listen();
  }

  #ended = () => this.pause();

  // Browsers may leave out the callback of a frame that follows another one closely, and after a seek no other frame follows.
  #seeked = () => this.#presentAt(this.video.currentTime - this.start);

  #listen() {
    this.video.requestVideoFrameCallback((_now, { mediaTime }) => {
      if (this.#closed) return;
      this.#presentAt(mediaTime - this.start);
      if (this.playing) this.#keepPace();
      this.#listen();
    });
  }

  /**
   * @param {number} time Seconds.
   */
  #presentAt(time) {
    const frame = this.times.frameAt(time);
    if (frame === this.sought || !this.video.seeking) this.setSought(null);
    this.present(frame, this.times.timeOf(frame));
  }

  #keepPace() {
    if (this.target >= this.last) {
      this.pause();
      return;
    }
    const { newest, state } = this.session;
    const { move, rate } = pace({
      shown: this.target,
      newest,
      computing: this.computing,
      fps: state.fps,
      frameRate: this.times.fps,
      speed: this.speed,
      wentBack: this.#wentBack,
      held: this.#held,
    });
    if (move === "hold") this.#wentBack = false;
    this.#held = move !== "play";
    if (move === "play") {
      if (this.video.playbackRate !== rate) this.video.playbackRate = rate;
      if (this.video.paused) this.#playVideo();
      return;
    }
    if (!this.video.paused) this.video.pause();
    if (move === "follow" && newest > this.target) this.#follow(newest);
  }

  async #playVideo() {
    try {
      await this.video.play();
    } catch (error) {
      // A pause or a seek may interrupt the start.
      if (!(error instanceof DOMException) || error.name !== "AbortError") this.pause();
    }
  }

  /**
   * @param {number} frame
   */
  #follow(frame) {
    if (this.#following) return;
    this.#following = true;
    this.setSought(null);
    this.video.addEventListener("seeked", () => (this.#following = false), { once: true });
    this.video.currentTime = this.start + this.times.insideOf(frame);
  }

  /** React to a computed frame. */
  frameComputed() {
    if (this.playing) this.#keepPace();
  }

  play() {
    if (this.target >= this.last) this.seek(this.session.range[0]);
    this.#held = false;
    this.#wentBack = false;
    this.setPlaying(true);
    this.#keepPace();
  }

  pause() {
    this.video.pause();
    this.setPlaying(false);
  }

  /**
   * @param {number} frame
   */
  seek(frame) {
    this.#wentBack = this.playing;
    this.setSought(frame === this.shown && !this.video.seeking ? null : frame);
    this.video.currentTime = this.start + this.times.insideOf(frame);
  }

  /**
   * @param {number} speed
   */
  setSpeed(speed) {
    this.speed = speed;
    if (this.playing) this.#keepPace();
  }

  close() {
    this.#closed = true;
    this.video.removeEventListener("ended", this.#ended);
    this.video.removeEventListener("seeked", this.#seeked);
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    this.video.hidden = true;
  }
}

/** A recording that the browser cannot play; the server sends its frames as pictures. */
export class PictureView extends BaseView {
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;

  /**
   * @param {Session} session
   */
  constructor(session) {
    super(session);
    const source = session.state.video;
    if (!source || !session.times) throw new Error("a recording needs a video");
    this.times = session.times;
    this.source = source;
    this.width = source.width;
    this.height = source.height;
    this.seek(session.range[0]);
  }

  /**
   * @param {number} frame
   */
  async seek(frame) {
    this.setSought(frame);
    const image = new Image();
    image.src = frameAddress(this.source.id, frame);
    try {
      await image.decode();
    } catch {
      if (this.sought !== frame) return;
      this.setSought(null);
      this.pause();
      this.session.notify(`The picture of frame ${frame} did not arrive.`);
      return;
    }
    if (this.sought !== frame) return;
    this.setSought(null);
    this.replacePicture(image);
    this.present(frame, this.times.timeOf(frame));
  }

  frameComputed() {}

  play() {
    if (this.target >= this.last) this.seek(this.session.range[0]);
    this.setPlaying(true);
    this.#tick();
  }

  async #tick() {
    const started = performance.now();
    const next = this.target + 1;
    if (next > this.last) this.pause();
    else if (!this.computing || next <= this.session.newest) await this.seek(next);
    if (!this.playing) return;
    const interval = 1000 / (this.times.fps * this.speed);
    this.#timer = setTimeout(() => this.#tick(), Math.max(0, interval - (performance.now() - started)));
  }

  pause() {
    clearTimeout(this.#timer);
    this.setPlaying(false);
  }

  /**
   * @param {number} speed
   */
  setSpeed(speed) {
    this.speed = speed;
  }

  close() {
    this.pause();
  }
}

/**
 * @param {FrameMessage} message
 * @returns {Promise<ImageBitmap | undefined>}
 */
async function pictureOf({ picture }) {
  try {
    return picture ? await createImageBitmap(picture) : undefined;
  } catch {
    return undefined;
  }
}

/** A live source: each frame arrives with its picture; it plays while the session runs. */
export class LiveView extends BaseView {
  /** @type {FrameMessage | null} */ #next = null;
  #decoding = false;

  /**
   * @param {Session} session
   */
  constructor(session) {
    super(session);
    this.onFrame = (/** @type {Event} */ event) => this.#receive(/** @type {CustomEvent<FrameMessage>} */ (event).detail);
    session.addEventListener("frame", this.onFrame);
    session.addEventListener("state", this.onState);
  }

  onState = () => this.setPlaying(this.session.state.status !== "paused");

  /**
   * @param {FrameMessage} message
   */
  #receive(message) {
    this.#next = message;
    if (!this.#decoding) this.#showNext();
  }

  /** Show the newest frame; those that arrived while another was decoded are skipped. */
  async #showNext() {
    this.#decoding = true;
    while (this.#next) {
      /** @type {FrameMessage} */
      const message = this.#next;
      this.#next = null;
      const picture = await pictureOf(message);
      if (picture) {
        this.replacePicture(picture);
      }
      if (message.masks.width) {
        // Pictures are sent at most 640 pixels wide; corrections are in pixels of the frame.
        this.width = message.masks.width;
        this.height = message.masks.height;
      }
      this.present(message.masks.frame, message.masks.time ?? 0);
      this.session.connection.acknowledge(message.masks.frame);
    }
    this.#decoding = false;
  }

  frameComputed() {}

  play() {}

  pause() {}

  seek() {}

  setSpeed() {}

  close() {
    this.session.removeEventListener("frame", this.onFrame);
    this.session.removeEventListener("state", this.onState);
  }
}
