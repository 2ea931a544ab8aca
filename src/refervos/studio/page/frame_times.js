/** Converts between frame numbers and presentation times. */

/** @import {Video} from "./types.js" */

/** The presentation times of a recording's frames. */
export class FrameTimes {
  /**
   * @param {Pick<Video, "fps" | "frame_count" | "duration" | "pts">} video
   */
  constructor({ fps, frame_count, duration, pts }) {
    this.pts = pts && pts.length > 1 ? pts : null;
    this.fps = fps ?? (this.pts ? (this.pts.length - 1) / this.pts[this.pts.length - 1] : 25);
    this.count = frame_count ?? this.pts?.length ?? Math.max(1, Math.round((duration ?? 0) * this.fps));
  }

  /**
   * @param {number} frame
   * @returns {number} Its presentation time in seconds.
   */
  timeOf(frame) {
    return this.pts ? this.pts[Math.min(frame, this.pts.length - 1)] : frame / this.fps;
  }

  /**
   * Return a time at which the browser shows a frame, well inside of its duration.
   *
   * @param {number} frame
   * @returns {number}
   */
  insideOf(frame) {
    const start = this.timeOf(frame);
    const end = frame + 1 < this.count ? this.timeOf(frame + 1) : start + 1 / this.fps;
    return start + (end - start) / 2;
  }

  /**
   * Return the frame that is shown with a presentation time.
   *
   * @param {number} time The media time of a presented frame, in seconds.
   * @returns {number}
   */
  frameAt(time) {
    if (!this.pts) return Math.max(0, Math.min(this.count - 1, Math.round(time * this.fps)));
    let low = 0;
    let high = this.pts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.pts[middle] <= time) low = middle;
      else high = middle - 1;
    }
    const next = this.pts[low + 1];
    return next !== undefined && next - time < time - this.pts[low] ? low + 1 : low;
  }
}
