/** Reads the server's description of a session into the form that the page works with. */

/** @import {SessionEvent, SessionState, Status, Track, Video} from "./types.js" */

/**
 * @param {[number, number, number]} colour Red, green and blue from 0 to 255.
 * @returns {string} As "#rrggbb".
 */
export const hex = (colour) => `#${colour.map((part) => part.toString(16).padStart(2, "0")).join("")}`;

/**
 * @param {string} colour As "#rrggbb".
 * @returns {[number, number, number]}
 */
export const rgb = (colour) => {
  const value = Number.parseInt(colour.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
};

/**
 * @param {any} raw
 * @param {SessionEvent[]} events
 * @returns {Track}
 */
function readTrack(raw, events) {
  return {
    id: raw.id,
    expression: raw.expression,
    label: raw.label && raw.label !== raw.expression ? raw.label : null,
    colour: hex(raw.colour),
    visible: raw.visible,
    prompts: raw.prompts,
    presence: raw.presence,
    corrections: events.filter(({ kind, track }) => kind === "correction" && track === raw.id).length,
  };
}

/**
 * @param {any} raw
 * @returns {Status}
 */
function readStatus(raw) {
  if (raw.running) return "running";
  if (raw.ended) return "finished";
  return raw.frame === null ? "idle" : "paused";
}

/**
 * @param {any} source
 * @returns {SessionState["source"]}
 */
function readSource(source) {
  if ("video" in source) return { kind: "video", name: source.name };
  if ("camera" in source) return { kind: "camera", name: `Camera ${source.camera}`, address: `camera:${source.camera}` };
  if ("url" in source) return { kind: "url", name: source.url, address: source.url };
  return { kind: "webcam", name: "Webcam", address: "camera:0" };
}

/**
 * Read a state of the server.
 *
 * @param {any} raw
 * @param {Video | null} video The recording, if the source is one.
 * @returns {SessionState}
 */
export function readState(raw, video) {
  const count = video?.frame_count ?? raw.frame_count ?? null;
  const [first, last] = raw.range;
  return {
    id: raw.id,
    model: raw.model,
    source: readSource(raw.source),
    video,
    live: raw.live,
    status: readStatus(raw),
    frame: raw.frame ?? -1,
    until: raw.until ?? -1,
    frame_count: count,
    fps: raw.fps ?? 0,
    estimate: raw.estimate?.fps ?? null,
    range: [first, last ?? (count === null ? 0 : count - 1)],
    tracks: raw.tracks.map((/** @type {any} */ track) => readTrack(track, raw.events)),
    events: raw.events,
    alerts: raw.alerts ?? [],
    recording: raw.recording ?? false,
    recorded: (raw.recorded ?? []).reduce((/** @type {number} */ sum, /** @type {[number, number]} */ part) => sum + part[1] - part[0] + 1, 0),
  };
}
