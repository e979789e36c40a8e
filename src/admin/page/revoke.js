/** Revoking a key: the question, what helps to answer it, and the word that it has stopped everywhere. */

import { ask } from "./api.js";
import { byId, element, open, tell } from "./dom.js";
import { creator, lastUse, seenWith, time, times } from "./words.js";

const dialog = byId("revoke");
/** The key that is asked about. */
let asked = null;

/**
 * Asks, and revokes if that is confirmed.
 * @param {{reason?: string}} options
 * @param {() => void} whenDone called after the key was revoked
 */
export async function revoke(key, options, whenDone) {
  asked = { key, options, whenDone };
  byId("revoke-question").textContent = `Revoke “${key.name}”? Any script using this key will stop working.`;
  byId("revoke-error").textContent = "";
  byId("revoke-confirm").disabled = false;
  byId("revoke-confirm").textContent = "Revoke";
  showFacts(key);
  open(dialog, byId("revoke-cancel"));
  // What is shown must be true now, not when the list was read.
  const fresh = await ask("GET", `/v1/keys/${key.id}`).catch(() => null);
  if (fresh && asked?.key.id === key.id) showFacts(fresh);
}

function showFacts(key) {
  const rows = [
    ["Last used", lastUse(key)],
    ["Last 24 hours", [times(key.uses_24h, "request", "requests")]],
    ["Used with", [seenWith(key)]],
    ["Created", [time(key.created_at), ` by ${creator(key)}`]],
  ];
  byId("revoke-facts").replaceChildren(...rows.flatMap(([label, content]) => [element("dt", {}, label), element("dd", {}, ...content.filter(Boolean))]));
}

byId("revoke-confirm").addEventListener("click", async () => {
  const { key, options, whenDone } = asked;
  const button = byId("revoke-confirm");
  button.disabled = true;
  button.textContent = "Revoking…";
  byId("revoke-error").textContent = "";
  try {
    await ask("POST", `/v1/keys/${key.id}/revoke`, { reason: options.reason ?? "" });
    dialog.close();
    tell(`“${key.name}” is revoked. It has stopped working everywhere.`);
    whenDone();
  } catch (error) {
    button.disabled = false;
    button.textContent = "Try again";
    byId("revoke-error").textContent = error.message;
    button.focus();
  }
});
byId("revoke-cancel").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => (asked = null));
