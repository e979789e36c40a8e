/** Who is signed in, and which of the two views is shown. */

import { ask, whenSignedOut } from "./api.js";
import { byId, tell } from "./dom.js";
import * as keys from "./keys.js";
import * as activity from "./activity.js";

const VIEWS = { keys: [keys, "keys-view", "API keys"], activity: [activity, "activity-view", "Activity"] };
/** Longest span that a browser's timer can count, in milliseconds. */
const TIMER_MAX = 2 ** 31 - 1;
let person = null;

/** Takes a fragment that must not stay in the address bar or the history. */
function takeFragment(lead) {
  if (!location.hash.startsWith(lead)) return null;
  const rest = location.hash.slice(lead.length);
  history.replaceState(null, "", location.pathname);
  return rest;
}

function showSignedOut(sentence) {
  person = null;
  Object.values(VIEWS).forEach(([view, id]) => {
    view.leave();
    byId(id).hidden = true;
  });
  byId("views").hidden = byId("person").hidden = true;
  tell(sentence ?? "");
  byId("signed-out").hidden = false;
  document.title = "Not signed in · Assure Pro";
}

function show() {
  if (!person) return;
  const [name, query] = location.hash.slice(1).split("?");
  const chosen = name in VIEWS ? name : "keys";
  for (const [known, [view, id, title]] of Object.entries(VIEWS)) {
    const isChosen = known === chosen;
    byId(id).hidden = !isChosen;
    const link = document.querySelector(`#views a[href="#${known}"]`);
    if (isChosen) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (!isChosen) view.leave();
    else {
      document.title = `${title} · Assure Pro`;
      view.enter(person, new URLSearchParams(query));
    }
  }
}

async function start() {
  whenSignedOut(() => showSignedOut("Your session has ended."));
  const refused = takeFragment("#refused") !== null;
  const code = takeFragment("#code=");
  try {
    if (code) await ask("POST", "/v1/session", { code });
    person = await ask("GET", "/v1/whoami");
  } catch (error) {
    const isNew = error.status === 401 && !code;
    const why = refused ? "That sign-in was not accepted. It may be over; an API key can never sign in." : isNew ? "" : error.message;
    showSignedOut(why);
    return;
  }
  byId("person-name").textContent = person.name || person.user;
  byId("views").hidden = byId("person").hidden = false;
  setTimeout(() => ask("GET", "/v1/whoami").catch(() => {}), Math.min(TIMER_MAX, Date.parse(person.expires_at) - Date.now() + 6_000));
  addEventListener("hashchange", () => {
    tell("");
    show();
  });
  show();
}

byId("sign-out").addEventListener("click", async () => {
  await ask("DELETE", "/v1/session").catch(() => {});
  showSignedOut("You have signed out.");
});
// The skip link must not look like a view.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("content").focus();
});
start();
