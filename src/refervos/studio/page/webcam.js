/** Captures the browser's webcam and sends its pictures to a session. */

/** @import {Session} from "./session.js" */

const LONGEST_SIDE = 640;
const QUALITY = 0.8;
const MOST_IN_FLIGHT = 2;
/** After so many milliseconds without an answer, pictures are sent again: the server drops those it has no time for. */
const PATIENCE = 500;

/** A running webcam. */
export class Webcam {
  #video = document.createElement("video");
  #canvas = document.createElement("canvas");
  /**
   * @type {Session | null}
   */
  #session = null;
  #inFlight = 0;
  #sent = 0;
  #closed = false;

  /**
   * @param {MediaStream} stream
   */
  constructor(stream) {
    this.stream = stream;
    this.#video.muted = true;
    this.#video.srcObject = stream;
  }

  /**
   * Ask for the webcam.
   *
   * @returns {Promise<Webcam>}
   */
  static async open() {
    if (!navigator.mediaDevices) {
      throw new Error("Browsers give the webcam only to pages on this machine or over https; open the studio in one of these ways.");
    }
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: LONGEST_SIDE } }, audio: false });
      return new Webcam(stream);
    } catch (error) {
      const refused = error instanceof DOMException && error.name === "NotAllowedError";
      throw new Error(refused ? "The browser was not allowed to use the webcam." : "The browser found no webcam that it can use.");
    }
  }

  /**
   * Send pictures to a session, never more than two ahead of its answers.
   *
   * @param {Session} session
   */
  async feed(session) {
    this.#session = session;
    session.addEventListener("frame", () => (this.#inFlight = 0));
    await this.#video.play();
    this.#wait();
  }

  #wait() {
    this.#video.requestVideoFrameCallback(async (now) => {
      if (this.#closed) return;
      const maySend = this.#inFlight < MOST_IN_FLIGHT || now - this.#sent > PATIENCE;
      if (maySend && this.#session?.connection.isOpen) await this.#capture(now);
      this.#wait();
    });
  }

  /**
   * @param {number} now Milliseconds.
   */
  async #capture(now) {
    const { videoWidth, videoHeight } = this.#video;
    const scale = Math.min(1, LONGEST_SIDE / Math.max(videoWidth, videoHeight));
    this.#canvas.width = Math.round(videoWidth * scale);
    this.#canvas.height = Math.round(videoHeight * scale);
    this.#canvas.getContext("2d")?.drawImage(this.#video, 0, 0, this.#canvas.width, this.#canvas.height);
    const picture = await new Promise((resolve) => this.#canvas.toBlob(resolve, "image/jpeg", QUALITY));
    if (!picture) return;
    this.#inFlight++;
    this.#sent = now;
    this.#session?.connection.sendPicture(now, picture);
  }

  close() {
    this.#closed = true;
    for (const track of this.stream.getTracks()) track.stop();
  }
}
