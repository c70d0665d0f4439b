// What a picture costs against the budget, now and over the last hour.

import { slot, state } from "./device.js";
import { byId, mark, say, show, svg } from "./dom.js";
import { milliseconds, number, t } from "./text.js";

const WIDTH = 300;
const HEIGHT = 44;
const POINTS_MIN = 3;

export function paint() {
  const now = slot();
  const total = now?.latency.find((one) => one.stage === "total");
  const budget = now?.budget_ms || 0;
  const over = Boolean(total && budget && total.p99_ms > budget);
  say(byId("p50"), total ? `${milliseconds(total.p50_ms)} ms` : "–");
  say(byId("p99"), total ? `${milliseconds(total.p99_ms)} ms` : "–");
  say(byId("budget"), budget ? `${milliseconds(budget)} ms` : "–");
  say(byId("misses"), total ? number(now.misses) : "–");
  mark(byId("p99-box"), "data-over", over);
  say(byId("timing-word"), total && budget ? t(over ? "timing.over" : "timing.within") : "");
  mark(byId("timing-word"), "data-bad", over);
  paintTrend(series(now, total), budget);
}

/** The trend by minutes; on a young device by the newest results. */
function series(now, total) {
  if (!now) return { points: [], caption: "" };
  const minutes = (state.windows.get(now.slot) || []).flatMap((one) => one.latency.filter((stage) => stage.stage === "total"));
  const points = minutes.map((one) => one.p99_ms);
  if (points.length >= POINTS_MIN) return { points: total ? [...points, total.p99_ms] : points, caption: "timing.hour" };
  const results = (state.results.get(now.slot) || []).map((one) => one.total_us / 1000).filter((ms) => ms > 0);
  return { points: results, caption: "timing.newest" };
}

function paintTrend({ points, caption }, budget) {
  const enough = points.length >= POINTS_MIN;
  show(byId("spark"), enough);
  if (!enough) {
    say(byId("spark-caption"), t(slot()?.active ? "timing.soon" : "timing.none"));
    return;
  }
  const low = Math.min(...points);
  const high = Math.max(...points);
  const top = Math.max(high, budget) * 1.08;
  const y = (ms) => (HEIGHT - 2 - (ms / top) * (HEIGHT - 4)).toFixed(1);
  const x = (i) => ((i / (points.length - 1)) * WIDTH).toFixed(1);
  const path = points.map((ms, i) => `${i ? "L" : "M"}${x(i)} ${y(ms)}`).join("");
  const still = `${path}|${budget}`;
  const values = { low: milliseconds(low), high: milliseconds(high), n: points.length };
  say(byId("spark-caption"), t(caption, values));
  if (byId("spark").dataset.drawn === still) return;
  byId("spark").dataset.drawn = still;
  mark(byId("spark"), "aria-label", t(caption, values));
  byId("spark").replaceChildren(
    budget ? svg("path", { class: "limit", d: `M0 ${y(budget)}H${WIDTH}` }) : "",
    svg("path", { class: "area", d: `${path}L${WIDTH} ${HEIGHT}L0 ${HEIGHT}Z` }),
    svg("path", { class: "trend", d: path }),
  );
}
