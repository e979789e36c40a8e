/**
 * Rotation in the four steps of the help page: create, switch, confirm, revoke. Both keys work side by side; nothing is
 * changed in place. Whoever closes the guide goes on later: the new key is known by its name.
 */

import { ask } from "./api.js";
import { byId, open, tell } from "./dom.js";
import { ago, lastUse, nameFault, nextName, seenWith } from "./words.js";
import { create } from "./create.js";
import { revoke } from "./revoke.js";

/** How often both keys are looked at. */
const LOOK_MS = 2_000;
/** How long the old key must be unused, beside a used new one, to be called silent. */
const SILENT_MS = 60_000;
const STEPS = ["step-create", "step-switch", "step-confirm", "step-revoke"];
const dialog = byId("rotate");
let timer = 0;
/** The two keys, the step, and when this guide was told that the tool was switched. */
let state = null;

/** Opens the guide for a key; `successor` is the new key where it was made before. */
export function rotate(key, successor, whenChanged) {
  state = { old: key, fresh: successor ?? null, whenChanged };
  byId("rotate-title").textContent = `Rotate “${key.name}”`;
  byId("rotate-name").value = nextName(key.name);
  byId("rotate-error").textContent = "";
  byId("rotate-tools").textContent = key.seen_with.tools.length ? `It is used by ${seenWith(key)}.` : "Paste the new key where the old one was.";
  showStep(successor ? (successor.last_used_at ? 2 : 1) : 0);
  open(dialog, successor ? byId("switched") : byId("rotate-name"));
}

function showStep(step) {
  STEPS.forEach((id, place) => (byId(id).dataset.state = place < step ? "done" : place === step ? "now" : "later"));
  const made = byId("rotate-created");
  made.hidden = !state.fresh;
  byId("rotate-form").hidden = Boolean(state.fresh);
  if (state.fresh) made.textContent = `“${state.fresh.name}” is ready.`;
  byId("switched").hidden = step !== 1;
  clearInterval(timer);
  if (step >= 2) {
    byId("new-label").textContent = state.fresh.name;
    byId("old-label").textContent = state.old.name;
    // The last step can be taken while the third still watches: a tool that runs once a month never shows itself today.
    byId("step-revoke").dataset.state = "now";
    look();
    timer = setInterval(look, LOOK_MS);
  }
}

async function look() {
  const { old, fresh } = state;
  const [oldNow, freshNow] = await Promise.all([old, fresh].map((key) => ask("GET", `/v1/keys/${key.id}`).catch(() => null)));
  if (!oldNow || !freshNow || state?.old !== old) return;
  byId("new-use").replaceChildren(...lastUse(freshNow).filter(Boolean));
  byId("old-use").replaceChildren(...lastUse(oldNow).filter(Boolean));
  const isUsed = freshNow.last_used_at !== null;
  const oldUse = oldNow.last_used_at ? Date.parse(oldNow.last_used_at) : 0;
  const isSilent = Date.now() - oldUse >= SILENT_MS;
  byId("step-confirm").dataset.state = isUsed && isSilent ? "done" : "now";
  byId("rotate-revoke").textContent = isUsed && isSilent ? "Revoke the old key" : "Revoke the old key anyway";
  say(isUsed, isSilent, oldNow);
}

function say(isUsed, isSilent, old) {
  let sentence = "Waiting for the first use of the new key…";
  if (isUsed && isSilent) sentence = "The new key works, and the old one is silent. You can revoke the old key.";
  else if (isUsed) sentence = `The new key works. The old one was still used ${ago(old.last_used_at)}: waiting for a minute of silence.`;
  // Said once, not with every look.
  if (byId("rotate-verdict").textContent !== sentence) byId("rotate-verdict").textContent = sentence;
}

byId("rotate-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = byId("rotate-name");
  const fault = nameFault(field.value);
  byId("rotate-error").textContent = fault;
  if (fault) return field.focus();
  try {
    state.fresh = await create(field.value.trim());
  } catch (error) {
    byId("rotate-error").textContent = error.message;
    return;
  }
  state.whenChanged();
  showStep(1);
  byId("switched").focus();
});
byId("switched").addEventListener("click", () => {
  showStep(2);
  byId("rotate-revoke").focus();
});
byId("rotate-revoke").addEventListener("click", () => {
  const { old, fresh, whenChanged } = state;
  revoke(old, { reason: `rotated to ${fresh.name}`.slice(0, 500) }, () => {
    dialog.close();
    tell(`“${old.name}” is revoked. It has stopped working everywhere; “${fresh.name}” has taken its place.`);
    whenChanged();
  });
});
byId("rotate-close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => {
  clearInterval(timer);
  state = null;
});
