/** The activity log: a page of it at a time, or as it grows, for the firm or one key, and as files to keep. */

import { ask } from "./api.js";
import { bars, byId, element } from "./dom.js";
import { action, outcome, stamp, times, tool } from "./words.js";

/** Records of a page, and most rows while following. */
const PAGE = 50;
const FOLLOWED_MAX = 200;
const fields = { key: byId("of-key"), action: byId("of-action"), time: byId("of-time") };
let keys = [];
/** The cursors of the pages up to this one, and of the next. */
let cursors = [""];
let next = null;
let stream = null;
/** Records that came since the last time they were shown. */
let waiting = [];
let followed = 0;
/** Which question is the latest; answers to earlier ones are dropped. */
let asked = 0;

export async function enter(person, query) {
  if (!person.may.view) return say("Seeing the activity needs the permission “View firm settings”.");
  try {
    keys = (await ask("GET", "/v1/keys")).keys;
  } catch (error) {
    return say(error.message);
  }
  const option = (key) => element("option", { value: key.id }, key.name + (key.status === "revoked" ? " (revoked)" : ""));
  fields.key.replaceChildren(element("option", { value: "" }, "All keys"), ...[...keys].reverse().map(option));
  const wanted = query.get("key") ?? "";
  fields.key.value = keys.some((key) => key.id === wanted) ? wanted : "";
  restart();
}

export function leave() {
  unfollow();
  asked += 1;
  byId("records").replaceChildren();
}

function say(sentence) {
  byId("activity-state").textContent = sentence;
}

function question(more) {
  const query = new URLSearchParams(more);
  if (fields.key.value) query.set("key", fields.key.value);
  if (fields.action.value) query.set("action", fields.action.value);
  return query;
}

/** With the beginning of the span that is asked for; a span is fixed while one pages through it. */
let since = "";
function withSpan(more) {
  const query = question(more);
  if (since) query.set("since", since);
  return query;
}

function restart() {
  unfollow();
  cursors = [""];
  const hours = Number(fields.time.value);
  since = hours ? new Date(Date.now() - hours * 3_600_000).toISOString() : "";
  byId("csv").href = `/v1/activity?${withSpan({ format: "csv" })}`;
  byId("ndjson").href = `/v1/activity?${withSpan({ format: "ndjson" })}`;
  plot();
  return load();
}

async function load() {
  const mine = (asked += 1);
  const cursor = cursors.at(-1);
  let page;
  try {
    page = await ask("GET", `/v1/activity?${withSpan(cursor ? { limit: PAGE, cursor } : { limit: PAGE })}`);
  } catch (error) {
    if (mine === asked) say(error.message);
    return;
  }
  if (mine !== asked) return;
  next = page.next_cursor;
  byId("records").replaceChildren(...page.records.map((record) => row(record)));
  say(page.records.length === 0 ? "Nothing here." : "");
  byId("log").hidden = page.records.length === 0;
  byId("newer").disabled = cursors.length === 1;
  byId("older").disabled = next === null;
  byId("page-number").textContent = `Page ${cursors.length}`;
}

function row(record, style) {
  const [result, isBad] = outcome(record);
  const isUse = record.action === "key.use";
  const cell = (label, ...content) => element("td", { role: "cell", "data-label": label }, ...content.filter(Boolean));
  const request = isUse && record.method ? element("code", {}, `${record.method} ${record.path ?? ""}`) : null;
  const agent = isUse ? tool(record.user_agent) : record.actor;
  return element("tr", { role: "row", class: style, "data-event": record.event_id },
    cell("Time", stamp(record.time)),
    cell("Action", action(record)),
    cell("Key", record.key_name),
    cell("Request", request),
    cell("Result", isBad ? element("span", { class: "bad" }, result) : result),
    cell("From", record.client_ip),
    cell(isUse ? "Tool" : "Person", agent ? element("span", { title: isUse ? record.user_agent : null }, agent) : null));
}

/** Uses per hour of the chosen key, or of all that live. */
function plot() {
  const chosen = keys.filter((key) => (fields.key.value ? key.id === fields.key.value : key.status === "active"));
  const hours = Array.from({ length: 24 }, (_, hour) => chosen.reduce((sum, key) => sum + (key.uses_by_hour[hour] ?? 0), 0));
  const sum = hours.reduce((one, other) => one + other, 0);
  const whose = fields.key.value ? `“${chosen[0]?.name ?? ""}”` : "all keys";
  const most = Math.max(...hours);
  byId("plot").replaceChildren(
    element("figcaption", {}, `Uses per hour of ${whose}, last 24 hours: ${times(sum, "use", "uses")}` + (most > 0 ? `, at most ${times(most, "use", "uses")} in an hour.` : ".")),
    bars(hours, null),
    element("div", { class: "ends", "aria-hidden": "true" }, element("span", {}, "24 hours ago"), element("span", {}, "now")));
}

function follow() {
  followed = 0;
  byId("follow").setAttribute("aria-pressed", "true");
  say("Following. New activity appears on top as it happens.");
  stream = new EventSource(`/v1/activity?${question()}`);
  stream.addEventListener("activity", (event) => {
    waiting.push(JSON.parse(event.data));
    if (waiting.length === 1) requestAnimationFrame(showWaiting);
  });
  stream.addEventListener("error", () => {
    if (stream?.readyState !== EventSource.CLOSED) return;
    unfollow();
    // A session that is over is the usual reason, and this says so.
    ask("GET", "/v1/whoami").then(() => say("Following has stopped. Choose “Follow live” to go on."), () => {});
  });
}

function showWaiting() {
  const records = byId("records");
  byId("log").hidden = false;
  const known = new Set([...records.children].map((child) => child.dataset.event));
  const fresh = waiting.splice(0).filter((record) => !known.has(record.event_id));
  followed += fresh.length;
  count(fresh);
  // Only what will be kept is made: a tool can be faster than anybody reads.
  records.prepend(...fresh.slice(-FOLLOWED_MAX).reverse().map((record) => row(record, "fresh")));
  while (records.children.length > FOLLOWED_MAX) records.lastElementChild.remove();
  say(`Following. ${times(followed, "new entry", "new entries")}.`);
}

/** Adds what has come to the running hour's bar. */
function count(fresh) {
  for (const record of fresh) {
    const key = keys.find((known) => known.id === record.key_id);
    if (key && record.action === "key.use" && record.outcome === "allowed") key.uses_by_hour[key.uses_by_hour.length - 1] += 1;
  }
  plot();
}

function unfollow() {
  stream?.close();
  stream = null;
  waiting = [];
  byId("follow").setAttribute("aria-pressed", "false");
}

byId("follow").addEventListener("click", async () => {
  if (stream) {
    unfollow();
    return say("Following has stopped.");
  }
  await restart();
  follow();
});
byId("older").addEventListener("click", () => {
  if (!next) return;
  unfollow();
  cursors.push(next);
  load();
});
byId("newer").addEventListener("click", () => {
  if (cursors.length === 1) return;
  unfollow();
  cursors.pop();
  load();
});
byId("filters").addEventListener("submit", (event) => event.preventDefault());
Object.values(fields).forEach((field) => field.addEventListener("change", restart));
