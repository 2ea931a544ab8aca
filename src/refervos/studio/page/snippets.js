/** What was done in a session, as Python and as a command. */

/** @import {SessionEvent, SessionState, Track} from "./types.js" */

/**
 * @param {string} text
 * @returns {string} A string of Python.
 */
const pythonString = (text) => JSON.stringify(text);

/**
 * @param {string} text
 * @returns {string} An argument of a shell.
 */
const shellWord = (text) => (/^[\w./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/**
 * @param {Track} track
 * @returns {number} The frame from which it is followed.
 */
const firstFrame = ({ prompts }) => prompts[0]?.[0] ?? 0;

/**
 * @param {Track} track
 * @returns {string} The sentence with which it began.
 */
const firstPrompt = ({ prompts, expression }) => prompts[0]?.[1] ?? expression;

/**
 * @param {SessionState} state
 * @returns {string} What `open_source` takes.
 */
function sourceOf({ source }) {
  return source.address ?? source.name;
}

/**
 * Say what to complete in a program or a command before it runs.
 *
 * @param {SessionState} state
 * @returns {string | null}
 */
export function whatToComplete({ source }) {
  if (source.kind === "video") return "The file is given by its name; add the folder where it is.";
  if (source.kind === "url") return "The address is shown without its path, user and password; add them.";
  return null;
}

/**
 * Write the session as a Python program.
 *
 * @param {SessionState} state
 * @returns {string}
 */
export function asPython(state) {
  const [from, to] = state.range;
  const names = new Map(state.tracks.map((track, k) => [track.id, `track_${k + 1}`]));
  const start = state.live ? 0 : from;
  const initial = state.tracks.filter((track) => firstFrame(track) <= start);
  const later = state.tracks.filter((track) => firstFrame(track) > start);
  const corrections = state.events.filter((event) => event.kind === "correction" && names.has(event.track ?? -1));
  const part = state.live ? "" : partOf(state, from, to);
  const lines = [
    "import refervos",
    "",
    `model = refervos.load(${pythonString(state.model)})`,
    "session = model.open()",
    ...initial.map((track) => `${names.get(track.id)} = session.add(${pythonString(firstPrompt(track))})`),
    `for frame in refervos.open_source(${pythonString(sourceOf(state))}${part}):`,
    ...later.flatMap((track) => [
      `    if frame.index == ${firstFrame(track)}:`,
      `        ${names.get(track.id)} = session.add(${pythonString(firstPrompt(track))})`,
    ]),
    ...state.tracks.flatMap((track) =>
      track.prompts.slice(1).flatMap(([frame, sentence]) => [
        `    if frame.index == ${frame}:`,
        `        session.set_prompt(${names.get(track.id)}, ${pythonString(sentence)})`,
      ]),
    ),
    "    result = session.step(frame.image)",
    ...corrections.flatMap((event) => [
      `    if frame.index == ${event.frame}:`,
      `        result = session.correct(${names.get(event.track ?? -1)}, ${correctionArguments(event)})`,
    ]),
    "    print(frame.index, result.presence.round(2), result.masks.sum(axis=(1, 2)))",
  ];
  return `${lines.join("\n")}\n`;
}

/**
 * @param {SessionState} state
 * @param {number} from
 * @param {number} to
 * @returns {string}
 */
function partOf(state, from, to) {
  const start = from > 0 ? `, start=${from}` : "";
  const stop = state.frame_count !== null && to < state.frame_count - 1 ? `, stop=${to + 1}` : "";
  return start + stop;
}

/**
 * @param {SessionEvent} event
 * @returns {string}
 */
function correctionArguments({ points = [], box }) {
  const given = [];
  if (points.length) {
    given.push(`points=[${points.map(([x, y]) => `(${x}, ${y})`).join(", ")}]`);
    given.push(`labels=[${points.map(([, , on]) => on).join(", ")}]`);
  }
  if (box) given.push(`box=(${box.join(", ")})`);
  return given.join(", ");
}

/**
 * Write the session as a command.
 *
 * @param {SessionState} state
 * @returns {{text: string, left: string | null}} The command, and what it leaves out.
 */
export function asCommand(state) {
  const [from, to] = state.range;
  const words = ["refervos segment", shellWord(sourceOf(state)), ...state.tracks.map(({ expression }) => shellWord(expression))];
  words.push("--model", shellWord(state.model));
  if (!state.live && from > 0) words.push("--start", String(from));
  if (!state.live && state.frame_count !== null && to < state.frame_count - 1) words.push("--frames", String(to - from + 1));
  words.push("--save overlay", "--out result");
  const left = [];
  if (state.events.some(({ kind }) => kind === "correction")) left.push("corrections");
  if (state.tracks.some(({ prompts }) => prompts.length > 1)) left.push("the frames at which sentences were changed");
  if (!state.live && state.tracks.some((track) => firstFrame(track) > from)) left.push("the frames at which sentences were added");
  return { text: words.join(" "), left: left.length ? `A command has no place for ${left.join(" and ")}; the Python program has.` : null };
}
