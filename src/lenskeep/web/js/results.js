// What was judged: the newest result, the last twenty, and how the last minute went.

import { slot, state } from "./device.js";
import { byId, h, keep, mark, say, show } from "./dom.js";
import { milliseconds, moment, number, percent, plain, t } from "./text.js";

const SHOWN = 20;
const SIGNS = { OK: "OK", NG: "NG", UNCERTAIN: "?", ERROR: "!" };
const OUTCOMES = Object.keys(SIGNS);

export function paint() {
  const now = slot();
  const results = (state.results.get(now?.slot) || []).slice(-SHOWN);
  const newest = results[results.length - 1];
  show(byId("results-empty"), !newest);
  show(byId("strip"), Boolean(newest));
  show(byId("results-more"), Boolean(newest));
  if (!newest) say(byId("results-empty"), t(!state.status ? "wait" : now?.active ? "results.none" : "results.no_model"));
  paintNewest(newest);
  keep(byId("strip"), results, (one) => `${one.bundle}-${one.sequence}`, cell, (node, one) => mark(node, "data-newest", one === newest));
  paintCounts(now?.outcomes || {});
  paintLastBad(state.lastBad.get(now?.slot));
  if (byId("results-more").open) paintRows([...results].reverse());
}

function sign(outcome) {
  return SIGNS[outcome] || "!";
}

const what = (outcome) => t(`outcome.${outcome in SIGNS ? outcome : "ERROR"}`);

function paintNewest(one) {
  say(byId("last-outcome"), one ? sign(one.outcome) : "");
  mark(byId("last-outcome"), "data-outcome", one?.outcome);
  mark(byId("last-outcome"), "title", one ? what(one.outcome) : "");
  say(byId("last-label"), one ? plain(one.label || one.error || what(one.outcome), 80) : "");
  const margin = one && one.outcome !== "ERROR" ? t("results.margin", { score: number(one.score, 2), margin: number(Math.abs(one.margin), 2) }) : "";
  say(byId("last-score"), margin);
}

function cell(one) {
  const text = `${what(one.outcome)}, ${plain(one.label || one.error, 60)}, ${number(one.score, 2)}`;
  return h(
    "li",
    { "data-outcome": one.outcome, title: text, "aria-label": text },
    h("b", {}, sign(one.outcome)),
    h("span", {}, one.outcome === "ERROR" ? "–" : number(one.score, 2)),
  );
}

function paintCounts(outcomes) {
  const total = Object.values(outcomes).reduce((sum, count) => sum + count, 0);
  const bad = total - (outcomes.OK || 0);
  say(byId("results-share"), total ? t("results.minute", { n: number(total) }) : "");
  keep(
    byId("counts"),
    total ? OUTCOMES.filter((name) => name !== "ERROR" || outcomes.ERROR) : [],
    (name) => name,
    (name) => h("div", {}, h("dt", {}, ""), h("dd", {}, "")),
    (node, name) => {
      const count = outcomes[name] || 0;
      say(node.firstChild, what(name));
      say(node.lastChild, count && name !== "OK" && bad ? `${number(count)} (${percent(count / total)})` : number(count));
      mark(node, "data-some", count > 0 && name === "ERROR");
    },
  );
}

function paintLastBad(one) {
  show(byId("last-bad"), Boolean(one));
  if (!one) return;
  const score = one.outcome === "ERROR" ? "" : number(one.score, 2);
  const said = [sign(one.outcome), plain(one.label || one.error, 60), score].filter(Boolean).join(" ");
  say(byId("last-bad"), t("results.last_bad", { said, at: moment(one.captured_ms, true) }));
}

function paintRows(results) {
  keep(
    byId("results-rows"),
    results,
    (one) => `${one.bundle}-${one.sequence}`,
    (one) =>
      h(
        "tr",
        {},
        h("td", {}, moment(one.captured_ms, true)),
        h("td", {}, what(one.outcome)),
        h("td", {}, plain(one.label || one.error, 60)),
        h("td", {}, number(one.score, 2)),
        h("td", {}, milliseconds(one.total_us / 1000)),
      ),
    () => {},
  );
}
