/** Decides how fast a recording plays while its masks are being computed. */

const HELD_UNTIL = 4;
const SLOWEST = 0.1;
const FOLLOW_BELOW = 0.25;

/**
 * @typedef {object} Progress
 * @property {number} shown Frame on view.
 * @property {number} newest Newest computed frame.
 * @property {boolean} computing Whether frames are being computed.
 * @property {number} fps Computed frames per second.
 * @property {number} frameRate Frames per second of the recording.
 * @property {number} speed Speed that the user chose, 1 for real time.
 * @property {boolean} wentBack Whether the user went to another frame while it played, and has not caught up with the masks yet.
 * @property {boolean} held Whether the view was waiting for masks so far.
 */

/**
 * Return how the view should move: `play` at a rate, `hold` until masks are there, or `follow` each new frame by seeking.
 *
 * Slowing the playback down to the speed of the model looks better than stopping and starting. Browsers cannot play
 * much slower than a tenth of real time; then each computed frame is shown as it arrives.
 *
 * @param {Progress} progress
 * @returns {{move: "play" | "hold" | "follow", rate: number}}
 */
export function pace({ shown, newest, computing, fps, frameRate, speed, wentBack, held }) {
  if (!computing) return { move: "play", rate: speed };
  const ahead = newest - shown;
  if (!wentBack && fps > 0 && fps < FOLLOW_BELOW * frameRate * Math.min(1, speed) && ahead < frameRate) return { move: "follow", rate: 0 };
  if (ahead <= 1 || (held && ahead < HELD_UNTIL)) return { move: "hold", rate: 0 };
  if (ahead > frameRate) return { move: "play", rate: speed };
  return { move: "play", rate: Math.min(speed, Math.max(SLOWEST, fps / frameRate)) };
}
