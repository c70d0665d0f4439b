// Everything about one device: what it should run, what it runs, how it is, what happened.

import { get } from "./api.js";
import { ago, card, facts, health, slotNode, table, when } from "./bits.js";
import { button, doAfterAsking } from "./ask.js";
import { h } from "./dom.js";
import * as record from "./record.js";
import { bytes, known, milliseconds, number, plain, t } from "./text.js";

const HISTORY_SHOWN = 50;

export async function load(name) {
  const [page, copies] = await Promise.all([get(`/v1/fleet/devices/${encodeURIComponent(name)}`), record.load(name)]);
  return { ...page, record: copies };
}

export function nodes(page, name) {
  const { line, detail, vitals } = page;
  const report = detail.report;
  const tags = Object.entries(line.tags).map(([key, value]) => h("span", { class: "chip" }, `${plain(key, 60)}=${plain(value, 90)}`));
  return [
    h(
      "section",
      { class: "card", id: "device" },
      h("div", { class: "head" }, h("h2", { id: "device-name" }, plain(line.device, 64)), health(line.health)),
      line.reason ? h("p", { class: "apart", id: "device-why" }, plain(line.reason, 600)) : null,
      tags.length ? h("p", { class: "chips" }, ...tags) : null,
      facts([
        [t("column.heard"), `${ago(line.heard_s)}${line.heard ? ` (${when(line.heard)})` : ""}`],
        [t("column.hardware"), plain(line.hardware, 120)],
        [t("device.version"), plain(line.version, 60)],
        [t("device.clock"), line.clock_trusted ? "" : h("b", { class: "apart" }, t("device.clock_bad"))],
        [t("device.vitals"), vitals ? t("device.vitals_text", { disk: bytes(vitals.disk_free_mb * 1e6), memory: bytes(vitals.memory_free_mb * 1e6), load: number(vitals.load, 2) }) + (vitals.temperature_c === null ? "" : ` · ${number(vitals.temperature_c)} °C`) : ""],
        [t("device.key"), detail.device.fingerprint ? h("code", {}, plain(detail.device.fingerprint, 80)) : ""],
        [t("device.certificate"), line.certificate_ends ? when(line.certificate_ends) : ""],
        [t("device.record"), detail.head_hash ? t("device.record_text", { n: detail.head_sequence, hash: plain(detail.head_hash.slice(0, 12), 12) }) : ""],
        [t("device.refusal"), report?.refusal ? `${plain(report.refusal.code, 20)} ${plain(report.refusal.text, 600)}` : ""],
      ]),
      actions(name, line),
    ),
    card(t("device.slots"), line.slots.length ? h("div", { id: "device-slots" }, ...line.slots.map(slotCard)) : h("p", { class: "quiet" }, t("device.no_slots"))),
    card(t("device.trials"), trials(page.trials)),
    card(t("device.history"), history(page.history)),
    record.node(page.record, name),
  ];
}

function slotCard(slot) {
  return h(
    "div",
    {},
    h("b", {}, slotNode(slot)),
    facts([
      [t("column.state"), known("state", slot.state)],
      [t("column.digest"), slot.digest ? h("code", {}, plain(slot.digest, 64)) : ""],
      [t("column.why"), `${plain(slot.code, 20)} ${plain(slot.reason, 600)}`.trim()],
      [t("column.since"), slot.since ? when(slot.since) : ""],
    ]),
  );
}

function trials(lines) {
  if (!lines.length) return h("p", { class: "quiet" }, t("device.no_trials"));
  const columns = [[t("column.version")], [t("column.at")], ...["golden", "golden_mean", "p50", "p99", "memory"].map((name) => [t(`column.${name}`), true]), [t("column.result")], [t("column.hardware")]];
  const rows = lines.map((one) => [
    plain(one.bundle, 140), when(one.at), one.golden_total ? `${number(one.golden_passed)} / ${number(one.golden_total)}` : "–", one.golden_total ? number(one.golden_score, 4) : "–",
    one.p50_ms ? `${milliseconds(one.p50_ms)} ms` : "–", one.p99_ms ? `${milliseconds(one.p99_ms)} ms` : "–", one.memory_mb ? `${number(one.memory_mb)} MB` : "–",
    one.code ? h("b", { class: "apart" }, plain(one.code, 20)) : t("device.passed"), plain(one.hardware, 80),
  ]);
  return table(t("device.trials"), columns, rows);
}

function history(lines) {
  if (!lines.length) return h("p", { class: "quiet" }, t("device.no_history"));
  const rows = lines.slice(0, HISTORY_SHOWN).map((one) => [when(one.at), plain(one.kind, 60), plain(one.slot, 40), plain(one.bundle, 140), `${plain(one.code, 20)} ${plain(one.text, 600)}`.trim()]);
  return table(t("device.history"), ["at", "what", "slot", "version", "why"].map((key) => [t(`column.${key}`)]), rows);
}

function actions(name, line) {
  if (line.health === "revoked" || line.health === "invited") return null;
  const path = `/v1/devices/${encodeURIComponent(name)}`;
  const wishing = (id, role, wish) => button(id, role, wish.title, () => doAfterAsking(wish));
  const ask = (kind) => ({ title: t(`ask.${kind}`), text: t(`ask.${kind}_text`, { device: plain(name, 64) }), action: t(`ask.${kind}`), path: `${path}/commands`, body: { kind } });
  const revoke = { title: t("ask.revoke"), text: t("ask.revoke_text", { device: plain(name, 64) }), action: t("ask.revoke"), path: `${path}/revocation`, reason: true };
  return h("div", { class: "actions" }, wishing("ask-sync", "operator", ask("sync")), wishing("ask-pause", "operator", ask("pause")), wishing("ask-resume", "operator", ask("resume")), wishing("revoke", "operator", revoke));
}
