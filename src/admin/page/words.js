/** What the API says, in words for people who keep books. */

import { element } from "./dom.js";

const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const exactly = new Intl.DateTimeFormat("en-US", { dateStyle: "long", timeStyle: "medium" });
const briefly = new Intl.DateTimeFormat("en-US", { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const numbers = new Intl.NumberFormat("en-US");
const SPANS = [["year", 31_536_000], ["month", 2_592_000], ["day", 86_400], ["hour", 3_600], ["minute", 60]];

export const count = (number) => numbers.format(number);
export const times = (number, one, many) => `${count(number)} ${number === 1 ? one : many}`;

/** "5 minutes ago". */
export function ago(moment, now = Date.now()) {
  const seconds = Math.round((now - Date.parse(moment)) / 1000);
  const span = SPANS.find(([, length]) => Math.abs(seconds) >= length);
  return span ? relative.format(-Math.round(seconds / span[1]), span[0]) : "just now";
}

/** How long ago, with the exact moment on hover and for screen readers. */
export function time(moment) {
  const exact = exactly.format(new Date(moment));
  return element("time", { datetime: moment, title: exact }, ago(moment), element("span", { class: "unseen" }, `, ${exact}`));
}

/** The exact moment, as short as a log needs it. */
export function stamp(moment) {
  const date = new Date(moment);
  return element("time", { datetime: moment, title: exactly.format(date) }, briefly.format(date));
}

/** The product name of a User-Agent. */
export function tool(agent) {
  return (agent ?? "").split(/[/ ]/, 1)[0];
}

/** Who created a key. */
export const creator = (key) => key.creator_name || key.creator;

/** The last use of a key in one sentence's worth of nodes. */
export function lastUse(key) {
  if (!key.last_used_at) return ["Never used"];
  const by = [tool(key.last_used_by) && `with ${tool(key.last_used_by)}`, key.last_used_from && `from ${key.last_used_from}`].filter(Boolean).join(" ");
  return [time(key.last_used_at), by ? element("span", {}, ` ${by}`) : null];
}

/** "claude-mcp and curl, from 203.0.113.0/24". */
export function seenWith(key) {
  const list = new Intl.ListFormat("en");
  const { tools, networks } = key.seen_with;
  const parts = [tools.length ? list.format(tools) : "", networks.length ? `from ${list.format(networks)}` : ""];
  return parts.filter(Boolean).join(", ") || "Nothing in the last 30 days";
}

/** What to look into, and what to do about it. */
export function warning(name, key) {
  const { tools, networks } = key.seen_with;
  const list = new Intl.ListFormat("en");
  switch (name) {
    case "over_a_year_old":
      return ["Over a year old.", " Rotate it: once a year is good hygiene."];
    case "used_by_several_tools":
      return ["Used by different tools:", ` ${list.format(tools)}. One key per integration; when you rotate a shared one, you have to update them all at once.`];
    case "used_from_several_networks":
      return ["Used from different networks:", ` ${list.format(networks)}. If you don’t know one of them, the key may have been shared: rotate it.`];
    case "never_used":
      return ["Never used.", " If no tool needs it, revoke it."];
    case "creator_left":
      return [`${creator(key)} has left your firm.`, " The key goes on working until you revoke it. Rotate it as part of their offboarding."];
    case "creator_lost_permissions":
      return [`It may do more than ${creator(key)}, who created it, may do today:`, ` ${list.format(key.creator_lacks)}. Revoke and recreate it if it should not.`];
    default:
      return [name.replaceAll("_", " ") + ".", ""];
  }
}

const REFUSALS = {
  invalid_key: "Refused: the key is revoked",
  route_denied: "Refused: keys may not do this",
  permission_missing: "Refused: the key lacks the permission",
  wrong_firm: "Refused: another firm’s data",
  no_route: "Refused: there is nothing at this address",
  method_not_allowed: "Refused: not allowed here",
  malformed_request: "Refused: the request was malformed",
  request_too_large: "Refused: larger than 10 MB",
  rate_limited: "Slowed down: over 1,000 requests in a minute",
  request_timeout: "Failed: the tool sent too slowly",
  upstream_unreachable: "Failed: Assure Pro could not be reached",
  upstream_broken: "Failed: Assure Pro’s answer broke off",
  upstream_timeout: "Failed: Assure Pro did not answer in time",
  upstream_overloaded: "Failed: too many requests at once",
  store_unavailable: "Failed: try again shortly",
  audit_unavailable: "Failed: try again shortly",
  draining: "Failed: try again shortly",
  internal_error: "Failed: an error of ours",
  unknown: "Unknown: cut off in the middle",
};
const ACTIONS = { "key.create": "Created", "key.use": "Used", "key.revoke": "Revoked" };

export const action = (record) => ACTIONS[record.action] ?? record.action;

/** What became of it, and whether that is bad news. */
export function outcome(record) {
  const often = record.count ? ` (${times(Number(record.count), "time", "times")})` : "";
  if (record.outcome !== "allowed") return [(REFUSALS[record.outcome] ?? `Refused: ${record.outcome.replaceAll("_", " ")}`) + often, true];
  if (record.action === "key.revoke") return [record.reason ? `Stopped everywhere: ${record.reason}` : "Stopped everywhere", false];
  if (record.action === "key.create") return ["Done", false];
  const status = Number(record.status);
  if (status >= 400) return [`Passed on; the answer was ${record.status}`, false];
  return [record.status ? `Worked (${record.status})` : "Worked", false];
}

/** What is wrong with a key's name, or nothing. */
export function nameFault(name) {
  if (name.trim() === "") return "Type a name for the key first.";
  if ([...name].length > 100) return `Choose a shorter name: at most 100 characters, this has ${[...name].length}.`;
  if (/\p{Cc}/u.test(name)) return "Choose a name without line breaks or other control characters.";
  return "";
}

/** "Zapier v2" after "Zapier", "Zapier v3" after that. */
export function nextName(name) {
  const found = / v(\d{1,4})$/.exec(name);
  return found ? `${name.slice(0, found.index)} v${Number(found[1]) + 1}` : `${name} v2`;
}
