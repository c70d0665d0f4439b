// The fleet's copy of a device's record: how far it goes, asking the device for it, and saving it as a file.

import { ask, get } from "./api.js";
import { button, doAfterAsking, problemNode, put } from "./ask.js";
import { card, facts, when } from "./bits.js";
import { h } from "./dom.js";
import * as fleet from "./fleet.js";
import { bytes, known, number, plain, t } from "./text.js";

const TYPE = "application/jsonl";

/** Nothing, for who may not read records. */
export async function load(name) {
  return fleet.may("auditor") ? get(`/v1/devices/${encodeURIComponent(name)}/record`) : null;
}

export function node(state, name) {
  const copy = state?.copies.find((one) => one.head_sequence >= 0);
  const words = state ? t("record.none") : t("why.role", { role: known("role", "auditor") });
  return card(
    t("device.record"),
    copy ? copyFacts(copy) : h("p", { class: "quiet" }, words),
    h("div", { class: "actions" }, button("ask-record", "operator", t("record.ask"), () => doAfterAsking(wish(name))), button("save-record", "auditor", t("record.save"), () => save(name), copy ? "" : words)),
  );
}

function copyFacts(copy) {
  return h(
    "div",
    { id: "record-copy" },
    facts([
      [t("record.upto"), t("record.upto_text", { n: number(copy.head_sequence), at: when(new Date(copy.changed_ms).toISOString()) })],
      [t("record.size"), bytes(copy.bytes)],
      [t("record.signed"), h("code", {}, plain(copy.key_id, 80))],
    ]),
    h("p", { class: "quiet" }, t("record.check"), " ", h("code", {}, "lenskeep audit verify FILE")),
  );
}

function wish(name) {
  const text = t("record.ask_text", { device: plain(name, 64) });
  return { title: t("record.ask"), text, action: t("record.ask"), path: `/v1/devices/${encodeURIComponent(name)}/commands`, body: { kind: "record" } };
}

/** The token goes in a header, so a plain link would not do. */
async function save(name) {
  try {
    const parts = await ask(`/v1/devices/${encodeURIComponent(name)}/record/file`, { patience: 0, read: (answer) => answer.blob() });
    const address = URL.createObjectURL(new Blob([parts], { type: TYPE }));
    h("a", { href: address, download: `${plain(name, 64)}.record.jsonl` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    put(h("p", {}, t("record.saved")), false);
  } catch (error) {
    put(problemNode(error), true);
  }
}
