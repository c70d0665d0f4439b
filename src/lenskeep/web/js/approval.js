// What waits for people's approval in the shown slot: who asked for what, who has signed, and the two answers.

import * as actions from "./actions.js";
import { whyNot } from "./dialog.js";
import { slot, state } from "./device.js";
import { arm, byId, h, keep, say, show } from "./dom.js";
import { known, moment, plain, t } from "./text.js";

export function begin() {
  byId("approve").addEventListener("click", actions.approve);
  byId("refuse").addEventListener("click", actions.refuse);
}

export function paint() {
  const waiting = slot()?.waiting;
  show(byId("approval"), Boolean(waiting));
  if (!waiting) return;
  const names = { by: plain(waiting.by, 80), bundle: plain(waiting.bundle), slot: waiting.slot };
  const reason = waiting.reason ? t("approval.reason", { reason: plain(waiting.reason) }) : "";
  say(byId("approval-text"), `${t("approval.text", names)} ${reason}`.trim());
  const until = moment(waiting.expires) || plain(waiting.expires, 30);
  say(byId("approval-count"), t("approval.count", { done: waiting.signatures.length, needed: waiting.needed, until }));
  keep(byId("approval-signed"), waiting.signatures, (one) => one.person, signed, () => {});
  arm(byId("approve"), whyNotApprove(waiting), byId("approval-why"));
  arm(byId("refuse"), whyNotRefuse(waiting));
}

function signed(one) {
  const words = { person: plain(one.person, 80), meaning: known("meaning", one.meaning), at: moment(one.at), reason: plain(one.reason) };
  return h("li", {}, t("approval.signed", words));
}

function wrongRole(waiting) {
  if (waiting.roles.includes(state.who.role)) return "";
  return t("approval.roles", { roles: waiting.roles.map((role) => known("role", role)).join(", ") });
}

function whyNotApprove(waiting) {
  const why = whyNot("approve") || wrongRole(waiting);
  if (why) return why;
  const { person } = state.who;
  if (person === waiting.person && !waiting.own) return t("approval.own");
  return waiting.signatures.some((one) => one.person === person) ? t("approval.twice") : "";
}

function whyNotRefuse(waiting) {
  const why = whyNot("approve");
  return why || (state.who.person === waiting.person ? "" : wrongRole(waiting));
}
