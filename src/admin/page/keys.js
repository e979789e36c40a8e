/** The list of keys with the form that makes new ones. */

import { ask } from "./api.js";
import { bars, byId, element, standIn, tell } from "./dom.js";
import { creator, count, lastUse, nameFault, nextName, time, times, warning } from "./words.js";
import { create } from "./create.js";
import { revoke } from "./revoke.js";
import { rotate } from "./rotate.js";

/** How often the list is read again, so that "last used" is true. */
const REFRESH_MS = 20_000;
let person = null;
let timer = 0;
/** The list as it was last read. */
let known = { keys: [], limits: {} };

export function enter(who) {
  person = who;
  byId("create").hidden = byId("new").hidden = !person.may.edit;
  byId("may-not-edit").hidden = person.may.edit;
  byId("may-not-edit").textContent = person.may.view
    ? "You can see keys and their activity. Creating and revoking keys needs the permission “Edit firm settings”."
    : "Seeing API keys needs the permission “View firm settings”.";
  if (person.may.view) refresh();
  clearInterval(timer);
  timer = setInterval(() => document.hidden || refresh(), REFRESH_MS);
}

export function leave() {
  clearInterval(timer);
  known = { keys: [], limits: {} };
  byId("key-list").replaceChildren();
  byId("revoked-list").replaceChildren();
}

/** Reads the list and shows it. */
export async function refresh() {
  try {
    known = await ask("GET", "/v1/keys");
  } catch (error) {
    if (error.status !== 401) tell(error.message);
    return;
  }
  show();
}

function show() {
  const { keys, limits } = known;
  const focused = document.activeElement?.dataset?.place ? document.activeElement : null;
  const live = keys.filter((key) => key.status === "active").reverse();
  const dead = keys.filter((key) => key.status === "revoked").sort((one, other) => other.revoked_at.localeCompare(one.revoked_at));
  offerCreators(live);
  const by = byId("by").value;
  const shown = live.filter((key) => by === "" || key.creator === by);
  byId("counts").textContent = `${limits.firm_active} of ${limits.per_firm_max} keys in your firm; ${limits.creator_active} of your ${limits.per_creator_max}.`;
  byId("key-list").replaceChildren(...shown.map(liveRow));
  byId("key-list").hidden = live.length === 0;
  byId("empty").hidden = live.length > 0 || !person.may.edit;
  byId("revoked").hidden = dead.length === 0;
  byId("revoked-count").textContent = times(dead.length, "revoked key", "revoked keys");
  byId("revoked-list").replaceChildren(...dead.map(deadRow));
  byId("create-button").disabled = limitFault() !== "";
  showHelp();
  // A row is made anew, so whoever stands on one of its buttons must not be thrown off it.
  if (focused) standIn(focused).focus({ preventScroll: true });
}

function offerCreators(live) {
  const names = new Map(live.map((key) => [key.creator, creator(key)]));
  const select = byId("by");
  const before = names.has(select.value) ? select.value : "";
  select.replaceChildren(element("option", { value: "" }, "Everyone"), ...[...names].map(([id, name]) => element("option", { value: id }, name)));
  select.value = before;
  byId("by-field").hidden = names.size < 2;
}

/** Why no key can be made now, or nothing. */
function limitFault() {
  const { firm_active, per_firm_max, creator_active, per_creator_max } = known.limits;
  if (firm_active >= per_firm_max) return `Your firm has ${count(per_firm_max)} keys, the most it may have. Revoke one that is no longer used to make room.`;
  if (creator_active >= per_creator_max) return `You have created ${count(per_creator_max)} keys, the most one person may have. Revoke one that is no longer used, or ask a colleague to create it.`;
  return "";
}

function showHelp() {
  const name = byId("name").value.trim();
  const isTaken = known.keys.some((key) => key.status === "active" && key.name === name);
  const usual = "Something you’ll recognize later, like “MCP server”, “Zapier integration” or “Migration script”.";
  byId("name-help").textContent = limitFault() || (isTaken ? `There is a key called “${name}” already. Another name is easier to tell apart.` : usual);
}

function fact(label, ...content) {
  return element("div", { class: "fact" }, element("dt", {}, label), element("dd", {}, ...content));
}

function title(key) {
  return element("div", { class: "name" }, element("h2", {}, key.name), element("code", {}, `${key.prefix}…`));
}

function act(key, word, style, run) {
  return element("button", { type: "button", class: style, "data-place": `${word} ${key.id}`, click: run }, word, element("span", { class: "unseen" }, ` “${key.name}”`));
}

function liveRow(key) {
  const successor = known.keys.find((other) => other.status === "active" && other.name === nextName(key.name));
  const acts = [];
  if (person.may.edit) {
    acts.push(act(key, successor ? "Go on rotating" : "Rotate", "quiet", () => rotate(key, successor, refresh)));
    acts.push(act(key, "Revoke", "quiet danger", () => revoke(key, {}, refresh)));
  }
  return element("li", { class: "key", "data-id": key.id },
    title(key),
    element("dl", {},
      fact("Created", time(key.created_at), element("span", {}, ` by ${creator(key)}`)),
      fact("Last used", ...lastUse(key)),
      fact("Last 24 hours", element("a", { href: `#activity?key=${key.id}`, "data-place": `uses ${key.id}` }, times(key.uses_24h, "use", "uses"), element("span", { class: "unseen" }, ` of “${key.name}”: show its activity`)), bars(key.uses_by_hour, "spark"))),
    element("div", { class: "acts" }, ...acts),
    key.warnings.length === 0 ? null : element("ul", { class: "warnings", "aria-label": `About “${key.name}”` }, ...key.warnings.map((name) => {
      const [what, advice] = warning(name, key);
      return element("li", {}, element("strong", {}, what), advice);
    })));
}

function deadRow(key) {
  const why = key.revoke_reason ? `: ${key.revoke_reason}` : "";
  return element("li", { class: "key dead", "data-id": key.id },
    title(key),
    element("dl", {},
      fact("Created", time(key.created_at), element("span", {}, ` by ${creator(key)}`)),
      fact("Revoked", time(key.revoked_at), element("span", {}, ` by ${key.revoked_by}${why}`))),
    element("div", { class: "fact" }, element("a", { href: `#activity?key=${key.id}`, "data-place": `uses ${key.id}` }, "Activity", element("span", { class: "unseen" }, ` of “${key.name}”`))));
}

function refuse(sentence) {
  byId("name-error").textContent = sentence;
  if (sentence) byId("name").setAttribute("aria-invalid", "true");
  else byId("name").removeAttribute("aria-invalid");
}

byId("create").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = byId("name");
  const fault = limitFault() || nameFault(field.value);
  refuse(fault);
  if (fault) return field.focus();
  byId("create-button").disabled = true;
  try {
    const made = await create(field.value.trim());
    field.value = "";
    tell(`The key “${made.name}” was created.`);
  } catch (error) {
    refuse(error.message);
  }
  byId("create-button").disabled = false;
  await refresh();
  field.focus();
});
byId("name").addEventListener("input", () => {
  refuse("");
  showHelp();
});
byId("by").addEventListener("change", show);
byId("new").addEventListener("click", () => byId("name").focus());
