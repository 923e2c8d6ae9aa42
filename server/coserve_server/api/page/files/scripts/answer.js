// Says what the members answered, in words and as bars.

import { $, count, folded, listed, make, milliseconds, percent, table } from "./dom.js";

export const shortName = (model, member) => member.replace(`${model.name}_`, "");

/** Show the headline: the label, in red what is missing, and which members answered if the others were not needed. */
export function showHeadline(reply, model) {
  const best = reply.results[0].predictions[0];
  const used = reply.members.filter((member) => member.used);
  const answered = `${used.length} of ${count(reply.members.length, "member")} answered`;
  const lines = [make("strong", {}, best.label), make("p", {}, `${percent(best.probability)} probable`)];
  if (reply.degraded) {
    lines.splice(1, 0, make("p", { className: "failed" }, make("b", {}, `degraded: ${answered}`)));
  } else if (used.length < reply.members.length) {
    const names = listed(used.map(({ name }) => shortName(model, name)));
    lines.push(make("p", { className: "quiet" }, `${answered} with enough confidence: ${names}`));
  }
  $("headline").replaceChildren(...lines);
  const missing = reply.members.filter(({ error }) => error !== null);
  $("missing").replaceChildren(
    ...missing.map((member) => make("li", {}, `${shortName(model, member.name)}: ${member.error}`)),
  );
  $("missing").hidden = !missing.length;
}

/** Return the rows of the bars and the members' ticks. */
export function bars(reply, model) {
  const [result] = reply.results;
  const set = new Set(result.prediction_set?.map(({ class_id }) => class_id));
  const rows = result.predictions.map(({ class_id, label, probability }) => {
    return { id: class_id, label, probability, inSet: set.has(class_id) };
  });
  const shown = new Set(rows.map(({ id }) => id));
  const ticks = Object.entries(result.member_predictions ?? {}).flatMap(([name, predictions]) =>
    predictions
      .filter(({ class_id }) => shown.has(class_id))
      .map(({ class_id, probability }) => ({ id: class_id, probability, name, index: model.members.indexOf(name) })),
  );
  return { rows, ticks };
}

/** Return the bars as a table, for those who do not see them. */
export function classTable({ rows, ticks }, reply, model) {
  const members = reply.members.filter(({ used }) => used).map(({ name }) => name);
  const cells = rows.map((row) => [
    row.label,
    percent(row.probability),
    ...members.map((name) => {
      const tick = ticks.find((one) => one.id === row.id && one.name === name);
      return tick ? percent(tick.probability) : "below its own list";
    }),
  ]);
  const heads = ["class", "ensemble", ...members.map((name) => shortName(model, name))];
  return folded("As a table", table("Probability of each class", heads, cells));
}

export function legend(names, colours) {
  const items = names.map((name, index) => {
    const item = make("li", {}, name);
    item.style.setProperty("--c", colours[index]);
    return item;
  });
  return make("ul", { className: "legend" }, ...items);
}

/** Say how the members voted, how large the set is, and how good these members are. */
export function sentences(reply, model) {
  const [result] = reply.results;
  return [votes(result, model), setSentence(result, reply), measured(reply, model)]
    .filter((text) => text !== "")
    .map((text) => make("p", {}, text));
}

function votes(result, model) {
  const choices = Object.entries(result.member_predictions ?? {}).map(([name, [first]]) => [shortName(model, name), first]);
  if (choices.length < 2) return "";
  const { class_id: id, label } = result.predictions[0];
  const others = choices.filter(([, first]) => first.class_id !== id);
  const most = Math.log(Math.min(choices.length, model.labels.length));
  const { disagreement } = result.uncertainty;
  const measure = ` Disagreement: ${disagreement.toFixed(3)} nats, of at most ${most.toFixed(2)}.`;
  if (!others.length) return `${choices.length === 2 ? "Both" : `All ${choices.length}`} members say ${label}.${measure}`;
  const said = others.map(([name, first]) => `${name} says ${first.label} (${percent(first.probability, 0)})`);
  const agreeing = choices.length - others.length;
  const rest = agreeing ? `${agreeing} of ${choices.length} members ${agreeing === 1 ? "says" : "say"} ${label}` : `No member by itself says ${label}`;
  return `The members disagree: ${rest}; ${listed(said)}.${measure}`;
}

function setSentence(result, reply) {
  if (!reply.prediction_sets) return "";
  const coverage = percent(reply.prediction_sets.coverage, 0);
  const set = result.prediction_set;
  if (set === null) return `There is no prediction set for ${count(reply.members.filter((m) => m.used).length, "member")}.`;
  if (!set.length) return `The prediction set is empty: no class is probable enough for ${coverage} coverage.`;
  const names = set.slice(0, 12).map(({ label }) => label);
  if (set.length > names.length) names.push(`${set.length - names.length} more`);
  const shown = listed(names, set.length > 12 ? "and" : "or");
  return `Prediction set: ${shown}. Such sets hold the true class for ${coverage} of photographs.`;
}

function measured(reply, model) {
  if (reply.measured_top1 === null) return "";
  const { images, split } = model.provenance.accuracy ?? {};
  const of = images ? ` of ${images.toLocaleString("en")} ${split ?? "test"} photographs` : "";
  const single = reply.members.filter(({ used }) => used).length === 1;
  const members = single ? "This member" : "Together, these members";
  const subject = reply.early_stopping ? "With early stopping, the ensemble" : members;
  return `${subject} labelled ${percent(reply.measured_top1)}${of} correctly.`;
}

/** Return the steps of a request, one after another, and their end. */
export function steps(reply, seen_ms) {
  const { decode, preprocess, queue, inference, combine, total } = reply.timings_ms;
  const other = Math.max(0, total - decode - preprocess - queue - inference - combine);
  const outside = Math.max(0, seen_ms - total);
  let start = 0;
  const list = Object.entries({ decode, preprocess, queue, inference, combine, other, outside }).map(([name, ms]) => {
    const step = { name, ms, start };
    start += ms;
    return step;
  });
  return { list, end: start };
}

export function stepsText(reply) {
  const { total } = reply.timings_ms;
  return make(
    "p",
    { className: "quiet" },
    `The server took ${milliseconds(total)} from the complete upload to the answer. “other” is its own work and ` +
      "waiting in between; “outside” is the network, the upload and this browser.",
  );
}
