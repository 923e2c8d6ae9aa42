// Measures the members of a family's ensembles: about twenty requests each, one at a time.

import { classify } from "./api.js";
import { median } from "./dom.js";

export const ROUNDS = 20;
/** Rounds end after this time, in milliseconds, however few they were. */
const PATIENCE_MS = 20_000;

/** Return the ensembles to compare with one: other divisions of the same network on the same data. */
export function family(models, chosen) {
  const { network, dataset } = chosen.provenance;
  const related = network
    ? models.filter(({ provenance }) => provenance.network === network && provenance.dataset === dataset)
    : [chosen];
  return related.toSorted((a, b) => a.members.length - b.members.length || a.name.localeCompare(b.name));
}

/** Time from the first member's start to the answer of the last one that is used; without any, null. */
export function span(reply) {
  const ends = reply.members.filter(({ used }) => used).map(({ end_ms }) => end_ms);
  // An answer without a late member waited for it until the deadline.
  if (reply.members.some(({ end_ms }) => end_ms === null)) return reply.timings_ms.inference;
  return ends.length ? Math.max(...ends) : null;
}

/** Send the requests, each to every ensemble in turn, so that whatever else runs slows all alike.
 *
 * The first round warms up and does not count. Returns a lane per ensemble, with its replies;
 * `progress(done, all)` hears of each round. Throws a Problem if an ensemble does not answer.
 */
export async function race(models, photograph, signal, progress, rounds = ROUNDS) {
  const lanes = models.map((model) => ({ model, replies: [], problem: null }));
  const begun = performance.now();
  for (let round = 0; round <= rounds; round += 1) {
    for (const lane of lanes) {
      if (signal.aborted) return finish(lanes);
      const late = performance.now() - begun > PATIENCE_MS;
      if (!lane.problem && !(late && lane.replies.length)) await ask(lane, photograph, signal, round > 0);
    }
    // Once a round: what the browser draws takes time from the members if it runs on the same cores.
    progress(round + 1, rounds + 1);
  }
  return finish(lanes);
}

async function ask(lane, photograph, signal, counts) {
  try {
    // All members run, whatever the server's setting is.
    const wanted = { model: lane.model.name, classes: 1, early_stop: "off" };
    const { reply } = await classify(photograph, photograph.name, wanted, signal);
    if (counts) lane.replies.push(reply);
  } catch (error) {
    if (error.name === "AbortError") return;
    // One busy moment is no reason to leave the race.
    if (error.kind === "overloaded") return;
    lane.problem = error;
  }
}

function finish(lanes) {
  return lanes
    .filter(({ replies, problem }) => replies.length || problem)
    .map((lane) => ({ ...lane, ...summarise(lane.replies) }));
}

/** Return the reply whose span is the median, that span, and its quartiles. */
function summarise(replies) {
  const sorted = replies.filter((reply) => span(reply) !== null).toSorted((a, b) => span(a) - span(b));
  if (!sorted.length) return { drawn: null, ms: null };
  const at = (share) => span(sorted[Math.floor(share * (sorted.length - 1))]);
  return {
    drawn: sorted[Math.floor((sorted.length - 1) / 2)],
    ms: at(0.5),
    low: at(0.25),
    high: at(0.75),
    overlap: median(sorted.map(({ overlap }) => overlap)),
    degraded: replies.filter(({ degraded }) => degraded).length,
  };
}

/** Return dots for the plot of accuracy: the ensembles, and the subsets whose accuracy was measured.
 *
 * The latency of a subset is the time until its last member has answered, while all members run.
 */
export function accuracyPoints(lanes) {
  return lanes.flatMap(({ model, replies, drawn, ms }, lane) => {
    if (ms === null) return [];
    const { accuracy = {} } = model.provenance;
    const size = model.members.length;
    const short = `S=${size}`;
    // That of the members that answered, which may lack some.
    const whole = drawn.measured_top1;
    const title = `${model.name}${drawn.degraded ? ", degraded" : ""}`;
    const dots = whole === null ? [] : [{ top1: whole, ms, whole: true, short, title, lane, failed: drawn.degraded }];
    for (const subset of accuracy.subsets ?? []) {
      if (subset.members.length === size) continue;
      const times = replies.map((reply) => latest(reply, subset.members)).filter((time) => time !== null);
      if (!times.length) continue;
      const title = `${model.name}, only member ${subset.members.join(", ")}`;
      dots.push({ top1: subset.top1, ms: median(times), whole: false, short, title, lane });
    }
    return dots;
  });
}

function latest(reply, members) {
  const runs = members.map((index) => reply.members[index]);
  return runs.every((run) => run?.used) ? Math.max(...runs.map(({ end_ms }) => end_ms)) : null;
}
