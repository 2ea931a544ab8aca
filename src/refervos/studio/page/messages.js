/** Decodes what arrives over the WebSocket and masks in COCO's run lengths. */

/** @import {FrameMasks} from "./types.js" */

/**
 * A binary message: the masks of one frame, and its picture if the browser has none.
 *
 * @typedef {object} FrameMessage
 * @property {FrameMasks} masks
 * @property {number} sent When the server sent it, in milliseconds.
 * @property {number} fps Measured frames per second.
 * @property {Blob | null} picture JPEG.
 */

/**
 * Decode a binary message: header length, JSON header, JPEG, run lengths.
 *
 * @param {ArrayBuffer} buffer
 * @returns {FrameMessage}
 */
export function decodeFrame(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const pictureAt = 4 + length;
  let at = pictureAt + header.jpeg;
  const tracks = [];
  for (const { id, presence, runs } of header.tracks) {
    // A copy, because run lengths are not aligned to four bytes in the message.
    tracks.push({ id, presence, runs: new Uint32Array(buffer.slice(at, at + 4 * runs)) });
    at += 4 * runs;
  }
  return {
    masks: { frame: header.frame, time: header.time, width: header.w, height: header.h, tracks },
    sent: header.sent,
    fps: header.fps,
    picture: header.jpeg ? new Blob([new Uint8Array(buffer, pictureAt, header.jpeg)], { type: "image/jpeg" }) : null,
  };
}

/**
 * Decode the string form of COCO's run lengths: groups of 5 bits, from the third run on as differences to the run before the last.
 *
 * @param {string} text
 * @returns {Uint32Array}
 */
export function decodeCoco(text) {
  /** @type {number[]} */
  const runs = [];
  let at = 0;
  while (at < text.length) {
    let value = 0;
    let shift = 0;
    let group;
    do {
      group = text.charCodeAt(at++) - 48;
      value |= (group & 31) << shift;
      shift += 5;
    } while (group & 32);
    if (group & 16) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return Uint32Array.from(runs);
}

/**
 * Write a value into every pixel of a mask.
 *
 * @param {Uint32Array} runs
 * @param {number} width
 * @param {number} height
 * @param {Uint32Array} pixels Row by row, (height x width); pixels outside of the mask stay as they are.
 * @param {number} value
 */
export function fillRuns(runs, width, height, pixels, value) {
  let start = 0;
  for (let k = 0; k < runs.length; k++) {
    const end = start + runs[k];
    if (k % 2 === 1) {
      let x = Math.floor(start / height);
      let y = start - x * height;
      for (let n = start; n < end; n++) {
        pixels[y * width + x] = value;
        if (++y === height) {
          y = 0;
          x++;
        }
      }
    }
    start = end;
  }
}

/**
 * Decode lines of JSON, each with the masks of one frame as COCO run lengths.
 *
 * @param {string} text
 * @returns {FrameMasks[]}
 */
export function decodeMaskLines(text) {
  return text
    .split("\n")
    .filter((line) => line.trim())
    .map((line) => {
      const { frame, time, size, tracks } = JSON.parse(line);
      const [height, width] = size;
      return {
        frame,
        time,
        width,
        height,
        tracks: tracks.map((/** @type {{id: number, presence: number, counts: string}} */ track) => ({
          id: track.id,
          presence: track.presence,
          runs: decodeCoco(track.counts),
        })),
      };
    });
}
