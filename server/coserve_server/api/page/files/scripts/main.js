// Wires the page: what is chosen, what is asked, what is shown.

import { Problem, ROOT, classify, hasKey, readModels, setKey } from "./api.js";
import { bars, classTable, legend, sentences, shortName, showHeadline, steps, stepsText } from "./answer.js";
import { showCode } from "./code.js";
import { $, folded, make, milliseconds, percent, table } from "./dom.js";
import { showLive } from "./live.js";
import { preview, watchPhotographs } from "./photograph.js";
import { forgetRace, watchRace } from "./racing.js";
import { watchTabs } from "./tabs.js";

const CLASSES = 10;

const state = { models: [], photograph: null, asking: null, keys: false };
// Drawing takes 160 kB of libraries; everything else works before they have arrived.
const loadCharts = () => import("./charts.js");

const chosen = () => state.models.find(({ name }) => name === $("model").value);

function complain(trouble) {
  const { message, detail } = typeof trouble === "string" ? { message: trouble } : trouble;
  $("trouble").replaceChildren(make("b", {}, message), detail ? ` ${detail}` : "");
  $("trouble").hidden = false;
  if (trouble.kind === "unauthenticated") askForKey();
}

/** Show an error that the page foresees; others are faults of the page, for the browser's console. */
function explain(error) {
  if (error.name === "AbortError") return;
  complain(error instanceof Problem ? error : new Problem("The page made a mistake.", error.message));
  if (!(error instanceof Problem)) console.error(error);
}

function askForKey() {
  state.keys = true;
  $("key-form").hidden = false;
  $("key").focus();
}

const watchLive = () => showLive(!$("live").hidden, loadCharts, explain);

async function start() {
  const text = $("model-text");
  text.textContent = "Loading…";
  try {
    const { models, default: first, not_served: missing } = await readModels().finally(() => text.replaceChildren());
    state.models = models;
    $("trouble").hidden = true;
    $("key-form").hidden = !state.keys;
    const names = Object.entries(missing).map(([name, why]) => `${name}: ${why}`);
    if (names.length) complain(new Problem("Not served:", names.join("; ")));
    if (!models.length) return complain("No ensemble is served.");
    $("model").replaceChildren(...models.map(({ name }) => make("option", { value: name }, name)));
    $("model").value = first ?? models[0].name;
    chooseModel();
  } catch (error) {
    explain(error);
  }
}

function chooseModel() {
  const model = chosen();
  const { lac } = model.provenance.calibration?.prediction_sets ?? {};
  const coverages = Object.keys(lac?.thresholds ?? {});
  $("coverage").replaceChildren(
    make("option", { value: "" }, coverages.length ? "none" : "not calibrated"),
    ...coverages.map((value) => make("option", { value }, `${percent(Number(value), 0)} coverage`)),
  );
  $("coverage").value = coverages.includes("0.95") ? "0.95" : "";
  $("coverage").disabled = !coverages.length;
  const { accuracy, dataset } = model.provenance;
  const top1 = accuracy?.ensemble?.top1;
  const parts = [`${model.members.length === 1 ? "1 member" : `${model.members.length} members`}, ${model.labels.length} classes`];
  if (dataset) parts.push(`trained on ${dataset}`);
  if (top1 !== undefined) parts.push(`top-1 accuracy ${percent(top1)}`);
  $("model-text").textContent = `${parts.join(", ")}.`;
  forgetRace(model, state.models);
  tellCode();
  ask();
}

function tellCode() {
  const name = state.photograph?.name ?? "photo.jpg";
  showCode({ model: $("model").value, coverage: $("coverage").value, name, keys: state.keys });
}

async function ask() {
  const model = chosen();
  const photograph = state.photograph;
  if (!photograph || !model) return;
  state.asking?.abort();
  const asking = new AbortController();
  state.asking = asking;
  $("answer").ariaBusy = "true";
  const wanted = { model: model.name, coverage: $("coverage").value, classes: Math.min(CLASSES, model.labels.length) };
  try {
    const { reply, seen_ms } = await classify(photograph, photograph.name, wanted, asking.signal);
    await show(reply, model, seen_ms);
  } catch (error) {
    if (error.name !== "AbortError") clearAnswer(error);
    explain(error);
  } finally {
    if (state.asking === asking) $("answer").ariaBusy = "false";
  }
}

function clearAnswer(error) {
  $("headline").replaceChildren(make("p", { className: "failed" }, make("b", {}, error.message)));
  $("missing").hidden = true;
  for (const id of ["classes", "words", "time"]) $(id).replaceChildren();
}

async function show(reply, model, seen_ms) {
  showHeadline(reply, model);
  $("words").replaceChildren(...sentences(reply, model));
  const charts = await loadCharts();
  const shown = bars(reply, model);
  const used = reply.members.filter((member) => member.used).map(({ name }) => name);
  const names = used.map((name) => shortName(model, name));
  const colours = used.map((name) => charts.colour(model.members.indexOf(name)));
  charts.draw(
    $("classes"),
    `Probability of each class, with each member’s own: ${shown.rows.map((row) => `${row.label} ${percent(row.probability)}`).join(", ")}`,
    charts.classBars(shown.rows, shown.ticks),
    [legend(names, colours), classTable(shown, reply, model)],
  );
  const { list, end } = steps(reply, seen_ms);
  const rows = list.map(({ name, ms }) => [name, milliseconds(ms)]);
  const words = `Steps of the request: ${rows.map((row) => row.join(" ")).join(", ")}`;
  const after = [stepsText(reply), folded("As a table", table("Steps of the request", ["step", "time"], rows))];
  charts.draw($("time"), words, charts.stepBars(list, end), after);
}

function takePhotograph(file) {
  state.photograph = file;
  $("trouble").hidden = true;
  preview(file);
  tellCode();
  ask();
}

watchPhotographs(takePhotograph, complain);
watchRace(loadCharts, explain);
watchTabs(watchLive);
$("docs-link").href = new URL("docs", ROOT);
$("model").addEventListener("change", chooseModel);
$("coverage").addEventListener("change", () => {
  tellCode();
  ask();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("key").value);
  if (!hasKey()) return;
  start();
  watchLive();
});
start();
