/** Paints masks over a picture: the effects of the preview. */

import { fillRuns } from "./messages.js";

/** @import {Effect, FrameMasks, Track} from "./types.js" */

const CHECK = 12;

/** Effects, as their kind and the area where there is one, and their names, in the order of the menu. */
export const EFFECTS = /** @type {const} */ ([
  ["colour", "Colour"],
  ["outline", "Outline"],
  ["spotlight", "Spotlight"],
  ["cutout", "Cut-out"],
  ["blur object", "Blur the object"],
  ["blur background", "Blur the background"],
  ["pixelate object", "Pixelate the object"],
  ["pixelate background", "Pixelate the background"],
]);

/**
 * @param {string} colour "#rrggbb"
 * @returns {number} An opaque pixel of ImageData, read as a little-endian integer.
 */
function pixelOf(colour) {
  const value = Number.parseInt(colour.slice(1), 16);
  return ((255 << 24) | ((value & 255) << 16) | (value & 0xff00) | (value >> 16)) >>> 0;
}

/** A canvas that is made larger only when needed and is used again for each frame. */
class Layer {
  #canvas = document.createElement("canvas");
  context = /** @type {CanvasRenderingContext2D} */ (this.#canvas.getContext("2d"));

  /**
   * Return the empty canvas at a size.
   *
   * @param {number} width
   * @param {number} height
   * @returns {HTMLCanvasElement}
   */
  cleared(width, height) {
    if (this.#canvas.width !== width || this.#canvas.height !== height) {
      this.#canvas.width = width;
      this.#canvas.height = height;
    }
    this.context.setTransform(1, 0, 0, 1, 0, 0);
    this.context.globalCompositeOperation = "source-over";
    this.context.globalAlpha = 1;
    this.context.filter = "none";
    this.context.imageSmoothingEnabled = true;
    this.context.clearRect(0, 0, width, height);
    return this.#canvas;
  }

  get canvas() {
    return this.#canvas;
  }
}

/** Paints the masks of frames onto one canvas. */
export class Painter {
  /** @type {ImageData | null} */ #image = null;
  #one = new Layer();
  #masks = new Layer();
  #outlines = new Layer();
  #picture = new Layer();
  #small = new Layer();

  /**
   * @param {HTMLCanvasElement} canvas Covers the picture; its size is set to that of the picture.
   */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  }

  /**
   * Paint one frame.
   *
   * @param {object} frame
   * @param {CanvasImageSource | null} frame.picture What the effects work on; null if there is none yet.
   * @param {boolean} frame.drawPicture Whether to paint the picture, too, instead of leaving it to an element below.
   * @param {number} frame.width Of the picture in pixels.
   * @param {number} frame.height
   * @param {FrameMasks | undefined} frame.masks
   * @param {Track[]} frame.tracks
   * @param {number | null} frame.selected The track whose outline is emphasised.
   * @param {Effect} frame.effect
   */
  paint({ picture, drawPicture, width, height, masks, tracks, selected, effect }) {
    const { canvas, context } = this;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    context.globalCompositeOperation = "source-over";
    context.globalAlpha = 1;
    context.clearRect(0, 0, width, height);
    if (drawPicture && picture) context.drawImage(picture, 0, 0, width, height);
    if (!masks || !masks.width) return;
    const visible = tracks.filter((track) => track.visible);
    this.#drawMasks(masks, visible, selected, width, height, effect.kind === "colour" || effect.kind === "outline");
    this.#applyEffect(effect, picture, width, height);
  }

  /**
   * Draw the masks of the visible tracks into one layer, and their outlines into another.
   *
   * @param {FrameMasks} masks
   * @param {Track[]} tracks
   * @param {number | null} selected
   * @param {number} width
   * @param {number} height
   * @param {boolean} outlined
   */
  #drawMasks(masks, tracks, selected, width, height, outlined) {
    this.#masks.cleared(masks.width, masks.height);
    if (outlined) this.#outlines.cleared(width, height);
    if (this.#image?.width !== masks.width || this.#image.height !== masks.height) {
      this.#image = new ImageData(masks.width, masks.height);
    }
    const pixels = new Uint32Array(this.#image.data.buffer);
    for (const track of tracks) {
      const mask = masks.tracks.find(({ id }) => id === track.id);
      if (!mask || mask.runs.length < 2) continue;
      pixels.fill(0);
      fillRuns(mask.runs, masks.width, masks.height, pixels, pixelOf(track.colour));
      const one = this.#one.cleared(masks.width, masks.height);
      this.#one.context.putImageData(this.#image, 0, 0);
      this.#masks.context.drawImage(one, 0, 0);
      if (outlined) this.#outline(one, width, height, track.id === selected ? 1.6 : 1);
    }
  }

  /**
   * Draw the outline of a mask: the mask, shifted in eight directions, without the mask itself.
   *
   * @param {HTMLCanvasElement} mask
   * @param {number} width
   * @param {number} height
   * @param {number} emphasis
   */
  #outline(mask, width, height, emphasis) {
    const reach = emphasis * Math.max(1, Math.max(width, height) / 480);
    const line = this.#small.cleared(width, height);
    const { context } = this.#small;
    const shifted = (/** @type {number} */ distance) => {
      for (let k = 0; k < 8; k++) {
        const angle = (k * Math.PI) / 4;
        context.drawImage(mask, distance * Math.cos(angle), distance * Math.sin(angle), width, height);
      }
    };
    // A thin white edge around it, so that an orange outline is seen on a red object, too.
    shifted(1.6 * reach);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "source-over";
    shifted(reach);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(mask, 0, 0, width, height);
    this.#outlines.context.drawImage(line, 0, 0);
  }

  /**
   * @param {Effect} effect
   * @param {CanvasImageSource | null} picture
   * @param {number} width
   * @param {number} height
   */
  #applyEffect({ kind, area, strength }, picture, width, height) {
    const { context } = this;
    const masks = this.#masks.canvas;
    switch (kind) {
      case "colour":
        context.globalAlpha = 0.15 + 0.7 * strength;
        context.drawImage(masks, 0, 0, width, height);
        context.globalAlpha = 1;
        context.drawImage(this.#outlines.canvas, 0, 0);
        return;
      case "outline":
        context.drawImage(this.#outlines.canvas, 0, 0);
        return;
      case "spotlight":
      case "cutout":
        this.#coverBackground(kind, strength, width, height);
        return;
      default:
        if (picture) this.#change(kind, area, strength, picture, width, height);
    }
  }

  /**
   * Cover all but the objects with darkness or with the pattern that stands for transparency.
   *
   * @param {"spotlight" | "cutout"} kind
   * @param {number} strength
   * @param {number} width
   * @param {number} height
   */
  #coverBackground(kind, strength, width, height) {
    const cover = this.#picture.cleared(width, height);
    const { context } = this.#picture;
    if (kind === "spotlight") {
      context.fillStyle = `rgb(0 0 0 / ${0.4 + 0.55 * strength})`;
      context.fillRect(0, 0, width, height);
    } else {
      context.fillStyle = "#ffffff";
      context.fillRect(0, 0, width, height);
      context.fillStyle = "#d9dbe0";
      for (let y = 0; y < height; y += CHECK) {
        for (let x = (y / CHECK) % 2 ? CHECK : 0; x < width; x += 2 * CHECK) context.fillRect(x, y, CHECK, CHECK);
      }
    }
    context.globalCompositeOperation = "destination-out";
    context.drawImage(this.#masks.canvas, 0, 0, width, height);
    this.context.drawImage(cover, 0, 0);
  }

  /**
   * Blur or pixelate the picture, inside or outside of the masks.
   *
   * @param {"blur" | "pixelate"} kind
   * @param {Effect["area"]} area
   * @param {number} strength
   * @param {CanvasImageSource} picture
   * @param {number} width
   * @param {number} height
   */
  #change(kind, area, strength, picture, width, height) {
    const changed = this.#picture.cleared(width, height);
    const { context } = this.#picture;
    const size = Math.max(2, Math.round((0.01 + 0.06 * strength) * Math.max(width, height)));
    if (kind === "blur") {
      context.filter = `blur(${Math.max(2, size / 2)}px)`;
      context.drawImage(picture, 0, 0, width, height);
      context.filter = "none";
    } else {
      const small = this.#small.cleared(Math.max(1, Math.round(width / size)), Math.max(1, Math.round(height / size)));
      this.#small.context.drawImage(picture, 0, 0, small.width, small.height);
      context.imageSmoothingEnabled = false;
      context.drawImage(small, 0, 0, width, height);
      context.imageSmoothingEnabled = true;
    }
    context.globalCompositeOperation = area === "object" ? "destination-in" : "destination-out";
    context.drawImage(this.#masks.canvas, 0, 0, width, height);
    this.context.drawImage(changed, 0, 0);
  }
}
