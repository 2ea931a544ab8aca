/** A conversation with a model that answers questions; its phrases have the colours of their masks. */

import { ask } from "./api.js";
import { byId, create, sentenceOf } from "./dom.js";
import { hex } from "./server_state.js";

/** @import {Session} from "./session.js" */

/**
 * The conversation beside the video. It dispatches `select` with a track's number as detail, and `followed` after an answer with phrases.
 */
export class Conversation extends EventTarget {
  /** @type {Session | null} */ session = null;
  #panel = byId("conversation", HTMLElement);
  #log = byId("conversation-log", HTMLDivElement);
  #form = byId("conversation-form", HTMLFormElement);
  #question = byId("conversation-question", HTMLInputElement);

  constructor() {
    super();
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask();
    });
  }

  /**
   * @param {Session} session
   * @param {boolean} answers Whether its model answers questions.
   */
  show(session, answers) {
    this.session = session;
    this.#panel.hidden = !answers;
    this.#log.replaceChildren();
    session.addEventListener("state", () => this.#colour());
  }

  async #ask() {
    const question = this.#question.value.trim();
    if (!question || !this.session) return;
    this.#question.value = "";
    const answer = create("p", { class: "answer" });
    this.#log.append(create("p", { class: "question" }, question), answer);
    try {
      let phrases = 0;
      for await (const { event, data } of ask(this.session.id, question)) {
        if (event === "problem") throw new Error(data.detail);
        if (data.text) answer.append(data.track === undefined ? data.text : this.#phrase(data));
        if (data.track !== undefined) phrases += 1;
        if (data.unknown_words?.length) answer.append(create("span", { class: "hint" }, guess(data.unknown_words)));
        this.#log.scrollTop = this.#log.scrollHeight;
      }
      if (phrases) this.dispatchEvent(new Event("followed"));
    } catch (error) {
      answer.append(create("span", { class: "problem" }, sentenceOf(error)));
    }
  }

  /**
   * @param {{text: string, track: number, colour: [number, number, number]}} phrase
   */
  #phrase({ text, track, colour }) {
    const select = () => this.dispatchEvent(new CustomEvent("select", { detail: track }));
    const button = create("button", { type: "button", class: "phrase", "data-track": String(track), click: select }, text);
    button.style.setProperty("--colour", hex(colour));
    return button;
  }

  /** Give phrases the present colours of their tracks. */
  #colour() {
    for (const phrase of this.#log.querySelectorAll("button")) {
      const track = this.session?.track(Number(phrase.dataset.track));
      if (track) phrase.style.setProperty("--colour", track.colour);
    }
  }
}

/** @param {string[]} words The words of a question that the model cannot read. */
function guess(words) {
  return `The model does not know ${words.slice(0, 10).join(", ")}: this answer is a guess.`;
}
