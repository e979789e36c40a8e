/**
 * Making a key, and the dialog that shows it once.
 *
 * The key is in one variable here and in one field of the dialog. Both are gone when the dialog has closed: the field is
 * taken out of the page, and nothing else ever held it. It is in no address, no history and no storage.
 */

import { ask } from "./api.js";
import { byId, drawn, element, open } from "./dom.js";

const dialog = byId("created");

/** Makes a key of this name and shows it; done when the person has closed the dialog. Answers what may be known of it. */
export async function create(name) {
  const { key, ...made } = await ask("POST", "/v1/keys", { name });
  await reveal(key, made.name);
  return made;
}

function reveal(secret, name) {
  const field = element("textarea", { id: "secret", readonly: true, rows: 1, "aria-label": "The full key", autocomplete: "off", spellcheck: "false" });
  field.value = secret;
  const icon = drawn("svg", { viewBox: "0 0 24 24", fill: "none", stroke: "currentColor", "stroke-width": 2, "stroke-linejoin": "round", "aria-hidden": "true" },
    drawn("rect", { x: 5, y: 5, width: 14, height: 16, rx: 2 }), drawn("path", { d: "M9 5V3h6v2" }));
  const copy = element("button", { type: "button", id: "copy", "aria-label": "Copy the key", title: "Copy the key", click: () => copyKey(field) }, icon);
  field.addEventListener("focus", () => field.select());
  byId("created-name").textContent = name;
  byId("secret-place").replaceChildren(field, copy);
  byId("copy-state").textContent = "";
  askToLeave(false);
  open(dialog, copy);
  addEventListener("beforeunload", hold);
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      removeEventListener("beforeunload", hold);
      field.value = "";
      byId("secret-place").replaceChildren();
      byId("copy-state").textContent = "";
      done();
    }, { once: true });
  });
}

async function copyKey(field) {
  try {
    await navigator.clipboard.writeText(field.value);
    byId("copy-state").textContent = "Copied. Paste it into your password manager now.";
  } catch {
    field.focus();
    field.select();
    byId("copy-state").textContent = "The browser did not let us copy. The key is selected: press Ctrl+C, or ⌘C on a Mac.";
  }
}

/** Asks before the only sight of the key is lost. */
function askToLeave(isAsked) {
  byId("leave").hidden = !isAsked;
  byId("created-buttons").hidden = isAsked;
  if (isAsked) byId("stay").focus();
}

function hold(event) {
  event.preventDefault();
}

byId("saved").addEventListener("click", () => dialog.close());
byId("leave-anyway").addEventListener("click", () => dialog.close());
byId("stay").addEventListener("click", () => {
  askToLeave(false);
  byId("copy").focus();
});
dialog.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  event.preventDefault();
  askToLeave(true);
});
// Browsers that do not know `closedby` ask by this event.
dialog.addEventListener("cancel", (event) => {
  event.preventDefault();
  askToLeave(true);
});
// Whoever clicks beside the dialog wants it closed; its own rim is not beside it.
dialog.addEventListener("click", ({ target, clientX, clientY }) => {
  const { left, right, top, bottom } = dialog.getBoundingClientRect();
  const isBeside = clientX < left || clientX > right || clientY < top || clientY > bottom;
  if (target === dialog && isBeside) askToLeave(true);
});
