/** The first screen: where the video comes from. */

import { fetchLimits, fetchSamples, openSavedSession, openSession, registerVideo, uploadVideo } from "./api.js";
import { byId, create, duration, fileSize, sentenceOf } from "./dom.js";
import { Webcam } from "./webcam.js";

/** @import {Limits, Sample, SessionState} from "./types.js" */

const SESSION_FILE = /\.refervos$/i;

/**
 * The first screen. It dispatches `open` with {state, webcam, suggestions} and `wall` with the states of several sessions.
 */
export class Sources extends EventTarget {
  /** @type {Limits | null} */ limits = null;
  #drop = byId("drop", HTMLLabelElement);
  #file = byId("file", HTMLInputElement);
  #limitsText = byId("limits", HTMLParagraphElement);
  #problem = byId("start-problem", HTMLParagraphElement);
  #progressBox = byId("upload", HTMLDivElement);
  #progress = byId("upload-progress", HTMLProgressElement);
  #progressText = byId("upload-text", HTMLParagraphElement);
  #gallery = byId("gallery", HTMLUListElement);
  #cameras = byId("camera-dialog", HTMLDialogElement);
  #path = byId("path-dialog", HTMLDialogElement);
  /** @type {AbortController | null} */ #upload = null;

  constructor() {
    super();
    this.#file.addEventListener("change", () => {
      const file = this.#file.files?.[0];
      this.#file.value = "";
      if (file) this.#take(file);
    });
    byId("upload-cancel", HTMLButtonElement).addEventListener("click", () => this.#upload?.abort());
    byId("source-webcam", HTMLButtonElement).addEventListener("click", () => this.#try(() => this.#openWebcam()));
    byId("source-camera", HTMLButtonElement).addEventListener("click", () => this.#cameras.showModal());
    byId("source-path", HTMLButtonElement).addEventListener("click", () => this.#path.showModal());
    const saved = byId("source-saved", HTMLInputElement);
    saved.addEventListener("change", () => {
      const file = saved.files?.[0];
      saved.value = "";
      if (file) this.#take(file, true);
    });
    this.#listenForDrops();
    byId("path-form", HTMLFormElement).addEventListener("submit", () => {
      const path = byId("path", HTMLInputElement).value.trim();
      if (path) this.#try(async () => this.#openVideo((await registerVideo({ path })).id, []));
    });
    byId("camera-form", HTMLFormElement).addEventListener("submit", () => this.#try(() => this.#openCameras()));
  }

  /** Fetch what the server offers and show it. */
  async load() {
    try {
      const [limits, samples] = await Promise.all([fetchLimits(), fetchSamples()]);
      this.limits = limits;
      this.#showLimits(limits);
      this.#gallery.replaceChildren(...samples.map((sample) => this.#card(sample)));
      byId("gallery-section", HTMLElement).hidden = !samples.length;
    } catch (error) {
      this.#fail(error);
    }
  }

  /**
   * @param {Limits} limits
   */
  #showLimits(limits) {
    const { upload_bytes, side, allowed } = limits;
    const longest = duration(limits.duration);
    this.#limitsText.textContent = `Up to ${fileSize(upload_bytes)}, ${longest} and ${side} pixels a side. It stays on this server.`;
    byId("source-path", HTMLButtonElement).hidden = !allowed?.files;
    byId("source-camera", HTMLButtonElement).hidden = !allowed?.cameras && !allowed?.urls;
    byId("camera-numbers-field", HTMLDivElement).hidden = !allowed?.cameras;
    byId("camera-addresses-field", HTMLDivElement).hidden = !allowed?.urls;
  }

  /**
   * @param {Sample} sample
   */
  #card(sample) {
    const open = () => this.#try(async () => this.#openVideo((await registerVideo({ sample: sample.id })).id, sample.expressions));
    const poster = create("img", { src: sample.poster, alt: "", width: "240", height: "160", loading: "lazy" });
    const text = create("span", { class: "title" }, sample.title);
    const hint = create("span", { class: "hint" }, sample.expressions.map((expression) => `“${expression}”`).join(" "));
    return create("li", {}, create("button", { type: "button", class: "card", click: open }, poster, text, hint));
  }

  #listenForDrops() {
    let depth = 0;
    const mark = (/** @type {boolean} */ over) => this.#drop.classList.toggle("over", over);
    const active = () => !byId("start", HTMLElement).hidden;
    addEventListener("dragenter", (event) => {
      if (active() && event.dataTransfer?.types.includes("Files")) mark(++depth > 0);
    });
    addEventListener("dragleave", () => mark((depth = Math.max(0, depth - 1)) > 0));
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      depth = 0;
      mark(false);
      const file = event.dataTransfer?.files[0];
      if (active() && file) this.#take(file);
    });
  }

  /**
   * Take a file that the user chose: a video, or a saved session.
   *
   * @param {File} file
   * @param {boolean} saved Whether the user said that it is a session.
   */
  #take(file, saved = SESSION_FILE.test(file.name)) {
    return this.#try(async () => {
      if (this.limits && file.size > this.limits.upload_bytes) {
        throw new Error(`${file.name} has ${fileSize(file.size)}; this server takes up to ${fileSize(this.limits.upload_bytes)}.`);
      }
      if (saved) this.#open(await openSavedSession(file), []);
      else await this.#uploadFile(file);
    });
  }

  /**
   * @param {File} file
   */
  async #uploadFile(file) {
    this.#upload = new AbortController();
    this.#progressBox.hidden = false;
    this.#drop.hidden = true;
    this.#progress.value = 0;
    try {
      const show = (/** @type {number} */ done) => {
        this.#progress.value = done;
        this.#progressText.textContent = done < 1 ? `Uploading ${file.name}: ${Math.round(100 * done)} %` : `Reading ${file.name}`;
      };
      show(0);
      const video = await uploadVideo(file, show, this.#upload.signal);
      await this.#openVideo(video.id, []);
    } finally {
      this.#upload = null;
      this.#progressBox.hidden = true;
      this.#drop.hidden = false;
    }
  }

  /**
   * @param {string} video
   * @param {string[]} suggestions
   */
  async #openVideo(video, suggestions) {
    this.#open(await openSession({ video }), suggestions);
  }

  async #openWebcam() {
    const webcam = await Webcam.open();
    try {
      this.#open(await openSession({ webcam: true }), [], webcam);
    } catch (error) {
      webcam.close();
      throw error;
    }
  }

  async #openCameras() {
    const form = byId("camera-form", HTMLFormElement);
    const fields = new FormData(form);
    const written = (/** @type {string} */ name) => String(fields.get(name) ?? "").split(/[\s,]+/).filter(Boolean);
    const sources = [...written("cameras").map((camera) => ({ camera })), ...written("addresses").map((url) => ({ url }))];
    const sentence = String(fields.get("sentence") ?? "").trim();
    if (!sources.length) throw new Error("Choose a camera, or write the address of one.");
    const states = [];
    for (const source of sources) states.push(await openSession(source, sentence ? [sentence] : []));
    form.reset(); // the addresses may contain passwords
    if (states.length > 1) this.dispatchEvent(new CustomEvent("wall", { detail: states }));
    else this.#open(states[0], []);
  }

  /**
   * @param {SessionState} state
   * @param {string[]} suggestions
   * @param {Webcam | null} webcam
   */
  #open(state, suggestions, webcam = null) {
    this.dispatchEvent(new CustomEvent("open", { detail: { state, suggestions, webcam } }));
  }

  /**
   * @param {() => Promise<unknown>} action
   */
  async #try(action) {
    this.#problem.textContent = "";
    document.body.classList.add("waiting");
    try {
      await action();
    } catch (error) {
      this.#fail(error);
    } finally {
      document.body.classList.remove("waiting");
    }
  }

  /**
   * @param {unknown} error
   */
  #fail(error) {
    this.#problem.textContent = sentenceOf(error);
  }
}
