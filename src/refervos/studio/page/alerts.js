/** Alerts, and the list of events. */

import { addAlert, alertsAddress } from "./api.js";
import { byId, clock, create, icon, sentenceOf } from "./dom.js";
import { newestEvents } from "./session.js";

/** @import {Session} from "./session.js" */
/** @import {Alert, SessionEvent} from "./types.js" */

const MOST_EVENTS = 50;

const NAMES = {
  correction: "corrected",
  switch: "switched to another object",
  cut: "scene cut",
  alert: "alert",
  outage: "connection lost",
};

/**
 * Let alerts be posted to the webhooks that the operator allows.
 *
 * @param {string[]} hosts Their schemes and hosts.
 */
export function offerWebhooks(hosts) {
  for (const label of document.querySelectorAll("label.webhook")) {
    /** @type {HTMLLabelElement} */ (label).hidden = !hosts.length;
    const nobody = create("option", { value: "" }, "nobody");
    label.querySelector("select")?.replaceChildren(nobody, ...hosts.map((host, k) => create("option", { value: String(k) }, host)));
  }
}

/**
 * Read the condition of an alert from a form.
 *
 * @param {HTMLFormElement} form
 * @returns {{when: string, threshold: number, frames: number, webhook: number | null}}
 */
export function conditionOf(form) {
  const fields = new FormData(form);
  const webhook = fields.get("webhook");
  return {
    when: String(fields.get("when")),
    threshold: Number(fields.get("threshold")) / 100,
    frames: Number(fields.get("frames")),
    webhook: webhook ? Number(webhook) : null,
  };
}

/** The panel with alerts and events. It dispatches `seek` with a frame, and `notice` with a sentence, as detail. */
export class Alerts extends EventTarget {
  /** @type {Session | null} */ session = null;
  #panel = byId("alerts", HTMLElement);
  #form = byId("alert-form", HTMLFormElement);
  #tracks = byId("alert-track", HTMLSelectElement);
  #list = byId("alert-list", HTMLUListElement);
  #file = byId("alert-file", HTMLAnchorElement);
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
    this.#file.href = alertsAddress(session.id);
    session.addEventListener("state", () => this.#update());
    this.#update();
  }

  async #add() {
    const { session } = this;
    if (!session) return;
    try {
      await addAlert(session.id, { track: Number(this.#tracks.value), ...conditionOf(this.#form) });
    } catch (error) {
      this.dispatchEvent(new CustomEvent("notice", { detail: sentenceOf(error) }));
    }
  }

  /**
   * Remove an alert, wherever it stands in the list by then.
   *
   * @param {Alert} removed
   */
  #remove(removed) {
    const { session } = this;
    session?.decide(() => {
      const alert = session.state.alerts.findIndex((each) => JSON.stringify(each) === JSON.stringify(removed));
      return alert < 0 ? null : ["clear_alerts", { alert }];
    });
  }

  #update() {
    const { session } = this;
    if (!session) return;
    const { tracks, events, alerts } = session.state;
    const now = JSON.stringify([tracks.map(({ id, label, expression }) => [id, label ?? expression]), events.length, (alerts ?? []).map(({ track, when, threshold, frames }) => [track, when, threshold, frames]), session.id]);
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
        const posted = alert.webhook ? ", posted" : "";
        const text = `${name}: ${alert.when} ${Math.round(100 * alert.threshold)} % for ${alert.frames} frames${posted}`;
        const click = () => this.#remove(alert);
        const remove = create("button", { type: "button", class: "quiet", "aria-label": `Remove the alert ${text}`, click }, icon("cross"));
        return create("li", {}, create("span", {}, text), remove);
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
