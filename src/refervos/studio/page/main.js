/** Starts the page: which screen is shown, the token, the theme and notices. */

import { offerWebhooks } from "./alerts.js";
import { fetchModels, fetchSession, logIn, ProblemError } from "./api.js";
import { byId, create, sentenceOf } from "./dom.js";
import { Sources } from "./sources.js";
import { Studio } from "./studio.js";
import { Wall } from "./wall.js";
import { Webcam } from "./webcam.js";

/** @import {SessionState} from "./types.js" */

const WEBCAM = "refervos.webcam";
const THEME = "refervos.theme";
const NOTICE_SHOWN = 7000;
const UNAUTHORISED = 401;

const sources = new Sources();
const studio = new Studio();
const wall = new Wall();

/**
 * Show one of the screens.
 *
 * @param {"start" | "studio" | "wall"} screen
 */
function show(screen) {
  for (const id of ["start", "studio", "wall"]) byId(id, HTMLElement).hidden = id !== screen;
  byId("session-bar", HTMLDivElement).hidden = screen !== "studio";
  document.body.dataset.screen = screen;
}

/**
 * Show a sentence for a while.
 *
 * @param {string} sentence
 */
function notice(sentence) {
  const close = () => toast.remove();
  const toast = create("div", { class: "toast" }, create("p", {}, sentence));
  toast.append(create("button", { type: "button", class: "quiet", "aria-label": "Dismiss", click: close }, "×"));
  byId("toasts", HTMLDivElement).append(toast);
  setTimeout(close, NOTICE_SHOWN);
}

/**
 * @param {string} query
 */
function remember(query) {
  history.pushState(null, "", query || location.pathname);
}

/**
 * Ask for the webcam again, if this tab fed the session with it before it was loaded again.
 *
 * @param {SessionState} state
 * @returns {Promise<Webcam | null>}
 */
async function webcamOf({ id, source }) {
  if (source.kind !== "webcam" || sessionStorage.getItem(WEBCAM) !== id) return null;
  return Webcam.open().catch((error) => {
    notice(sentenceOf(error));
    return null;
  });
}

/** Number of the screen that was asked for last; one that was asked for before it and arrives later is not shown. */
let newestScreen = 0;

/** Show what the address names. */
async function route() {
  const screen = ++newestScreen;
  const query = new URLSearchParams(location.search);
  const session = query.get("session");
  const several = query.get("wall")?.split(",").filter(Boolean) ?? [];
  studio.close();
  wall.close();
  try {
    if (session) {
      const state = await fetchSession(session);
      const webcam = await webcamOf(state);
      if (screen !== newestScreen) {
        webcam?.close();
        return;
      }
      studio.open(state, { webcam });
      show("studio");
    } else if (several.length) {
      const states = await Promise.all(several.map(fetchSession));
      if (screen !== newestScreen) return;
      wall.show(states);
      show("wall");
    } else {
      show("start");
      document.title = "refervos studio";
    }
  } catch (error) {
    if (screen !== newestScreen) return;
    show("start");
    remember("");
    byId("start-problem", HTMLParagraphElement).textContent = sentenceOf(error);
  }
}

/** Log in with the token of the address, or let the user type it where the server asks for one. */
async function unlock() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", location.pathname + location.search);
    await logIn(token).catch((error) => notice(sentenceOf(error)));
  }
  for (;;) {
    try {
      studio.models = await fetchModels();
      return;
    } catch (error) {
      if (!(error instanceof ProblemError) || error.status !== UNAUTHORISED) throw error;
      await askForToken();
    }
  }
}

/** @returns {Promise<void>} */
function askForToken() {
  const dialog = byId("token-dialog", HTMLDialogElement);
  const problem = byId("token-problem", HTMLParagraphElement);
  const form = byId("token-form", HTMLFormElement);
  dialog.showModal();
  return new Promise((resolve) => {
    // It listens until a token is right: without a listener the browser would send the form itself and load the page anew.
    const submit = async (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      try {
        await logIn(byId("token", HTMLInputElement).value.trim());
      } catch (error) {
        problem.textContent = sentenceOf(error);
        return;
      }
      form.removeEventListener("submit", submit);
      problem.textContent = "";
      dialog.close();
      resolve();
    };
    form.addEventListener("submit", submit);
  });
}

function setUpTheme() {
  const stored = localStorage.getItem(THEME);
  if (stored) document.documentElement.dataset.theme = stored;
  byId("theme", HTMLButtonElement).addEventListener("click", () => {
    const chosen = document.documentElement.dataset.theme;
    const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    const theme = dark ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    localStorage.setItem(THEME, theme);
    studio.timeline.schedule();
  });
}

sources.addEventListener("open", (event) => {
  const { state, ...options } = /** @type {CustomEvent} */ (event).detail;
  newestScreen++;
  remember(`?session=${state.id}`);
  if (options.webcam) sessionStorage.setItem(WEBCAM, state.id);
  studio.open(state, options);
  show("studio");
  byId("sentence", HTMLInputElement).focus();
});
sources.addEventListener("wall", (event) => {
  const states = /** @type {CustomEvent<SessionState[]>} */ (event).detail;
  newestScreen++;
  remember(`?wall=${states.map(({ id }) => id).join(",")}`);
  wall.show(states);
  show("wall");
});
for (const target of [studio, wall]) {
  target.addEventListener("notice", (event) => notice(/** @type {CustomEvent} */ (event).detail));
}
for (const button of document.querySelectorAll("dialog [data-close]")) {
  button.addEventListener("click", () => button.closest("dialog")?.close());
}
byId("home", HTMLAnchorElement).addEventListener("click", (event) => {
  event.preventDefault();
  remember("");
  route();
});
addEventListener("popstate", route);
setUpTheme();
try {
  await unlock();
  await Promise.all([sources.load(), route()]);
  offerWebhooks(sources.limits?.allowed?.webhooks ?? []);
} catch (error) {
  show("start");
  byId("start-problem", HTMLParagraphElement).textContent = sentenceOf(error);
}
// For measurements and tests: when the newest masks were painted.
Object.defineProperty(window, "refervosStudio", { value: { studio, wall } });
