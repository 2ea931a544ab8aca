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

/** @import {Correction, Tool, WaitingCorrection} from "./stage.js" */
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
  /** Whether playing was asked for and the server has not answered yet. */
  #starting = false;
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
    this.#starting = false;
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
    const frame = this.#from.value === "all" ? session.range[0] : view.target;
    this.#sentence.value = ""; // at once: what is typed from now on is the next sentence
    if (start) this.#setStarting(true);
    if (expression) {
      const added = await session.decide(() => ["add", { expression, ...(session.live || !this.#started ? {} : { frame }) }]);
      if (!added && this.session === session && !this.#sentence.value) this.#sentence.value = expression;
    }
    await session.settled();
    if (!start || this.session !== session) return;
    if (session.state.tracks.length) {
      if (this.#starting) await this.#start();
      return;
    }
    this.#setStarting(false);
    this.#sentence.focus();
  }

  /** Whether the session has been started before. */
  get #started() {
    return (this.session?.newest ?? -1) >= 0;
  }

  /**
   * @param {boolean} starting
   */
  #setStarting(starting) {
    this.#starting = starting;
    this.#update();
  }

  /** Play, and compute what is missing. */
  async #start() {
    const { session, view } = this;
    if (!session || !view) return;
    this.#setStarting(true);
    await session.decide(() => {
      const { tracks, status } = session.state;
      const missing = session.live || (tracks.length > 0 && session.newest < session.range[1]);
      return this.#starting && missing && status !== "running" ? ["play", {}] : null;
    });
    if (this.view !== view || !this.#starting) return;
    this.#starting = false;
    if (!view.playing) view.play();
    this.#update();
  }

  #pause() {
    const { session, view } = this;
    if (!session || !view) return;
    view.pause();
    this.#setStarting(false);
    session.decide(() => (session.state.status === "running" ? ["pause", {}] : null));
  }

  /** Play or pause; the model stops and goes on with the view. */
  toggle() {
    const { session, view } = this;
    if (!session || !view) return;
    if (session.live) session.decide(() => [session.state.status === "running" ? "pause" : "play", {}]);
    else if (view.playing || this.#starting) this.#pause();
    else this.#start();
  }

  /**
   * Go some frames forward or back; at the newest computed frame, compute another one.
   *
   * @param {number} frames
   */
  step(frames) {
    const { session, view } = this;
    if (!session || !view) return;
    if (session.live) {
      this.#pause();
      if (frames > 0) session.do("step", { frames });
      return;
    }
    if (view.playing || this.#starting) this.#pause();
    const to = Math.max(session.range[0], Math.min(session.range[1], view.target + frames));
    session.decide(() => {
      const { tracks, status } = session.state;
      const missing = to > session.newest && tracks.length > 0 && this.#started;
      return missing && status !== "running" ? ["step", { to }] : null;
    });
    view.seek(to);
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
    if (session?.live) session.decide(() => ["record", { on: !session.state.recording }]);
  }

  /**
   * Correct the frame on view, as soon as it has masks.
   *
   * @param {Correction} correction
   */
  async #correct(correction) {
    const { session, view } = this;
    if (!session || !view) return;
    /** @type {WaitingCorrection} */
    const waiting = { ...correction, frame: view.shown, track: this.tracks.selected, sent: false };
    if (waiting.track !== null && view.playing && !session.live) view.pause();
    this.#showWaiting([...this.stage.waiting, waiting]);
    const computed = await session.reach(waiting.frame);
    await this.#send(session, waiting, computed);
    if (this.session === session) this.#showWaiting(this.stage.waiting.filter((each) => each !== waiting));
  }

  /**
   * Send a correction that has waited, unless it was taken back, or say why it cannot be made.
   *
   * @param {Session} session
   * @param {WaitingCorrection} waiting
   * @param {boolean} computed Whether its frame has masks.
   */
  async #send(session, waiting, computed) {
    const withdrawn = () => !this.stage.waiting.includes(waiting);
    if (withdrawn()) return;
    const { points, box, frame } = waiting;
    const track = waiting.track ?? this.tracks.selected; // the first sentence may have been on its way when it was made
    if (track === null) {
      this.#notice("Type a sentence first; then clicks correct its object.");
      this.#sentence.focus();
    } else if (!computed || frame < 0) {
      this.#notice("This frame has no masks yet; they can be corrected once they are there.");
    } else {
      const made = await session.decide(() => {
        if (withdrawn()) return null;
        waiting.sent = true;
        this.#corrected.push(track);
        return ["correct", { track, frame, points, box }];
      });
      if (waiting.sent && made === undefined) this.#corrected.splice(this.#corrected.lastIndexOf(track), 1);
    }
  }

  /**
   * @param {WaitingCorrection[]} waiting
   */
  #showWaiting(waiting) {
    this.stage.waiting = waiting;
    this.stage.schedule();
    this.#update();
  }

  /** Take back the last correction. */
  async undo() {
    const { session, stage } = this;
    if (!session) return;
    const waiting = stage.waiting.findLast(({ sent }) => !sent);
    if (waiting) {
      this.#showWaiting(stage.waiting.filter((each) => each !== waiting));
      return;
    }
    await session.decide(() => {
      const correctable = (/** @type {number} */ id) => (session.track(id)?.corrections ?? 0) > 0;
      const last = this.#corrected.findLast(correctable);
      const track = last ?? session.state.tracks.find(({ id }) => correctable(id))?.id;
      if (last !== undefined) this.#corrected.splice(this.#corrected.lastIndexOf(last), 1);
      if (track !== undefined) return ["undo", { track }];
      this.#notice("There is no correction to undo.");
      return null;
    });
  }

  /**
   * @param {number | null} track
   */
  #selected(track) {
    this.stage.selected = track;
    this.stage.schedule();
  }

  #toggleVisible() {
    if (this.tracks.selected !== null) this.tracks.toggleVisible(this.tracks.selected);
    else this.#notice("There is no sentence whose object could be shown or hidden.");
  }

  /**
   * @param {"in" | "out" | "all"} which
   */
  #setRange(which) {
    const { session, view } = this;
    if (!session || !view || session.live) return;
    const frame = Math.max(0, view.target);
    session.decide(() => {
      const [first, last] = session.range;
      if (which === "in") return ["range", { in: frame, out: Math.max(frame, last) }];
      if (which === "out") return ["range", { in: Math.min(first, frame), out: frame }];
      return ["range", { in: 0, out: (session.state.frame_count ?? 1) - 1 }];
    });
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
    const running = view.playing || this.#starting || (live && state.status === "running");
    this.#play.setAttribute("aria-label", running ? "Pause" : "Play");
    this.#play.replaceChildren(icon(running ? "pause" : "play"));
    this.#undo.disabled = !this.stage.waiting.length && !state.tracks.some(({ corrections }) => corrections > 0);
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
