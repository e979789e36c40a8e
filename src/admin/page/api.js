/**
 * Questions to the admin API, with the session that the browser holds. No secret passes through here but the one
 * answer of a creation, which the caller keeps for as long as its dialog is open.
 */

/** Why a question was refused: a sentence for people, a code for programs. */
export class Refused extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

let signedOut = () => {};

/** Calls `told` when the session is over. */
export function whenSignedOut(told) {
  signedOut = told;
}

/**
 * @param {"GET" | "POST" | "DELETE"} method
 * @param {string} path
 * @param {unknown} [body] sent as JSON
 */
export async function ask(method, path, body) {
  const options = { method, credentials: "same-origin", cache: "no-store", headers: { Accept: "application/json" } };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refused(0, "unreachable", "Assure Pro cannot be reached at the moment. Check your connection, then try again.");
  }
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const problem = await answer.json().catch(() => ({}));
  const refused = new Refused(answer.status, problem.code ?? "", problem.detail ?? "Something went wrong. Try again.");
  if (answer.status === 401 && path !== "/v1/session") signedOut(refused);
  throw refused;
}
