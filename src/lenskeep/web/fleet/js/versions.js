// Which version runs where, how fast on each class of hardware, and how well it reproduced its golden outputs there.

import { get } from "./api.js";
import { table } from "./bits.js";
import { h, svg } from "./dom.js";
import { milliseconds, number, percent, plain, t } from "./text.js";

const WIDTH = 640;
const NAME = 170;
const ROW = 40;

export function load() {
  return get("/v1/fleet/versions?hours=24");
}

export function nodes(versions) {
  if (!versions.length) return [h("section", { class: "card" }, h("p", { class: "quiet" }, t("versions.none")))];
  const top = Math.max(...versions.flatMap((one) => one.behaviour.map((line) => line.p99_ms)), 0.001);
  return versions.map((one) => versionCard(one, top));
}

function versionCard(one, top) {
  const many = one.digests.length > 1;
  return h(
    "section",
    { class: "card version" },
    h("div", { class: "head" }, h("h2", {}, plain(one.bundle, 140)), h("span", { class: "aside" }, t("versions.devices", { n: number(one.devices), wanted: number(one.wanted) }))),
    many ? h("p", { class: "apart" }, t("versions.digests", { n: one.digests.length })) : h("p", { class: "small" }, h("code", {}, plain(one.digests[0] || "", 64))),
    one.behaviour.length ? chart(one.behaviour, top, plain(one.bundle, 140)) : h("p", { class: "quiet" }, t("versions.unmeasured")),
    one.behaviour.length ? figures(one.behaviour) : null,
    one.tried.length ? trials(one.tried) : null,
  );
}

/** Bars on one scale for all versions: the median within the 99th percentile, a row for each class. */
function chart(lines, top, bundle) {
  const x = (ms) => (ms / top) * (WIDTH - NAME - 110);
  const rows = lines.flatMap((line, i) => {
    const y = i * ROW;
    return [
      svg("text", { class: "label", x: 0, y: y + 24 }, plain(line.hardware, 24) || t("versions.unknown_hardware")),
      svg("rect", { class: "p99", x: NAME, y: y + 8, width: Math.max(1, x(line.p99_ms)).toFixed(1), height: 24, rx: 3 }),
      svg("rect", { class: "p50", x: NAME, y: y + 13, width: Math.max(1, x(line.p50_ms)).toFixed(1), height: 14, rx: 2 }),
      svg("text", { x: (NAME + 8 + x(line.p99_ms)).toFixed(1), y: y + 24 }, `${milliseconds(line.p50_ms)} / ${milliseconds(line.p99_ms)} ms`),
    ];
  });
  return svg("svg", { class: "chart", role: "img", viewBox: `0 0 ${WIDTH} ${lines.length * ROW}`, "aria-label": t("versions.chart", { bundle }) }, ...rows);
}

function figures(lines) {
  const columns = [[t("column.hardware")], ...["p50", "p99", "over", "ng", "errors", "pictures"].map((name) => [t(`column.${name}`), true])];
  const rows = lines.map((line) => [
    plain(line.hardware, 80) || t("versions.unknown_hardware"), `${milliseconds(line.p50_ms)} ms`, `${milliseconds(line.p99_ms)} ms`,
    percent(line.misses_share), percent(line.ng_share), percent(line.errors_share), number(line.frames),
  ]);
  return table(t("versions.figures"), columns, rows);
}

function trials(lines) {
  const columns = [[t("column.hardware")], ...["golden_mean", "golden_worst", "p99_worst", "memory", "devices", "failed"].map((name) => [t(`column.${name}`), true])];
  const rows = lines.map((line) => [
    plain(line.hardware, 80) || t("versions.unknown_hardware"), score(line.golden_mean, line.scored), score(line.golden_worst, line.scored),
    line.p99_ms_worst ? `${milliseconds(line.p99_ms_worst)} ms` : "–", line.memory_mb_worst ? `${number(line.memory_mb_worst)} MB` : "–",
    number(line.devices), line.failed ? h("b", { class: "apart" }, number(line.failed)) : number(0),
  ]);
  return h("div", { class: "trials" }, h("p", { class: "small" }, t("versions.trials")), table(t("versions.trials"), columns, rows));
}

const score = (value, scored) => (scored ? number(value, 4) : "–");
