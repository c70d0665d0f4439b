// The versions on this device: what each is, how it did in its trial here, and what can be done with it.

import * as actions from "./actions.js";
import { whyNot } from "./dialog.js";
import { running, slot, state } from "./device.js";
import { arm, byId, h, keep, mark, say, show } from "./dom.js";
import { bytes, known, milliseconds, moment, number, plain, t } from "./text.js";

export function paint() {
  const bundles = state.bundles || [];
  const why = bundles.length ? whyNot("activate") : "";
  say(byId("models-why"), why);
  show(byId("models-empty"), bundles.length === 0);
  if (!bundles.length) say(byId("models-empty"), t(state.bundles ? "models.none" : "wait"));
  say(byId("models-disk"), state.status ? t("models.disk", { free: bytes(state.status.disk_free_mb * 1048576) }) : "");
  const sorted = [...bundles].sort((one, other) => rank(one) - rank(other));
  keep(byId("models"), sorted, (one) => one.id, make, (node, one) => update(node, one, why));
}

const rank = (one) => (one.roles.some((role) => role.startsWith("active:")) ? 0 : one.roles.length ? 1 : 2);

function make(first) {
  const node = h("li", { class: "model" });
  node.bundle = first;
  const parts = {
    ref: h("b", { class: "ref" }, `${first.name}@${first.version}`),
    roles: h("span", { class: "chips" }),
    state: h("span", { class: "chip" }),
    facts: h("p", { class: "small" }),
    trial: h("p", { class: "small" }),
    refused: h("p", { class: "refused", lang: "en" }),
    bar: h("progress", { max: 1 }),
    stage: h("span", {}),
    check: h("button", { type: "button", click: () => actions.check(node.bundle) }, t("models.check")),
    activate: h("button", { type: "button", class: "main", click: () => actions.activate(node.bundle) }, t("models.activate")),
  };
  parts.progress = h("div", { class: "progress", role: "status" }, parts.bar, parts.stage);
  node.parts = parts;
  node.append(
    h(
      "div",
      { class: "about" },
      h("p", { class: "line" }, parts.ref, parts.state, parts.roles),
      parts.facts,
      parts.trial,
      parts.refused,
      parts.progress,
    ),
    h("div", { class: "actions" }, parts.check, parts.activate),
  );
  return node;
}

function update(node, one, why) {
  node.bundle = one;
  const { parts } = node;
  const ref = `${one.name}@${one.version}`;
  say(parts.state, known("bundle", one.state));
  mark(parts.state, "data-state", one.state);
  keep(parts.roles, one.roles, (role) => role, (role) => h("span", { class: "chip" }, roleWords(role)), () => {});
  say(parts.facts, facts(one));
  say(parts.trial, trialWords(one));
  const refused = one.state === "rejected" && one.trial;
  show(parts.refused, Boolean(refused));
  say(parts.refused, refused ? `${plain(one.trial.code, 20)} ${plain(one.trial.message)}` : "");
  const operation = running(["check", "import", "activate"], ref);
  show(parts.progress, Boolean(operation));
  if (operation) {
    const { text, share } = actions.progressOf(operation);
    say(parts.stage, text);
    mark(parts.bar, "value", share);
  }
  paintButtons(parts, one, ref, operation, why);
}

function paintButtons(parts, one, ref, operation, why) {
  const busy = operation ? t("why.busy") : "";
  say(parts.check, t("models.check"));
  say(parts.activate, t("models.activate"));
  mark(parts.check, "aria-label", `${t("models.check")}: ${ref}`);
  mark(parts.activate, "aria-label", `${t("models.activate")}: ${ref}`);
  arm(parts.check, busy || why);
  const runs = slot()?.active === ref ? t("why.runs") : "";
  const unproven = one.state === "qualified" ? "" : t(one.state === "rejected" ? "why.rejected" : "why.unproven");
  arm(parts.activate, busy || runs || unproven || (slot() ? why : t("band.no_slot")));
  for (const button of [parts.check, parts.activate]) mark(button, "aria-describedby", why ? "models-why" : "");
}

function roleWords(role) {
  const [name, place = ""] = role.split(":");
  return known("role_of", name).replace("{slot}", place);
}

function facts(one) {
  const imported = moment(one.imported);
  return [
    plain(one.title, 120),
    t("band.signed", { name: plain(one.signer, 64) }),
    bytes(one.size_bytes),
    imported ? t("models.imported", { at: imported }) : "",
  ].filter(Boolean).join(" · ");
}

function trialWords(one) {
  const { trial } = one;
  if (!trial) return t("models.untried");
  if (!trial.p99_ms && !trial.golden_total) return "";
  return [
    t("models.trial", { p50: milliseconds(trial.p50_ms), p99: milliseconds(trial.p99_ms) }),
    trial.golden_total ? t("models.golden", { passed: trial.golden_passed, total: trial.golden_total, score: number(trial.golden_score, 3) }) : "",
    trial.memory_mb ? t("models.memory", { mb: number(trial.memory_mb) }) : "",
    plain(trial.provider, 40),
  ].filter(Boolean).join(" · ");
}
