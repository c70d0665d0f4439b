// The slot in plain words: what it does with its versions, and the way back.

import * as actions from "./actions.js";
import { whyNot } from "./dialog.js";
import { now, onTrial, running, slot, state } from "./device.js";
import { arm, byId, h, mark, say, show } from "./dom.js";
import { known, plain, span, t } from "./text.js";

export function begin() {
  byId("rollback").addEventListener("click", actions.rollback);
  byId("confirm").addEventListener("click", actions.confirm);
}

export function paint() {
  const one = slot();
  show(byId("slot"), Boolean(one) || !state.status);
  say(byId("slot-title"), one ? t("slot.title", { slot: one.slot }) : t("slot.choose"));
  say(byId("slot-state"), one ? known("state", one.state) : "");
  mark(byId("slot"), "data-state", one?.state);
  paintText(one);
  paintProgress(one);
  say(byId("slot-previous"), one ? wayBack(one) : "");
  paintButtons(one);
}

function paintText(one) {
  if (!one) return say(byId("slot-text"), t("wait"));
  const text = words(one);
  const [, code = "", rest = ""] = /^(LK-\d{4}) ([^]*)$/.exec(one.reason) || [];
  if (one.state !== "rolled_back" || !code) return say(byId("slot-text"), text);
  const node = byId("slot-text");
  const key = `${text}|${one.reason}`;
  if (node.dataset.said === key && node.childElementCount) return undefined;
  node.dataset.said = key;
  node.replaceChildren(text, " ", h("code", {}, code), " ", h("span", { lang: "en" }, plain(rest)));
  return undefined;
}

function words(one) {
  const names = { active: plain(onTrial(one)), wanted: plain(one.wanted), previous: plain(one.previous), reason: plain(one.reason) };
  if (["starting", "restarting", "stopped"].includes(one.runner)) return t(`runner.${one.runner}`);
  if (!one.active && one.state !== "swapping") return t("slot.empty");
  if (one.state === "swapping") {
    return [t(one.active ? "slot.swapping" : "slot.first", names), one.held ? t("slot.held") : ""].join(" ").trim();
  }
  if (one.state === "probation") {
    const left = Math.max(0, (one.trial_ends_s ?? 0) - (now() - state.statusAt) / 1000);
    const back = one.previous ? (one.confirm_needed ? "slot.trial" : "slot.watched") : "slot.watched_alone";
    return t(back, { ...names, left: span(left) });
  }
  if (one.state === "rolled_back") {
    const asked = one.reason && !one.reason.startsWith("LK-");
    return t(asked ? "slot.back_asked" : "slot.back", names);
  }
  return t(one.held ? "slot.settled_held" : "slot.settled", names);
}

function paintProgress(one) {
  const operation = one && running(["activate", "rollback"]);
  const shown = Boolean(operation) && (one.state === "swapping" || operation.kind === "rollback");
  show(byId("slot-progress"), shown);
  if (!shown) return;
  const { text, share } = actions.progressOf(operation);
  say(byId("slot-stage"), text);
  mark(byId("slot-bar"), "value", share);
}

/** The version alone where the name goes without saying: a button is read at a glance. */
function short(ref, other) {
  const [name, version] = ref.split("@");
  return plain(name === other.split("@")[0] ? version : ref, 80);
}

function wayBack(one) {
  if (!one.active || !one.previous || one.state === "swapping") return "";
  return t(one.previous_warm ? "way.warm" : "way.cold", { previous: plain(one.previous) });
}

function paintButtons(one) {
  const changing = one?.state === "swapping";
  const back = changing ? t("slot.cancel") : one?.previous ? t("slot.rollback", { previous: short(one.previous, onTrial(one)) }) : t("slot.rollback_none");
  say(byId("rollback-text"), back);
  const nothing = !one ? t("why.wait") : !changing && !one.previous ? t("why.no_previous") : "";
  arm(byId("rollback"), nothing || whyNot("rollback"), byId("slot-why"));
  show(byId("confirm"), one?.state === "probation");
  if (one?.state !== "probation") return;
  say(byId("confirm"), t("slot.confirm", { active: short(onTrial(one), one.previous) }));
  arm(byId("confirm"), whyNot("confirm"));
}
