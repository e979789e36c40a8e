/** Elements from words: text is always text, so a name can never become markup. */

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/**
 * Makes an element.
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes] a function is a listener, `true` an empty attribute, `null` and `false` none
 * @param {...(Node | string | null)} children
 */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for drawings. */
export function drawn(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== null && value !== false && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Shows a dialog, and gives the focus back to where it was when it closes. */
export function open(dialog, first) {
  const before = document.activeElement;
  dialog.showModal();
  first?.focus();
  dialog.addEventListener("close", () => (before?.isConnected ? before : standIn(before))?.focus({ preventScroll: true }), { once: true });
}

/** What has taken the place of an element: lists are made anew while a dialog is open. */
export function standIn(element) {
  const place = element?.dataset?.place;
  return (place && document.querySelector(`[data-place="${CSS.escape(place)}"]`)) || byId("content");
}

/** Says what has happened, on the page and to screen readers. */
export function tell(sentence) {
  byId("news").textContent = sentence;
}

/** Bars of a day's hours; decoration, so what they show is also said in words beside them. */
export function bars(counts, style) {
  const [width, height, gap] = [counts.length * 10, 40, 2];
  const most = Math.max(1, ...counts);
  const bar = (count, place) => {
    const tall = count === 0 ? 1.5 : Math.max(4, (count / most) * height);
    return drawn("rect", { x: place * 10 + gap / 2, y: height - tall, width: 10 - gap, height: tall, rx: 1, class: count === 0 ? "none" : null });
  };
  return drawn("svg", { class: style, viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...counts.map(bar));
}
