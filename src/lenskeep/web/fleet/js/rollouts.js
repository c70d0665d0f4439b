// Rollouts: how far each is, wave by wave, what the gates say, and the three things that can be done.

import { get } from "./api.js";
import { doAfterAsking } from "./ask.js";
import { deviceLink, facts, table, when } from "./bits.js";
import { arm, armed, h, svg } from "./dom.js";
import * as fleet from "./fleet.js";
import { known, number, plain, t } from "./text.js";

const GOOD = ["committed", "skipped"];
const BAD = ["rolled_back", "failed", "rejected", "silent"];
const REST = ["scheduled", "canceled", "reverted"];
const MEMBERS_SHOWN = 300;

export function load(number_) {
  return number_ ? get(`/v1/fleet/rollouts/${encodeURIComponent(number_)}`) : get("/v1/fleet/rollouts");
}

export function nodes(data, number_) {
  if (number_) return detail(data);
  if (data.length) return data.map((one) => h("section", { class: "card rollout", "data-state": one.state }, short(one)));
  return [h("section", { class: "card" }, h("p", { class: "quiet" }, t("rollouts.none")), h("code", {}, "lenskeep fleet rollout start NAME@VERSION"))];
}

/** A rollout on a few lines, for lists. */
export function short(one) {
  return h(
    "div",
    { class: "waves" },
    h("div", { class: "head" }, h("a", { href: `#rollouts/${one.id}` }, t("rollouts.title", { n: one.id, bundle: plain(one.bundle, 140) })), h("b", {}, known("rollout", one.state))),
    bar(one.states, one.devices),
    h("p", { class: "small" }, t("rollouts.line", { wave: one.wave, waves: one.waves, target: plain(one.target, 120), since: when(one.since) })),
    one.reason && one.state !== "running" ? h("p", { lang: "en" }, plain(one.reason, 600)) : null,
  );
}

/** A bar of devices: through, on their way, in trouble, not yet. */
function bar(states, devices) {
  const sum = (names) => names.reduce((total, name) => total + (states[name] || 0), 0);
  const [good, bad, rest] = [sum(GOOD), sum(BAD), sum(REST)];
  const way = Math.max(0, devices - good - bad - rest);
  const parts = [["good", good], ["way", way], ["bad", bad], ["rest", rest]];
  let x = 0;
  const rects = parts.map(([kind, count]) => {
    const width = devices ? (count / devices) * 100 : 0;
    x += width;
    return svg("rect", { class: kind, x: (x - width).toFixed(2), y: 0, width: width.toFixed(2), height: 14 });
  });
  const label = t("rollouts.bar", { good: number(good), way: number(way), bad: number(bad), rest: number(rest) });
  return h("div", {}, svg("svg", { class: "bar-of", role: "img", viewBox: "0 0 100 14", preserveAspectRatio: "none", "aria-label": label }, ...rects), h("p", { class: "small" }, label));
}

function detail({ rollout, plan, waves, gates, members }) {
  return [
    h(
      "section",
      { class: "card rollout", id: "rollout", "data-state": rollout.state },
      short(rollout),
      facts([
        [t("rollouts.by"), `${plain(rollout.by, 80)}, ${when(rollout.started)}`],
        [t("column.slot"), plain(rollout.slot, 40)],
        [t("rollouts.on_broken"), known("broken", plan.on_broken)],
        [t("rollouts.approvals"), rollout.approvals_needed ? `${rollout.approvals.length} / ${rollout.approvals_needed} ${rollout.approvals.map((one) => plain(one, 80)).join(", ")}` : ""],
      ]),
      actions(rollout),
    ),
    h(
      "section",
      { class: "card" },
      h("h2", {}, t("rollouts.waves")),
      ...waves.map((wave) => h("div", { class: "waves" }, h("div", { class: "head" }, h("b", {}, t("rollouts.wave", { n: wave.number, take: plain(wave.take, 80) })), h("span", { class: "aside" }, known("wave", wave.state))), bar(wave.states, wave.devices))),
    ),
    h("section", { class: "card" }, h("h2", {}, t("rollouts.gates")), gateList(gates, rollout.state)),
    h("section", { class: "card" }, h("h2", {}, t("tab.devices")), memberTable(members)),
  ];
}

/** While a wave is under way, its success is not broken: it is not there yet. */
function gateList(gates, state) {
  if (!gates.length) return h("p", { class: "quiet" }, t("rollouts.no_gates"));
  const one = (gate) => {
    const pending = gate.gate === "success" && gate.broken && state === "running";
    const sign = pending ? "·" : gate.broken ? "✗" : "✓";
    return h("li", { "data-broken": gate.broken && !pending }, sign, h("span", { lang: "en" }, plain(gate.text || gate.gate, 300)));
  };
  return h("ul", { class: "gates", id: "gates" }, ...gates.map(one));
}

function memberTable(members) {
  const columns = ["device", "wave", "state", "why", "since", "hardware"].map((name) => [t(`column.${name}`)]);
  const trouble = (one) => (BAD.includes(one.state) ? 0 : REST.includes(one.state) ? 2 : 1);
  const sorted = [...members].sort((a, b) => trouble(a) - trouble(b) || a.wave - b.wave);
  const rows = sorted.slice(0, MEMBERS_SHOWN).map((one) => [
    deviceLink(one.device), number(one.wave), h("span", { class: BAD.includes(one.state) ? "apart" : null }, known("member", one.state)),
    `${plain(one.code, 20)} ${plain(one.reason, 400)}`.trim(), when(one.since), plain(one.hardware, 60),
  ]);
  return table(t("tab.devices"), columns, rows);
}

function actions(rollout) {
  const path = `/v1/fleet/rollouts/${rollout.id}`;
  const over = ["finished", "aborted"].includes(rollout.state);
  const why = fleet.may("operator") ? "" : t("why.role", { role: known("role", "operator") });
  const wish = (name, end, body = {}) => ({ title: t(`do.${name}`), text: t(`do.${name}_text`, { bundle: plain(rollout.bundle, 140) }), action: t(`do.${name}`), path: `${path}/${end}`, body, reason: true });
  const button = (name, end, can, body) => {
    const node = h("button", { type: "button", class: "big", id: `do-${name}`, click: () => armed(node) && doAfterAsking(wish(name, end, body)) }, t(`do.${name}`));
    arm(node, why || (can ? "" : t("why.state", { state: known("rollout", rollout.state) })));
    return node;
  };
  return h(
    "div",
    { class: "actions" },
    rollout.state === "proposed" ? button("approve", "approval", true) : null,
    button("pause", "pause", ["running", "proposed"].includes(rollout.state)),
    button("resume", "resumption", rollout.state === "paused"),
    button("abort", "abort", !over),
    button("revert", "abort", rollout.state !== "reverting", { revert: true }),
  );
}
