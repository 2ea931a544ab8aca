/** The dialog that exports masks, and the one that shows a session as Python or as a command. */

import { cancelJob, fetchExports, fetchJob, jobFileAddress, sessionFileAddress, startExport } from "./api.js";
import { byId, copyText, create, sentenceOf } from "./dom.js";
import { asCommand, asPython, whatToComplete } from "./snippets.js";

/** @import {Session} from "./session.js" */
/** @import {Effect, ExportJob} from "./types.js" */

const POLL = 300;

/**
 * @param {string} job
 * @param {string} name
 * @returns {HTMLAnchorElement}
 */
const fileLink = (job, name) => create("a", { href: jobFileAddress(job, name), download: name }, name);

/**
 * Say what of a live source can be exported.
 *
 * @param {number} recorded Number of recorded frames.
 * @returns {string}
 */
export function recordingText(recorded) {
  if (recorded) return `Videos and pictures have the ${recorded} recorded frames; masks and events have every frame.`;
  return "Videos and pictures need a recording: press Record first. Run lengths, PNG masks, CVAT and events have every frame.";
}

/** The export dialog. */
export class ExportDialog {
  #dialog = byId("export-dialog", HTMLDialogElement);
  #form = byId("export-form", HTMLFormElement);
  #part = byId("export-part", HTMLFieldSetElement);
  #partText = byId("export-part-text", HTMLSpanElement);
  #progress = byId("export-progress", HTMLProgressElement);
  #status = byId("export-status", HTMLParagraphElement);
  #files = byId("export-files", HTMLUListElement);
  #start = byId("export-start", HTMLButtonElement);
  #cancel = byId("export-cancel", HTMLButtonElement);
  #save = byId("export-session", HTMLAnchorElement);
  #snippets = new SnippetDialog();
  #live = byId("export-live", HTMLParagraphElement);
  #earlier = byId("export-earlier", HTMLDetailsElement);
  #earlierList = byId("export-earlier-list", HTMLUListElement);
  #cancelled = false;
  /** @type {Session | null} */ #session = null;
  /** @type {Effect} */ #effect = { kind: "colour", area: "object", strength: 0.5 };

  constructor() {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#export();
    });
    this.#cancel.addEventListener("click", () => {
      this.#cancelled = true;
      this.#status.textContent = "Cancelling";
    });
    for (const kind of /** @type {const} */ (["python", "command"])) {
      byId(`export-${kind}`, HTMLButtonElement).addEventListener("click", () => this.openSnippet(this.#session, kind));
    }
  }

  /**
   * @param {Session} session
   * @param {Effect} effect Effect of the preview.
   */
  open(session, effect) {
    this.#session = session;
    this.#effect = effect;
    const [from, to] = session.range;
    const partly = !session.live && (from > 0 || to < (session.state.frame_count ?? 1) - 1);
    this.#part.hidden = !partly;
    this.#partText.textContent = `From ${from} to ${to}`;
    this.#save.href = sessionFileAddress(session.id);
    this.#files.replaceChildren();
    this.#status.textContent = "";
    this.#live.hidden = !session.live;
    this.#live.textContent = recordingText(session.state.recorded);
    this.#dialog.showModal();
    this.#showEarlier(session);
  }

  /**
   * Show a session as a program.
   *
   * @param {Session | null} session
   * @param {"python" | "command"} kind
   */
  openSnippet(session, kind) {
    this.#dialog.close();
    if (session) this.#snippets.open(session, kind);
  }

  /**
   * @param {Session} session
   */
  async #showEarlier(session) {
    this.#earlier.hidden = true;
    const exports = await fetchExports(session.id).catch(() => []);
    if (this.#session !== session) return;
    this.#earlier.hidden = !exports.length;
    this.#earlierList.replaceChildren(
      ...exports.map((job) => {
        const links = job.files.map((name) => fileLink(job.id, name));
        return create("li", {}, ...(links.length ? links : [`${job.outputs.join(", ")}: ${job.problem?.detail ?? job.status}`]));
      }),
    );
  }

  async #export() {
    const session = this.#session;
    if (!session) return;
    const fields = new FormData(this.#form);
    const onlyVisible = fields.get("which") === "visible";
    const visible = session.state.tracks.filter((track) => track.visible).map((track) => track.id);
    this.#cancelled = false;
    this.#busy(true);
    this.#files.replaceChildren();
    this.#status.textContent = "Preparing";
    try {
      const job = await startExport(session.id, {
        format: fields.get("format"),
        range: fields.get("part") === "part" && !this.#part.hidden ? session.range : [0, null],
        tracks: onlyVisible ? visible : null,
        effects: [this.#effect, ...(this.#effect.kind === "colour" ? [{ ...this.#effect, kind: "outline" }] : [])],
      });
      this.#show(await this.#wait(job));
    } catch (error) {
      this.#status.textContent = sentenceOf(error);
    } finally {
      this.#busy(false);
    }
  }

  /**
   * Wait until a job is over, or cancel it once the user wants that.
   *
   * @param {string} id
   * @returns {Promise<ExportJob | null>} Null if it was cancelled here.
   */
  async #wait(id) {
    for (;;) {
      if (this.#cancelled) {
        await cancelJob(id);
        return null;
      }
      const job = await fetchJob(id);
      if (job.status !== "queued" && job.status !== "running") return job;
      const done = job.done / Math.max(1, job.total ?? 1);
      this.#progress.value = done;
      const progress = job.status === "queued" ? "Waiting for its turn" : `${Math.round(100 * done)} %`;
      if (!this.#cancelled) this.#status.textContent = progress;
      await new Promise((resolve) => setTimeout(resolve, POLL));
    }
  }

  /**
   * @param {ExportJob | null} job Null if it was cancelled.
   */
  #show(job) {
    if (job?.problem) {
      this.#status.textContent = job.problem.detail;
      return;
    }
    this.#status.textContent = !job || job.status === "cancelled" ? "Cancelled." : "Ready.";
    this.#files.replaceChildren(
      ...(job ? job.files.map((name) => create("li", {}, fileLink(job.id, name))) : []),
    );
    this.#files.querySelector("a")?.focus();
  }

  /**
   * @param {boolean} busy
   */
  #busy(busy) {
    this.#start.disabled = busy;
    this.#cancel.hidden = !busy;
    this.#progress.hidden = !busy;
    this.#progress.removeAttribute("value");
  }
}

/** The dialog with a session as Python and as a command. */
class SnippetDialog {
  #dialog = byId("snippet-dialog", HTMLDialogElement);
  #title = byId("snippet-title", HTMLHeadingElement);
  #text = byId("snippet-text", HTMLPreElement);
  #note = byId("snippet-note", HTMLParagraphElement);
  #copied = byId("snippet-copied", HTMLSpanElement);

  constructor() {
    byId("snippet-copy", HTMLButtonElement).addEventListener("click", () => this.#copy());
  }

  /**
   * @param {Session} session
   * @param {"python" | "command"} kind
   */
  open(session, kind) {
    const command = asCommand(session.state);
    this.#title.textContent = kind === "python" ? "As Python" : "As a command";
    this.#text.textContent = kind === "python" ? asPython(session.state) : command.text;
    const notes = [whatToComplete(session.state), kind === "command" ? command.left : null];
    this.#note.textContent = notes.filter(Boolean).join(" ");
    this.#copied.textContent = "";
    this.#dialog.showModal();
    this.#copy();
  }

  async #copy() {
    try {
      await copyText(this.#text.textContent ?? "");
      this.#copied.textContent = "Copied.";
    } catch {
      this.#copied.textContent = "The browser did not allow copying; select the text instead.";
    }
  }
}
