/** Small helpers for elements. */

/**
 * Return the element with an id.
 *
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} kind Its class.
 * @returns {T}
 */
export function byId(id, kind) {
  const element = document.getElementById(id);
  if (!(element instanceof kind)) throw new Error(`the page has no ${kind.name} #${id}`);
  return element;
}

/**
 * Create an element.
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string | boolean | EventListener>} [attributes] Attributes; functions are listeners; false leaves an attribute out.
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function create(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/**
 * Return an icon of the page's sprite.
 *
 * @param {string} name
 * @returns {SVGSVGElement}
 */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/**
 * Write a time as minutes and seconds with hundredths, with hours where there are some.
 *
 * @param {number} seconds
 * @returns {string}
 */
export function clock(seconds) {
  const hundredths = Math.max(0, Math.round(seconds * 100));
  const rest = ((hundredths % 6000) / 100).toFixed(2).padStart(5, "0");
  const minutes = Math.floor(hundredths / 6000);
  const hours = Math.floor(minutes / 60);
  return hours ? `${hours}:${String(minutes % 60).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

/**
 * Write a duration in words, as precise as an estimate deserves.
 *
 * @param {number} seconds
 * @returns {string}
 */
export function duration(seconds) {
  if (seconds < 1) return "less than a second";
  if (seconds < 1.5) return "1 second";
  if (seconds < 90) return `${Math.round(seconds)} seconds`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} minutes`;
  const hours = Math.round(seconds / 360) / 10;
  return `${hours} hours`;
}

/**
 * Write a number of bytes.
 *
 * @param {number} bytes
 * @returns {string}
 */
export function fileSize(bytes) {
  const units = ["bytes", "kB", "MB", "GB"];
  let power = 0;
  while (bytes >= 1000 && power < 3) {
    bytes /= 1000;
    power++;
  }
  return `${bytes < 10 && power > 0 ? Math.round(bytes * 10) / 10 : Math.round(bytes)} ${units[power]}`;
}

/**
 * Return a sentence for any error.
 *
 * @param {unknown} error
 * @returns {string}
 */
export function sentenceOf(error) {
  return error instanceof Error ? error.message : String(error);
}

/**
 * Copy text to the clipboard, also where the page is not in a secure context.
 *
 * @param {string} text
 */
export async function copyText(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = create("textarea", { "aria-hidden": "true", class: "offscreen" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
