/** The studio: one session on view, with all that can be done to it. */

import { Alerts } from "./alerts.js";
import { Conversation } from "./conversation.js";
import { byId, clock, create, duration, icon } from "./dom.js";
import { ExportDialog } from "./export.js";
import { listenForKeys, singleKeys } from "./keys.js";
import { EFFECTS } from "./painter.js";
import { Session } from "./session.js";
import { Stage } from "./stage.js";
import { Timeline } from "./timeline.js";
import { Tracks } from "./tracks.js";
import { LiveView, PictureView, RecordingView } from "./views.js";

/** @import {Correction, Tool} from "./stage.js" */
/** @import {Effect, Model, SessionState} from "./types.js" */
/** @import {View} from "./views.js" */
/** @import {Webcam} from "./webcam.js" */

const LONG_STEP = 10;

/** The studio. It dispatches `notice` with a sentence as detail. */
export class Studio extends EventTarget {
  /** @type {Session | null} */ session = null;
  /** @type {View | null} */ view = null;
  /** @type {Webcam | null} */ #webcam = null;
  /**
   * Tracks in the order in which they were corrected here.
   *
   * @type {number[]}
   */
  #corrected = [];
  /** @type {Model[]} */ models = [];

  stage = new Stage();
  timeline = new Timeline();
  tracks = new Tracks(this.timeline);
  alerts = new Alerts();
  conversation = new Conversation();
  #exports = new ExportDialog();

  #form = byId("ask", HTMLFormElement);
  #sentence = byId("sentence", HTMLInputElement);
  #from = byId("from", HTMLSelectElement);
  #find = byId("find", HTMLButtonElement);
  #another = byId("another", HTMLButtonElement);
  #suggestions = byId("suggestions", HTMLUListElement);
  #play = byId("play", HTMLButtonElement);
  #position = byId("position", HTMLOutputElement);
  #status = byId("status", HTMLParagraphElement);
  #undo = byId("undo", HTMLButtonElement);
  #record = byId("record", HTMLButtonElement);
  #speed = byId("speed", HTMLSelectElement);
  #effect = byId("effect", HTMLSelectElement);
  #strength = byId("strength", HTMLInputElement);

  constructor() {
    super();
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask(true);
    });
    this.#another.addEventListener("click", () => this.#ask(false));
    this.#play.addEventListener("click", () => this.toggle());
    byId("back", HTMLButtonElement).addEventListener("click", () => this.step(-1));
    byId("forward", HTMLButtonElement).addEventListener("click", () => this.step(1));
    this.#speed.addEventListener("change", () => this.view?.setSpeed(Number(this.#speed.value)));
    byId("set-in", HTMLButtonElement).addEventListener("click", () => this.#setRange("in"));
    byId("set-out", HTMLButtonElement).addEventListener("click", () => this.#setRange("out"));
    byId("clear-range", HTMLButtonElement).addEventListener("click", () => this.#setRange("all"));
    this.#undo.addEventListener("click", () => this.undo());
    this.#record.addEventListener("click", () => this.#toggleRecording());
    for (const tool of document.querySelectorAll("input[name=tool]")) {
      tool.addEventListener("change", () => (this.stage.tool = /** @type {Tool} */ (/** @type {HTMLInputElement} */ (tool).value)));
    }
    this.#effect.append(...EFFECTS.map(([value, name]) => create("option", { value }, name)));
    for (const input of [this.#effect, this.#strength]) input.addEventListener("input", () => this.#setEffect());
    byId("export", HTMLButtonElement).addEventListener("click", () => this.export());
    byId("copy-python", HTMLButtonElement).addEventListener("click", () => this.#exports.openSnippet(this.session, "python"));
    byId("copy-command", HTMLButtonElement).addEventListener("click", () => this.#exports.openSnippet(this.session, "command"));
    this.stage.addEventListener("correct", (event) => this.#correct(/** @type {CustomEvent<Correction>} */ (event).detail));
    this.tracks.addEventListener("select", (event) => this.#selected(/** @type {CustomEvent} */ (event).detail));
    this.conversation.addEventListener("followed", () => this.#start());
    this.conversation.addEventListener("select", (event) => this.tracks.select(/** @type {CustomEvent} */ (event).detail));
    this.timeline.addEventListener("seek", (event) => this.seek(/** @type {CustomEvent} */ (event).detail));
    this.alerts.addEventListener("seek", (event) => this.seek(/** @type {CustomEvent} */ (event).detail));
    this.alerts.addEventListener("notice", (event) => this.#notice(/** @type {CustomEvent} */ (event).detail));
    this.#bindKeys();
  }

  #bindKeys() {
    const help = byId("keys-dialog", HTMLDialogElement);
    const enabled = byId("keys-enabled", HTMLInputElement);
    enabled.checked = singleKeys.enabled;
    enabled.addEventListener("change", () => (singleKeys.enabled = enabled.checked));
    byId("keys", HTMLButtonElement).addEventListener("click", () => help.showModal());
    listenForKeys(
      {
        space: () => this.toggle(),
        arrowleft: (event) => this.step(event.shiftKey ? -LONG_STEP : -1),
        arrowright: (event) => this.step(event.shiftKey ? LONG_STEP : 1),
        arrowup: () => this.tracks.selectNext(-1),
        arrowdown: () => this.tracks.selectNext(1),
        home: () => this.seek(this.session?.range[0] ?? 0),
        end: () => this.seek(this.session?.range[1] ?? 0),
        i: () => this.#setRange("in"),
        o: () => this.#setRange("out"),
        z: () => this.undo(),
        r: () => this.#toggleRecording(),
        v: () => this.#toggleVisible(),
        c: () => this.stage.toggleCrosshair(),
        e: () => this.export(),
        n: () => this.#sentence.focus(),
        "/": () => this.#sentence.focus(),
        "?": () => help.showModal(),
        escape: () => this.stage.cancel(),
      },
      (event) => this.stage.crosshairKey(event),
    );
  }

  /**
   * Show a session.
   *
   * @param {SessionState} state
   * @param {{suggestions?: string[], webcam?: Webcam | null}} options Sentences that suit the video, and the webcam that feeds it.
   */
  open(state, { suggestions = [], webcam = null } = {}) {
    this.close();
    const session = new Session(state);
    this.session = session;
    this.#webcam = webcam;
    this.#corrected = state.events.filter(({ kind }) => kind === "correction").map(({ track }) => track ?? 0);
    const view = this.#viewOf(session);
    this.view = view;
    webcam?.feed(session);
    session.addEventListener("state", () => this.#update());
    session.addEventListener("frame", () => {
      view.frameComputed();
      this.#showProgress();
    });
    session.addEventListener("silence", () => this.#showProgress());
    session.addEventListener("notice", (event) => this.#notice(/** @type {CustomEvent} */ (event).detail));
    session.addEventListener("alert", (event) => this.#notice(/** @type {CustomEvent} */ (event).detail));
    session.addEventListener("connection", (event) => this.#connected(/** @type {CustomEvent} */ (event).detail));
    view.addEventListener("shown", () => this.#shown());
    view.addEventListener("playing", () => this.#update());
    this.stage.show(session, view);
    this.timeline.show(session);
    this.tracks.show(session);
    this.alerts.show(session);
    this.conversation.show(session, this.models.some(({ name, conversation }) => name === state.model && conversation));
    this.#suggest(suggestions);
    this.#showFacts(state);
    this.#update();
  }

  /**
   * @param {Session} session
   * @returns {View}
   */
  #viewOf(session) {
    if (session.live) return new LiveView(session);
    return session.state.video?.playable ? new RecordingView(session, byId("video", HTMLVideoElement)) : new PictureView(session);
  }

  close() {
    this.stage.clear();
    this.view?.close();
    this.session?.close();
    this.#webcam?.close();
    this.#webcam = null;
    this.view = null;
    this.session = null;
  }

  /**
   * @param {string} sentence
   */
  #notice(sentence) {
    this.dispatchEvent(new CustomEvent("notice", { detail: sentence }));
  }

  /**
   * @param {"open" | "waiting" | "gone"} status
   */
  #connected(status) {
    document.body.classList.toggle("offline", status !== "open");
    byId("offline", HTMLParagraphElement).textContent =
      status === "waiting" ? "The connection was lost. Trying again." : status === "gone" ? "This session has ended." : "";
    if (status === "open" && this.session?.live) this.session.do("play");
  }

  /**
   * @param {SessionState} state
   */
  #showFacts({ source, video, frame_count }) {
    byId("video-name", HTMLSpanElement).textContent = source.name;
    byId("video-facts", HTMLSpanElement).textContent = video
      ? `${video.width} × ${video.height} · ${frame_count} frames · ${Math.round(100 * (video.fps ?? 0)) / 100} per second`
      : "live";
    document.title = `${source.name} · refervos studio`;
  }

  /**
   * @param {string[]} sentences
   */
  #suggest(sentences) {
    this.#suggestions.replaceChildren(
      ...sentences.map((sentence) => {
        const use = () => {
          this.#sentence.value = sentence;
          this.#sentence.focus();
        };
        return create("li", {}, create("button", { type: "button", class: "chip", click: use }, sentence));
      }),
    );
  }

  /**
   * Add the typed sentence, and start.
   *
   * @param {boolean} start
   */
  async #ask(start) {
    const { session, view } = this;
    if (!session || !view) return;
    const expression = this.#sentence.value.trim();
    if (expression) {
      const frame = session.live || !this.#started ? {} : { frame: this.#from.value === "all" ? session.range[0] : view.shown };
      const added = await session.do("add", { expression, ...frame });
      if (!added) return;
      this.#sentence.value = "";
    }
    if (!expression && !session.state.tracks.length) {
      this.#sentence.focus();
      return;
    }
    if (start) await this.#start();
  }

  /** Whether the session has been started before. */
  get #started() {
    return (this.session?.newest ?? -1) >= 0;
  }

  async #start() {
    const { session, view } = this;
    if (!session || !view) return;
    if (session.state.status !== "running") await session.do("play");
    if (!session.live && !view.playing) view.play();
  }

  /** Play or pause; the model stops and goes on with the view. */
  toggle() {
    const { session, view } = this;
    if (!session || !view) return;
    if (view.playing) {
      view.pause();
      if (!session.live && session.state.status === "running") session.do("pause");
      return;
    }
    const unfinished = session.state.tracks.length > 0 && session.newest < session.range[1];
    if (!session.live && unfinished) this.#start();
    else view.play();
  }

  /**
   * Go some frames forward or back; at the newest computed frame, compute another one.
   *
   * @param {number} frames
   */
  step(frames) {
    const { session, view } = this;
    if (!session || !view) return;
    if (view.playing) this.toggle();
    if (session.live) {
      if (frames > 0) session.do("step", { frames });
      return;
    }
    const goal = Math.max(session.range[0], Math.min(session.range[1], view.shown + frames));
    const missing = goal - session.newest;
    if (missing > 0 && session.state.tracks.length && this.#started && session.state.status !== "running") {
      session.do("step", { frames: missing });
    }
    view.seek(goal);
  }

  /**
   * @param {number} frame
   */
  seek(frame) {
    this.view?.seek(frame);
  }

  /** Begin or stop to keep the pictures of a live source, for exports with pictures. */
  #toggleRecording() {
    const { session } = this;
    if (session?.live) session.do("record", { on: !session.state.recording });
  }

  /**
   * @param {Correction} correction
   */
  async #correct({ points, box }) {
    const { session, view } = this;
    const track = this.tracks.selected;
    if (!session || !view) return;
    if (track === null) {
      this.#notice("Type a sentence first; then clicks correct its object.");
      this.#sentence.focus();
      return;
    }
    if (view.shown > session.newest || view.shown < 0) {
      this.#notice("This frame has no masks yet; they can be corrected once they are there.");
      return;
    }
    if (view.playing && !session.live) view.pause();
    this.#corrected.push(track);
    const result = await session.do("correct", { track, frame: view.shown, points, box });
    if (result === undefined) this.#corrected.splice(this.#corrected.lastIndexOf(track), 1);
    this.#update();
  }

  /** Take back the last correction. */
  async undo() {
    const { session } = this;
    if (!session || this.#undo.disabled) return;
    const correctable = (/** @type {number} */ id) => (session.track(id)?.corrections ?? 0) > 0;
    const last = this.#corrected.findLast(correctable);
    const track = last ?? session.state.tracks.find(({ id }) => correctable(id))?.id;
    if (track === undefined) return;
    if (last !== undefined) this.#corrected.splice(this.#corrected.lastIndexOf(track), 1);
    await session.do("undo", { track });
  }

  /**
   * @param {number | null} track
   */
  #selected(track) {
    this.stage.selected = track;
    this.stage.schedule();
  }

  #toggleVisible() {
    const track = this.tracks.selected === null ? undefined : this.session?.track(this.tracks.selected);
    if (track) this.session?.do("show", { track: track.id, visible: !track.visible });
  }

  /**
   * @param {"in" | "out" | "all"} which
   */
  #setRange(which) {
    const { session, view } = this;
    if (!session || !view || session.live) return;
    const [first, last] = session.range;
    const end = (session.state.frame_count ?? 1) - 1;
    const frame = Math.max(0, view.shown);
    if (which === "in") session.do("range", { in: frame, out: Math.max(frame, last) });
    else if (which === "out") session.do("range", { in: Math.min(first, frame), out: frame });
    else session.do("range", { in: 0, out: end });
  }

  #setEffect() {
    const [kind, area = "object"] = this.#effect.value.split(" ");
    const effect = /** @type {Effect} */ ({ kind, area, strength: Number(this.#strength.value) / 100 });
    this.stage.effect = effect;
    this.#strength.disabled = effect.kind === "outline" || effect.kind === "cutout";
    this.stage.schedule();
  }

  export() {
    if (this.session?.state.tracks.length) this.#exports.open(this.session, this.stage.effect);
    else this.#notice("There is nothing to export yet; type a sentence first.");
  }

  #shown() {
    const { view, session } = this;
    if (!view || !session) return;
    const of = session.live ? "" : ` of ${session.state.frame_count}`;
    const time = session.live ? clock(view.time) : `${clock(view.time)} / ${clock(session.state.video?.duration ?? 0)}`;
    this.#position.textContent = `${time} · frame ${view.shown}${of}`;
    this.timeline.moveTo(view.shown, view.time);
    this.tracks.showPresence(view.shown);
  }

  /** Show what depends on the state. */
  #update() {
    const { session, view } = this;
    if (!session || !view) return;
    const { state, live } = session;
    const running = view.playing || (live && state.status === "running");
    this.#play.setAttribute("aria-label", running ? "Pause" : "Play");
    this.#play.replaceChildren(icon(running ? "pause" : "play"));
    this.#undo.disabled = !state.tracks.some(({ corrections }) => corrections > 0);
    const idle = !this.#started && state.status !== "running";
    this.#find.textContent = idle ? "Find it" : "Add";
    this.#another.hidden = !idle;
    this.#from.hidden = live || !this.#started;
    byId("from-label", HTMLLabelElement).hidden = this.#from.hidden;
    for (const chip of this.#suggestions.children) {
      /** @type {HTMLElement} */ (chip).hidden = state.tracks.some(({ expression }) => expression === chip.textContent);
    }
    byId("empty", HTMLParagraphElement).hidden = state.tracks.length > 0;
    byId("clear-range", HTMLButtonElement).hidden = live || (session.range[0] === 0 && session.range[1] === (state.frame_count ?? 1) - 1);
    document.body.classList.toggle("live", live);
    this.#record.hidden = !live;
    this.#record.setAttribute("aria-pressed", String(state.recording));
    this.tracks.showPresence(view.shown);
    this.#showProgress();
  }

  #showProgress() {
    const { session } = this;
    if (!session) return;
    const text = progressText(session);
    if (this.#status.textContent !== text) this.#status.textContent = text;
  }
}

/**
 * Say how far a session is and how long it will take.
 *
 * @param {Session} session
 * @returns {string}
 */
export function progressText(session) {
  const { state, live, newest } = session;
  const rate = `${state.fps >= 10 ? Math.round(state.fps) : state.fps.toFixed(1)} frames per second`;
  if (live) {
    if (state.status === "paused") return "Paused.";
    if (session.silent) return "The camera does not answer. Trying again.";
    return newest < 0 ? "Connecting to the camera." : rate;
  }
  const [first, last] = session.range;
  const left = last - Math.max(newest, first - 1);
  if (newest < 0 && state.status !== "running") {
    const { estimate } = state;
    if (!estimate) return `${left} frames.`;
    return `${left} frames; about ${duration(left / estimate)} on this machine, at ${Math.round(estimate)} frames per second.`;
  }
  if (left <= 0) return `All ${last - first + 1} frames are done.`;
  if (state.status !== "running") return `Paused at frame ${newest}; ${left} frames are left.`;
  return state.fps > 0 ? `${rate}; ${duration(left / state.fps)} left.` : "Starting.";
}
