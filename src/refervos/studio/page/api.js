/** Requests to the server. Every failure is a ProblemError whose message is one sentence. */

import { readState } from "./server_state.js";

/** @import {AskedQuestion, ExportJob, Limits, Model, Problem, Sample, SessionState, Video} from "./types.js" */

/** An error that the server, or the connection to it, reported. */
export class ProblemError extends Error {
  /**
   * @param {Partial<Problem>} problem
   */
  constructor(problem) {
    super(problem.detail || problem.title || "The server did not say what went wrong.");
    this.status = problem.status ?? 0;
    this.code = problem.code ?? "unknown";
  }
}

const UNREACHABLE = { detail: "The server does not answer. Is it still running?", code: "unreachable" };

/**
 * @param {string} body
 * @param {number} status
 * @returns {ProblemError}
 */
function problemOf(body, status) {
  try {
    return new ProblemError({ status, ...JSON.parse(body) });
  } catch {
    return new ProblemError({ status, detail: `The server refused the request (${status}).` });
  }
}

/**
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 */
async function request(path, options) {
  const response = await fetch(path, options).catch(() => {
    throw new ProblemError(UNREACHABLE);
  });
  if (!response.ok) throw problemOf(await response.text(), response.status);
  return response;
}

/**
 * @template T
 * @param {string} path
 * @returns {Promise<T>}
 */
const get = async (path) => (await request(path)).json();

/**
 * @param {string} path
 * @param {unknown} body
 * @returns {Promise<Response>}
 */
const post = (path, body) =>
  request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/** @returns {Promise<Limits>} */
export const fetchLimits = () => get("/v1/limits");

/** @returns {Promise<Model[]>} */
export const fetchModels = () => get("/v1/models");

/** @returns {Promise<Sample[]>} */
export const fetchSamples = () => get("/v1/samples");

/**
 * Exchange the operator's token for a cookie.
 *
 * @param {string} token
 */
export async function logIn(token) {
  await post("/v1/login", { token });
}

/**
 * Upload a file.
 *
 * @param {File} file
 * @param {(done: number) => void} onProgress Called with the sent part, from 0 to 1.
 * @param {AbortSignal} signal
 * @returns {Promise<Video>}
 */
export function uploadVideo(file, onProgress, signal) {
  // XMLHttpRequest, because fetch does not report the progress of an upload.
  return new Promise((resolve, reject) => {
    const upload = new XMLHttpRequest();
    upload.open("POST", `/v1/videos?name=${encodeURIComponent(file.name)}`);
    upload.setRequestHeader("Content-Type", "application/octet-stream");
    upload.upload.addEventListener("progress", (event) => onProgress(event.loaded / Math.max(1, file.size)));
    upload.addEventListener("load", () => {
      if (upload.status < 300) resolve(JSON.parse(upload.responseText));
      else reject(problemOf(upload.responseText, upload.status));
    });
    upload.addEventListener("error", () => reject(new ProblemError(UNREACHABLE)));
    upload.addEventListener("abort", () => reject(new ProblemError({ detail: "The upload was cancelled.", code: "cancelled" })));
    signal.addEventListener("abort", () => upload.abort());
    upload.send(file);
  });
}

/**
 * Register a video that the server has already: a sample, or a file on its machine.
 *
 * @param {{sample: string} | {path: string}} source
 * @returns {Promise<Video>}
 */
export async function registerVideo(source) {
  return (await post("/v1/videos", source)).json();
}

/**
 * @param {string} video
 * @returns {string} Address of the file.
 */
export const videoAddress = (video) => `/v1/videos/${video}/file`;

/**
 * @param {string} video
 * @param {number} frame
 * @returns {string} Address of one frame as a picture.
 */
export const frameAddress = (video, frame) => `/v1/videos/${video}/frames/${frame}.jpg`;

/**
 * @param {any} raw The server's state of a session.
 * @returns {Promise<SessionState>}
 */
async function withVideo(raw) {
  return readState(raw, raw.source.video ? await get(`/v1/videos/${raw.source.video}`) : null);
}

/**
 * @param {Record<string, unknown>} source
 * @param {string[]} expressions
 * @returns {Promise<SessionState>}
 */
export async function openSession(source, expressions = []) {
  return withVideo(await (await post("/v1/sessions", { source, expressions })).json());
}

/**
 * @param {string} session
 * @returns {Promise<SessionState>}
 */
export const fetchSession = async (session) => withVideo(await get(`/v1/sessions/${session}`));

/**
 * @param {string} session
 */
export async function closeSession(session) {
  await request(`/v1/sessions/${session}`, { method: "DELETE", keepalive: true });
}

/**
 * Open a session that was saved as a file.
 *
 * @param {File} file
 * @returns {Promise<SessionState>}
 */
export async function openSavedSession(file) {
  const headers = { "Content-Type": "application/octet-stream" };
  return withVideo(await (await request("/v1/sessions/open", { method: "POST", headers, body: file })).json());
}

/**
 * @param {string} session
 * @returns {string} Address of the session as one file.
 */
export const sessionFileAddress = (session) => `/v1/sessions/${session}/file`;

/**
 * Fetch masks of computed frames.
 *
 * @param {string} session
 * @param {number} from First frame.
 * @param {number} to Frame before which to stop.
 * @returns {Promise<string>} Lines of JSON.
 */
export async function fetchMasks(session, from, to) {
  return (await request(`/v1/sessions/${session}/masks?from=${from}&to=${to}`)).text();
}

/**
 * Start an export.
 *
 * @param {string} session
 * @param {Record<string, unknown>} options
 * @returns {Promise<string>} The job's id.
 */
export async function startExport(session, options) {
  return (await (await post(`/v1/sessions/${session}/exports`, options)).json()).job;
}

/**
 * @param {string} session
 * @returns {Promise<ExportJob[]>} The session's exports, newest first.
 */
export const fetchExports = (session) => get(`/v1/sessions/${session}/exports`);

/**
 * @param {string} job
 * @returns {Promise<ExportJob>}
 */
export const fetchJob = (job) => get(`/v1/jobs/${job}`);

/**
 * @param {string} job
 * @param {string} name
 * @returns {string} Address of a file that a job wrote.
 */
export const jobFileAddress = (job, name) => `/v1/jobs/${job}/files/${encodeURIComponent(name)}`;

/**
 * @param {string} job
 */
export async function cancelJob(job) {
  await request(`/v1/jobs/${job}`, { method: "DELETE" });
}

/**
 * Raise an alert when the presence of a track crosses a threshold.
 *
 * @param {string} session
 * @param {Record<string, unknown>} alert
 */
export async function addAlert(session, alert) {
  await post(`/v1/sessions/${session}/alerts`, alert);
}

/**
 * @param {string} session
 * @returns {string} Address of the events of alerts as JSON lines.
 */
export const alertsAddress = (session) => `/v1/sessions/${session}/alerts`;

/**
 * @param {string} session
 * @returns {Promise<AskedQuestion[]>} The questions so far, with their answers.
 */
export const fetchQuestions = (session) => get(`/v1/sessions/${session}/questions`);

/**
 * Ask a conversational model; the answer arrives in pieces.
 *
 * @param {string} session
 * @param {string} question
 * @returns {AsyncGenerator<{event: string, data: any}>}
 */
export async function* ask(session, question) {
  const response = await post(`/v1/sessions/${session}/questions`, { question });
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value.replaceAll("\r\n", "\n");
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const lines = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const event = lines.find((line) => line.startsWith("event:"))?.slice(6).trim() ?? "message";
      const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
      if (data) yield { event, data: JSON.parse(data) };
    }
  }
}
