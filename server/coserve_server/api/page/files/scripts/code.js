// The same request as a line of curl and in Python.

import { ROOT } from "./api.js";
import { $, make } from "./dom.js";

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const python = (text) => JSON.stringify(text);

export function curlLine({ model, coverage, name, keys }) {
  const query = new URLSearchParams({ model, member_predictions: true });
  if (coverage) query.set("coverage", coverage);
  const header = keys ? "-H 'X-API-Key: YOUR_KEY' " : "";
  return `curl ${header}-F files=@${quote(name)} ${quote(`${ROOT.href}v1/classify?${query}`)}`;
}

export function pythonLines({ model, coverage, name, keys }) {
  const key = keys ? ', api_key="YOUR_KEY"' : "";
  const wanted = [python(name), `model=${python(model)}`, "member_predictions=True"];
  if (coverage) wanted.push(`coverage=${coverage}`);
  return [
    "from coserve_client import Client  # pip install 'coserve[client]'",
    "",
    `with Client(${python(ROOT.href.replace(/\/$/, ""))}${key}) as client:`,
    `    reply = client.classify(${wanted.join(", ")})`,
    "print(reply.results[0].predictions[0].label, reply.degraded)",
  ].join("\n");
}

/** Show both, with buttons that copy them. */
export function showCode(wanted) {
  $("code").replaceChildren(snippet("curl", curlLine(wanted)), snippet("Python", pythonLines(wanted)));
}

function snippet(title, text) {
  const button = make("button", { type: "button", className: "secondary" }, "Copy");
  button.setAttribute("aria-label", `Copy the lines for ${title}`);
  const code = make("pre", { tabIndex: 0 }, text);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      // Browsers allow it only on this machine and over HTTPS.
      getSelection().selectAllChildren(code);
      button.textContent = "Selected: press Ctrl+C";
    }
  });
  return make("div", { className: "snippet" }, make("div", { className: "row" }, make("h3", {}, title), button), code);
}
