/** A conversation with a model that answers questions; its phrases have the colours of their masks. */

import { ask, fetchQuestions } from "./api.js";
import { byId, create, sentenceOf } from "./dom.js";
import { hex } from "./server_state.js";

/** @import {Session} from "./session.js" */
/** @import {AnswerPart, AskedQuestion} from "./types.js" */

/**
 * The conversation beside the video. It dispatches `select` with a track's number as detail, and `followed` after an answer with phrases.
 */
export class Conversation extends EventTarget {
  /** @type {Session | null} */ session = null;
  #panel = byId("conversation", HTMLElement);
  #log = byId("conversation-log", HTMLDivElement);
  #form = byId("conversation-form", HTMLFormElement);
  #question = byId("conversation-question", HTMLInputElement);
  /**
   * Resolved when the newest question has been answered.
   *
   * @type {Promise<void>}
   */
  #answered = Promise.resolve();

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
    this.#answered = answers ? this.#showEarlier(session) : Promise.resolve();
    session.addEventListener("state", () => this.#colour());
  }

  /**
   * Show what was asked before the page was loaded.
   *
   * @param {Session} session
   */
  async #showEarlier(session) {
    try {
      const earlier = await fetchQuestions(session.id);
      if (this.session === session) this.#log.prepend(...earlier.flatMap((asked) => this.#rows(asked)));
    } catch (error) {
      if (this.session === session) this.#log.prepend(create("p", { class: "problem" }, sentenceOf(error)));
    }
    this.#colour();
  }

  /** Ask the typed question once all questions before it have been answered. */
  #ask() {
    const question = this.#question.value.trim();
    const { session } = this;
    if (!question || !session) return;
    this.#question.value = "";
    const [row, answer] = this.#rows({ question, parts: [], unknown_words: [], problem: null });
    this.#log.append(row, answer);
    this.#log.scrollTop = this.#log.scrollHeight;
    this.#answered = this.#answered.then(() => this.#receive(session, question, answer));
  }

  /**
   * @param {Session} session
   * @param {string} question
   * @param {HTMLElement} answer Element to which the answer is added.
   */
  async #receive(session, question, answer) {
    if (this.session !== session) return;
    try {
      let phrases = 0;
      for await (const { event, data } of ask(session.id, question)) {
        if (event === "problem") throw new Error(data.detail);
        if (data.text) answer.append(this.#part(data));
        if (data.track !== undefined) phrases += 1;
        answer.append(...guess(data.unknown_words ?? []));
        this.#log.scrollTop = this.#log.scrollHeight;
      }
      if (phrases && this.session === session) this.dispatchEvent(new Event("followed"));
    } catch (error) {
      answer.append(create("span", { class: "problem" }, sentenceOf(error)));
    }
  }

  /**
   * @param {AskedQuestion} asked
   * @returns {[HTMLElement, HTMLElement]} The question and its answer.
   */
  #rows({ question, parts, unknown_words, problem }) {
    const answer = create("p", { class: "answer" }, ...parts.map((part) => this.#part(part)), ...guess(unknown_words));
    if (problem) answer.append(create("span", { class: "problem" }, problem));
    return [create("p", { class: "question" }, question), answer];
  }

  /**
   * @param {AnswerPart} part
   * @returns {HTMLElement | string} A phrase selects its track.
   */
  #part({ text, track, colour }) {
    if (track === undefined || track === null) return text;
    const select = () => this.dispatchEvent(new CustomEvent("select", { detail: track }));
    const button = create("button", { type: "button", class: "phrase", "data-track": String(track), click: select }, text);
    if (colour) button.style.setProperty("--colour", hex(colour));
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

/**
 * @param {string[]} words The words of a question that the model cannot read.
 * @returns {HTMLElement[]} A note about them, if there are any.
 */
function guess(words) {
  if (!words.length) return [];
  return [create("span", { class: "hint" }, `The model does not know ${words.slice(0, 10).join(", ")}: this answer is a guess.`)];
}
