/** Alerts, and the list of events. */

import { addAlert } from "./api.js";
import { byId, clock, create, sentenceOf } from "./dom.js";
import { newestEvents } from "./session.js";

/** @import {Session} from "./session.js" */
/** @import {SessionEvent} from "./types.js" */

const MOST_EVENTS = 50;

const NAMES = {
  correction: "corrected",
  switch: "switched to another object",
  cut: "scene cut",
  alert: "alert",
  outage: "connection lost",
};

/** The panel with alerts and events. It dispatches `seek` with a frame, and `notice` with a sentence, as detail. */
export class Alerts extends EventTarget {
  /** @type {Session | null} */ session = null;
  #panel = byId("alerts", HTMLElement);
  #form = byId("alert-form", HTMLFormElement);
  #tracks = byId("alert-track", HTMLSelectElement);
  #list = byId("alert-list", HTMLUListElement);
  #eventsPanel = byId("events", HTMLElement);
  #events = byId("event-list", HTMLOListElement);
  #drawn = "";

  constructor() {
    super();
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#add();
    });
  }

  /**
   * @param {Session} session
   */
  show(session) {
    this.session = session;
    this.#drawn = "";
    session.addEventListener("state", () => this.#update());
    this.#update();
  }

  async #add() {
    const { session } = this;
    if (!session) return;
    const fields = new FormData(this.#form);
    const track = Number(fields.get("track"));
    const alert = {
      track,
      when: String(fields.get("when")),
      threshold: Number(fields.get("threshold")) / 100,
      frames: Number(fields.get("frames")),
    };
    try {
      await addAlert(session.id, alert);
    } catch (error) {
      this.dispatchEvent(new CustomEvent("notice", { detail: sentenceOf(error) }));
    }
  }

  #update() {
    const { session } = this;
    if (!session) return;
    const { tracks, events, alerts } = session.state;
    const now = JSON.stringify([tracks.map(({ id, label, expression }) => [id, label ?? expression]), events.length, alerts ?? [], session.id]);
    if (now === this.#drawn) return;
    this.#drawn = now;
    this.#panel.hidden = !session.live || !tracks.length;
    this.#eventsPanel.hidden = !events.length;
    const chosen = this.#tracks.value;
    this.#tracks.replaceChildren(...tracks.map(({ id, label, expression }) => create("option", { value: String(id) }, label ?? expression)));
    if (chosen && session.track(Number(chosen))) this.#tracks.value = chosen;
    this.#list.replaceChildren(
      ...(alerts ?? []).map((alert) => {
        const name = session.track(alert.track)?.expression ?? "a dropped sentence";
        const condition = `${alert.when} ${Math.round(100 * alert.threshold)} % for ${alert.frames} frames`;
        return create("li", {}, `${name}: ${condition}`);
      }),
    );
    this.#events.replaceChildren(...newestEvents(events, MOST_EVENTS).map((event) => this.#row(event)));
  }

  /**
   * @param {SessionEvent} event
   */
  #row(event) {
    const track = event.track === null || event.track === undefined ? undefined : this.session?.track(event.track);
    const name = track ? `${track.label ?? track.expression}: ` : "";
    const seek = () => this.dispatchEvent(new CustomEvent("seek", { detail: event.frame }));
    const text = `${name}${event.text ?? NAMES[event.kind] ?? event.kind}`;
    const button = create("button", { type: "button", class: `event ${event.kind}`, click: seek });
    button.append(create("span", { class: "when" }, clock(event.time ?? 0)), create("span", {}, text));
    return create("li", {}, button);
  }
}
