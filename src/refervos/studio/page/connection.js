/** One session's WebSocket: commands with replies, frames, and reconnection. */

import { ProblemError } from "./api.js";
import { decodeFrame } from "./messages.js";

/** @import {FrameMessage} from "./messages.js" */

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 8000;
const GONE = 4404;
const FORBIDDEN = 4401;

/**
 * What a connection reports.
 *
 * @typedef {object} Listener
 * @property {(message: FrameMessage) => void} onFrame
 * @property {(event: {event: string} & Record<string, any>) => void} onEvent
 * @property {(status: "open" | "waiting" | "gone") => void} onStatus
 */

/** A connection that stays open until `close`, whatever the network does. */
export class Connection {
  /** @type {WebSocket | null} */ #socket = null;
  /** @type {Map<number, {resolve: (result: any) => void, reject: (error: Error) => void}>} */ #pending = new Map();
  /**
   * Commands that wait until the connection is made.
   *
   * @type {string[]}
   */
  #unsent = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  #next = 1;
  #pause = FIRST_PAUSE;
  #closed = false;

  /**
   * @param {string} session
   * @param {Listener} listener
   */
  constructor(session, listener) {
    this.session = session;
    this.listener = listener;
    this.#open();
  }

  #open() {
    const address = new URL(`/v1/sessions/${this.session}/ws`, location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    socket.addEventListener("open", () => {
      this.#pause = FIRST_PAUSE;
      for (const text of this.#unsent.splice(0)) socket.send(text);
      this.listener.onStatus("open");
    });
    socket.addEventListener("message", ({ data }) => {
      if (typeof data === "string") this.#receive(JSON.parse(data));
      else this.listener.onFrame(decodeFrame(data));
    });
    socket.addEventListener("close", ({ code }) => this.#lost(code));
    this.#socket = socket;
  }

  /**
   * @param {any} message
   */
  #receive(message) {
    const waiting = this.#pending.get(message.n);
    if (!waiting) {
      if (message.event) this.listener.onEvent(message);
      return;
    }
    this.#pending.delete(message.n);
    if (message.problem) waiting.reject(new ProblemError(message.problem));
    else waiting.resolve(message.ok);
  }

  /**
   * @param {number} code
   */
  #lost(code) {
    for (const { reject } of this.#pending.values()) {
      reject(new ProblemError({ detail: "The connection was lost before the server answered.", code: "lost" }));
    }
    this.#pending.clear();
    this.#unsent = [];
    if (this.#closed) return;
    if (code === GONE || code === FORBIDDEN) {
      this.listener.onStatus("gone");
      return;
    }
    this.listener.onStatus("waiting");
    this.#timer = setTimeout(() => this.#open(), this.#pause);
    this.#pause = Math.min(2 * this.#pause, LONGEST_PAUSE);
  }

  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  /**
   * Send a command and wait for its result. While a connection is being made, the command waits for it.
   *
   * @param {string} command
   * @param {Record<string, unknown>} [parameters]
   * @returns {Promise<any>}
   */
  do(command, parameters = {}) {
    const connecting = this.#socket?.readyState === WebSocket.CONNECTING;
    if (!this.isOpen && !connecting) {
      return Promise.reject(new ProblemError({ detail: "There is no connection to the server just now.", code: "offline" }));
    }
    const n = this.#next++;
    return new Promise((resolve, reject) => {
      this.#pending.set(n, { resolve, reject });
      const text = JSON.stringify({ n, do: command, ...parameters });
      if (connecting) this.#unsent.push(text);
      else this.#socket?.send(text);
    });
  }

  /**
   * Tell the server that a frame was received, so that it sends the next ones.
   *
   * @param {number} frame
   */
  acknowledge(frame) {
    if (this.isOpen) this.#socket?.send(JSON.stringify({ do: "ack", frame }));
  }

  /**
   * Send a picture of the browser's webcam.
   *
   * @param {number} time Capture time in milliseconds.
   * @param {Blob} picture JPEG.
   */
  sendPicture(time, picture) {
    if (!this.isOpen) return;
    const stamp = new ArrayBuffer(8);
    new DataView(stamp).setFloat64(0, time, true);
    this.#socket?.send(new Blob([stamp, picture]));
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#socket?.close();
  }
}
