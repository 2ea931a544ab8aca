/** Keys of the studio. */

import { byId } from "./dom.js";

const ENABLED = "refervos.keys";
const TYPING = "input:not([type=checkbox]):not([type=radio]):not([type=color]):not([type=range]), textarea, select, [contenteditable]";
const PRESSED_BY_SPACE = "button, a, summary, input, label";

/**
 * What keys do.
 *
 * @typedef {Record<string, (event: KeyboardEvent) => void>} Bindings
 */

/** Whether single keys are commands; people who dictate text turn them off. */
export const singleKeys = {
  get enabled() {
    return localStorage.getItem(ENABLED) !== "off";
  },
  set enabled(enabled) {
    localStorage.setItem(ENABLED, enabled ? "on" : "off");
  },
};

/**
 * Call functions for keys, unless the user is typing or a dialog is open.
 *
 * @param {Bindings} bindings By the key's name in lower case, "space" for the space bar.
 * @param {(event: KeyboardEvent) => boolean} first Is asked first; returns whether it handled the key.
 */
export function listenForKeys(bindings, first) {
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || document.querySelector("dialog[open]") || byId("studio", HTMLElement).hidden) return;
    const target = event.target instanceof Element ? event.target : document.body;
    if (event.key === "Escape" && target instanceof HTMLElement && target.matches(TYPING)) {
      target.blur();
      return;
    }
    const undo = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z";
    if (target.matches(TYPING) || event.altKey || ((event.ctrlKey || event.metaKey) && !undo)) return;
    if (target.matches("input[type=range]") && event.key.startsWith("Arrow")) return;
    const key = event.key === " " ? "space" : event.key.toLowerCase();
    if (!undo && !singleKeys.enabled && key.length === 1) return;
    if ((key === "space" || key === "enter") && target.matches(PRESSED_BY_SPACE)) return;
    if (first(event)) {
      event.preventDefault();
    } else if (bindings[key]) {
      bindings[key](event);
      event.preventDefault();
    }
  });
}
