// Shows the race: the bars, the replay, and accuracy against latency.

import { $, folded, make, milliseconds, percent, table } from "./dom.js";
import { loadExample } from "./photograph.js";
import { ROUNDS, accuracyPoints, family, race } from "./race.js";
import { shortName } from "./answer.js";

/** How long a replay lasts, in milliseconds. */
const REPLAY_MS = 4000;

let entrants = [];
let running = null;
let shown = null;

/** Prepare the race of an ensemble's family, and drop an earlier one. */
export function forgetRace(model, models) {
  const next = family(models, model);
  const same = next.length === entrants.length && next.every(({ name }, index) => name === entrants[index].name);
  entrants = next;
  $("race-start").disabled = false;
  if (same) return;
  running?.abort();
  shown = null;
  $("race-replay").hidden = true;
  $("race-result").replaceChildren();
  $("race").replaceChildren();
  $("accuracy").replaceChildren(make("p", { className: "quiet" }, "The race measures the latencies."));
  const names = entrants.map(({ name }) => name).join(", ");
  $("race-text").textContent =
    `${names}: ${ROUNDS} requests each, one at a time; the median one is drawn. All send the same small photograph, since ` +
    "members take as long for any other. If this browser runs on the server’s machine, it shares the members’ cores.";
}

export function watchRace(loadCharts, explain) {
  $("race-start").addEventListener("click", () => run(loadCharts).catch(explain));
  $("race-stop").addEventListener("click", () => running?.abort());
  $("race-replay").addEventListener("click", () => replay(loadCharts));
}

async function run(loadCharts) {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  busy(true);
  try {
    const photograph = await loadExample();
    const lanes = await race(entrants, photograph, mine.signal, (done, all) => {
      $("race-progress").max = all;
      $("race-progress").value = done;
    });
    if (running !== mine) return;
    const charts = await loadCharts();
    show(lanes, charts);
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) replay(loadCharts);
  } finally {
    if (running === mine) busy(false);
  }
}

function busy(now) {
  const [used, next] = now ? [$("race-start"), $("race-stop")] : [$("race-stop"), $("race-start")];
  const focused = document.activeElement === used;
  $("race-start").disabled = now;
  $("race-stop").hidden = !now;
  // The button that is used up would take the keyboard's place on the page along.
  if (focused) next.focus();
  $("race-progress").hidden = !now;
  if (now) $("race-replay").hidden = true;
}

function show(lanes, charts) {
  const drawn = lanes.filter(({ drawn: one }) => one);
  const problems = lanes.filter(({ problem }) => problem);
  const failures = problems.map(({ model, problem }) => make("p", { className: "failed" }, `${model.name}: ${problem.message} ${problem.detail}`));
  $("race-result").replaceChildren(...failures);
  if (!drawn.length) return;
  const rows = drawn.map(drawLane);
  const alone = drawn.filter(({ model }) => model.members.length === 1).map(({ ms }) => ms);
  const line = alone.length ? Math.min(...alone) : null;
  shown = { rows, line };
  $("race-result").append(make("p", {}, verdict(drawn, line)));
  const cells = drawn.map((lane) => ({ cells: laneCells(lane), failed: lane.degraded > 0 }));
  const heads = ["ensemble", "median", "middle half", "overlap", "requests", "degraded"];
  charts.draw($("race"), `The race: ${verdict(drawn, line)}`, charts.raceBars(rows, line), [
    ...failedMembers(drawn),
    folded("As a table", table("The race", heads, cells), table("Members", ["member", "start", "end", "device"], memberCells(drawn))),
  ]);
  $("race-replay").hidden = false;
  showAccuracy(drawn, charts);
}

function drawLane({ model, drawn, ms, overlap, degraded, replies }) {
  const hurt = degraded ? `, degraded in ${degraded} of ${replies.length}` : "";
  const together = model.members.length > 1 ? `, overlap ${overlap.toFixed(2)}` : "";
  return {
    title: `${model.name}: ${milliseconds(ms)}${together}${hurt}`,
    bars: drawn.members.map((member, index) => ({
      name: member.name,
      start: member.start_ms,
      end: member.end_ms,
      error: member.used ? null : member.error,
      late: member.end_ms === null,
      waited: ms,
      index,
    })),
  };
}

function laneCells({ model, ms, low, high, overlap, replies, degraded }) {
  return [model.name, milliseconds(ms), `${milliseconds(low)} – ${milliseconds(high)}`, overlap.toFixed(2), replies.length, degraded];
}

function memberCells(drawn) {
  return drawn.flatMap(({ drawn: reply }) =>
    reply.members.map((member) => ({
      cells: [member.name, milliseconds(member.start_ms), milliseconds(member.end_ms), member.used ? member.device : member.error],
      failed: !member.used,
    })),
  );
}

function failedMembers(drawn) {
  const lines = drawn.flatMap(({ model, drawn: reply }) =>
    reply.members
      .filter((member) => !member.used)
      .map((member) => make("li", {}, `${model.name}, ${shortName(model, member.name)}: ${member.error}`)),
  );
  return lines.length ? [make("ul", { className: "failed" }, ...lines)] : [];
}

function verdict(drawn, line) {
  const divided = drawn.filter(({ model }) => model.members.length > 1);
  if (line === null || !divided.length) {
    return drawn.map(({ model, ms }) => `${model.name} took ${milliseconds(ms)}`).join("; ") + ".";
  }
  const parts = divided.map(({ model, ms, degraded, replies }) => {
    const took = `S=${model.members.length} took ${milliseconds(ms)}`;
    if (degraded) return `${took} and lacked members in ${degraded} of ${replies.length} answers`;
    const ratio = ms < line ? `${(line / ms).toFixed(2)} times as fast` : `${(ms / line).toFixed(2)} times as long`;
    return `${took}, ${ratio}`;
  });
  return `The undivided network, the dashed line, took ${milliseconds(line)}; ${parts.join("; ")}.`;
}

/** Draw the race again, as it went, some thousand times slower. */
async function replay(loadCharts) {
  const charts = await loadCharts();
  const mine = shown;
  const last = Math.max(mine.line ?? 0, ...mine.rows.flatMap(({ bars }) => bars.map(({ end }) => end ?? 0)));
  const begun = performance.now();
  const place = $("race");
  $("race-replay").textContent = `Replay, ${Math.max(1, Math.round(REPLAY_MS / last))} times slower`;
  const step = () => {
    if (shown !== mine || !place.firstChild) return;
    const passed = (performance.now() - begun) / REPLAY_MS;
    charts.change(place, charts.raceBars(mine.rows, mine.line, passed < 1 ? passed * last : Infinity));
    if (passed < 1) requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}

function showAccuracy(drawn, charts) {
  const dots = accuracyPoints(drawn).map((dot) => ({ ...dot, title: `${dot.title}\n${percent(dot.top1)}, ${milliseconds(dot.ms)}` }));
  if (!dots.length) {
    const text = "The provenance of these ensembles records no accuracy: coserve evaluate measures it.";
    $("accuracy").replaceChildren(make("p", { className: "quiet" }, text));
    return;
  }
  const rows = dots.map(({ title, top1, ms }) => [title.split("\n")[0], percent(top1), milliseconds(ms)]);
  const text =
    "Large dots are ensembles, small ones subsets of their members. The latency of a subset is when its last member " +
    "answered in the race; the answer would have been its mean if a quorum of that size were enough.";
  charts.draw($("accuracy"), `Top-1 accuracy against latency: ${rows.filter((_, index) => dots[index].whole).map((row) => row.join(" ")).join(", ")}`, charts.accuracyDots(dots), [
    make("p", { className: "quiet" }, text),
    folded("As a table", table("Accuracy against latency", ["members", "top-1 accuracy", "latency"], rows)),
  ]);
}
