// The view of what the server does now, from /metrics.

import { call, readModels } from "./api.js";
import { legend, shortName } from "./answer.js";
import { $, count, make, milliseconds, table } from "./dom.js";
import { growth, mean, parse, quantile, sum } from "./exposition.js";

const EVERY_MS = 2000;
const WINDOW_S = 120;
const DURATION = "coserve_request_duration_seconds";
const ROWS = [
  { title: "Throughput", unit: "images/s", names: ["images/s"] },
  { title: "Latency", unit: "ms", names: ["median", "95th percentile"] },
  { title: "Queue", unit: "ms", names: ["mean wait for the cores"] },
  { title: "Requests in progress", unit: "requests", names: ["in progress"] },
];

let charts = null;
let timer = null;
let turn = 0;
let failed = false;
let history = [];
let read = null;

/** Start or stop reading the metrics. */
export function showLive(shown, loadCharts, complain) {
  clearTimeout(timer);
  turn += 1;
  const mine = turn;
  if (!shown) return;
  const step = async () => {
    if (!document.hidden) {
      try {
        charts ??= await loadCharts();
        await update();
        if (failed) $("trouble").hidden = true;
        failed = false;
      } catch (error) {
        if (mine !== turn) return;
        failed = true;
        history = [];
        read = null;
        $("live-text").textContent = "";
        // Asking again without a key would only be refused again.
        if (error.kind === "unauthenticated") turn += 1;
        complain(error);
      }
    }
    if (mine === turn) timer = setTimeout(step, EVERY_MS);
  };
  step();
}

async function update() {
  const [text, { models }] = await Promise.all([call("metrics").then((one) => one.text()), readModels()]);
  const metrics = parse(text);
  const at = performance.now() / 1000;
  // Counters fall only if the server was started anew.
  if (read && sum(metrics, "process_start_time_seconds") !== sum(read.metrics, "process_start_time_seconds")) {
    history = [];
    read = null;
  }
  if (read) history.push(compare(read, { at, metrics }));
  read = { at, metrics };
  history = history.filter((point) => at - point.at <= WINDOW_S);
  $("live-text").textContent = summary(metrics);
  drawHistory(at);
  $("live-members").replaceChildren(membersTable(models, metrics), refusals(metrics));
}

function compare(before, after) {
  const seconds = after.at - before.at;
  const pair = [before.metrics, after.metrics];
  return {
    at: after.at,
    values: [
      [growth(...pair, "coserve_images_total") / seconds],
      [1000 * quantile(...pair, DURATION, 0.5), 1000 * quantile(...pair, DURATION, 0.95)],
      [1000 * mean(...pair, "coserve_queue_duration_seconds")],
      [sum(after.metrics, "coserve_requests_in_flight")],
    ],
  };
}

function summary(metrics) {
  const ready = (metrics.get("coserve_model_ready") ?? []).filter(({ value }) => value === 1).length;
  const all = metrics.get("coserve_model_ready")?.length ?? 0;
  const build = metrics.get("coserve_build_info")?.[0]?.labels ?? {};
  const flight = sum(metrics, "coserve_requests_in_flight");
  const limit = sum(metrics, "coserve_requests_limit");
  const degraded = sum(metrics, "coserve_degraded_answers_total");
  return (
    `Coserve ${build.version} with ${build.engine}: ${ready} of ${count(all, "ensemble")} ready, ` +
    `${flight} of at most ${limit} requests in progress, ${count(degraded, "degraded answer")} since the start.`
  );
}

function drawHistory(now) {
  const places = $("live-charts");
  if (!places.children.length) {
    for (const { title } of ROWS) {
      places.append(make("section", { className: "card" }, make("h2", {}, title), make("div")));
    }
  }
  ROWS.forEach(({ title, unit, names }, row) => {
    const series = names.map((name, index) => {
      const points = history.map(({ at, values }) => ({ ago: at - now, value: values[row][index] }));
      return { name, index, points: points.filter(({ value }) => !Number.isNaN(value)) };
    });
    const newest = series.map(({ name, points }) => `${name} ${points.at(-1)?.value.toFixed(1) ?? "not known yet"}`);
    const words = `${title} over the last two minutes: ${newest.join(", ")} ${unit}`;
    const below = names.length > 1 ? [legend(names, charts.COLOURS)] : [];
    charts.draw(places.children[row].lastChild, words, charts.timeLines(series, WINDOW_S, unit), below);
  });
}

function membersTable(models, metrics) {
  const rows = models.flatMap((model) => {
    const labels = { model: model.name };
    const ready = sum(metrics, "coserve_model_members_ready", { ...labels, version: model.version });
    const overlap = mean(new Map(), metrics, "coserve_member_overlap_ratio", labels);
    const degraded = sum(metrics, "coserve_degraded_answers_total", labels);
    const state = model.ready ? "ready" : "not ready";
    const members = model.members.map((member) => memberRow(model, member, metrics));
    return [
      {
        cells: [
          model.name,
          `${state}: ${ready} of ${count(model.members.length, "member")}, needs ${model.quorum}`,
          sum(metrics, "coserve_images_total", labels),
          Number.isNaN(overlap) ? "–" : `overlap ${overlap.toFixed(2)}`,
          degraded ? `${degraded} degraded` : model.load_error ?? "–",
        ],
        failed: !model.ready || degraded > 0 || model.load_error !== null,
      },
      ...members,
    ];
  });
  const heads = ["ensemble or member", "state", "images", "mean", "trouble"];
  return table("Ensembles and members since the start of the server", heads, rows);
}

function memberRow(model, member, metrics) {
  const labels = { model: model.name, member };
  const late = sum(metrics, "coserve_member_errors_total", { ...labels, kind: "late" });
  const failed = sum(metrics, "coserve_member_errors_total", { ...labels, kind: "failed" });
  const seconds = mean(new Map(), metrics, "coserve_member_duration_seconds", labels);
  const trouble = [late ? `${late} × late` : "", failed ? `${failed} × failed` : ""].filter(Boolean).join(", ");
  const cells = [`— ${shortName(model, member)}`, "", "", milliseconds(1000 * seconds), trouble || "–"];
  return { cells, failed: trouble !== "" };
}

function refusals(metrics) {
  const reasons = (metrics.get("coserve_requests_refused_total") ?? []).filter(({ value }) => value > 0);
  const text = reasons.map(({ labels, value }) => `${value} × ${labels.reason} (${labels.route})`).join(", ");
  return make("p", { className: "quiet" }, text ? `Requests refused since the start: ${text}.` : "No request was refused.");
}
