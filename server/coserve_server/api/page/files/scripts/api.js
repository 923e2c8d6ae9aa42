// Calls the server, and says in words what went wrong.

/** Address of the server, which may be below a proxy's prefix; this file is at page/DIGEST/scripts/. */
export const ROOT = new URL("../../../", import.meta.url);

let key = "";

/** Use an API key until the page is closed; it is kept nowhere else. */
export function setKey(text) {
  key = text.trim();
}

export const hasKey = () => key !== "";

const HEADLINES = {
  "bad-image": "The server cannot read this file as a photograph.",
  "bad-body": "The file did not reach the server as it should.",
  "body-too-large": "This file is too large for the server.",
  "too-many-pixels": "This photograph has too many pixels for the server.",
  "upload-timeout": "The upload took too long.",
  "unknown-model": "This ensemble is no longer served; reload the page.",
  "no-quorum": "Too few members gave an answer.",
  deadline: "The members did not answer in time.",
  overloaded: "The server is busy; try again in a moment.",
  internal: "The server made a mistake; its log says more.",
};

/** What went wrong; `message` is a headline, `detail` the server's own words. */
export class Problem extends Error {
  constructor(headline, detail = "", kind = "") {
    super(headline);
    this.detail = detail;
    this.kind = kind;
  }
}

/** Send a request with the key, and return the response.
 *
 * Throws a Problem, or an AbortError if the signal fired.
 */
export async function call(path, options = {}) {
  const headers = key ? { "X-API-Key": key } : {};
  let response;
  try {
    response = await fetch(new URL(path, ROOT), { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer.", "Check that it still runs, and your connection.");
  }
  if (response.ok) return response;
  throw await describe(response);
}

async function describe(response) {
  let document = {};
  try {
    document = await response.json();
  } catch {
    // A proxy's error, whose page is of no use here.
  }
  const kind = String(document.type ?? "").replace("/problems/", "");
  if (response.status === 401) {
    return new Problem(key ? "The server does not know this key." : "The server needs an API key.", "", kind);
  }
  // The page sends one image, so that its number and name say nothing.
  const detail = String(document.detail ?? "").replace(/^image 0(?: \(.*?\))?: /s, "");
  const title = document.title ?? `Status ${response.status}`;
  return new Problem(HEADLINES[kind] ?? `The server refused: ${title}.`, detail, kind);
}

export const readModels = async () => (await call("v1/models")).json();

/** Classify one image, with the members' own predictions. */
export async function classify(blob, name, { model, coverage, classes, early_stop }, signal) {
  const query = new URLSearchParams({ model, top_k: classes, member_predictions: true });
  if (coverage) query.set("coverage", coverage);
  if (early_stop) query.set("early_stop", early_stop);
  const body = new FormData();
  body.append("files", blob, name);
  const begun = performance.now();
  const response = await call(`v1/classify?${query}`, { method: "POST", body, signal });
  const reply = await response.json();
  return { reply, seen_ms: performance.now() - begun };
}
