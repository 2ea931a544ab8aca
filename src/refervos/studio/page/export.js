/** The dialog that exports masks, and the one that shows a session as Python or as a command. */

import { cancelJob, fetchJob, jobFileAddress, sessionFileAddress, startExport } from "./api.js";
import { byId, copyText, create, sentenceOf } from "./dom.js";
import { asCommand, asPython } from "./snippets.js";

/** @import {Session} from "./session.js" */
/** @import {Effect, ExportJob} from "./types.js" */

const POLL = 300;

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
  /** @type {string | null} */ #job = null;
  /** @type {Session | null} */ #session = null;
  /** @type {Effect} */ #effect = { kind: "colour", area: "object", strength: 0.5 };

  constructor() {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#export();
    });
    this.#cancel.addEventListener("click", () => {
      if (this.#job) cancelJob(this.#job).catch(() => {});
    });
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
    this.#dialog.showModal();
  }

  async #export() {
    const session = this.#session;
    if (!session) return;
    const fields = new FormData(this.#form);
    const onlyVisible = fields.get("which") === "visible";
    const visible = session.state.tracks.filter((track) => track.visible).map((track) => track.id);
    this.#busy(true);
    this.#files.replaceChildren();
    this.#status.textContent = "Preparing";
    try {
      this.#job = await startExport(session.id, {
        format: fields.get("format"),
        range: fields.get("part") === "part" && !this.#part.hidden ? session.range : [0, null],
        tracks: onlyVisible ? visible : null,
        effects: [this.#effect, ...(this.#effect.kind === "colour" ? [{ ...this.#effect, kind: "outline" }] : [])],
      });
      this.#show(await this.#wait(this.#job));
    } catch (error) {
      this.#status.textContent = sentenceOf(error);
    } finally {
      this.#job = null;
      this.#busy(false);
    }
  }

  /**
   * @param {string} id
   * @returns {Promise<ExportJob>}
   */
  async #wait(id) {
    for (;;) {
      const job = await fetchJob(id);
      if (job.status !== "queued" && job.status !== "running") return job;
      const done = job.done / Math.max(1, job.total ?? 1);
      this.#progress.value = done;
      this.#status.textContent = job.status === "queued" ? "Waiting for its turn" : `${Math.round(100 * done)} %`;
      await new Promise((resolve) => setTimeout(resolve, POLL));
    }
  }

  /**
   * @param {ExportJob} job
   */
  #show(job) {
    if (job.status === "failed") {
      this.#status.textContent = job.problem?.detail ?? "The export failed.";
      return;
    }
    this.#status.textContent = job.status === "cancelled" ? "Cancelled." : "Ready.";
    this.#files.replaceChildren(
      ...job.files.map((name) => create("li", {}, create("a", { href: jobFileAddress(job.id, name), download: name }, name))),
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
export class SnippetDialog {
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
    this.#note.textContent = kind === "command" ? (command.left ?? "") : "";
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
