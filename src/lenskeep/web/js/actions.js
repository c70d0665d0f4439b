// What a person can change here. Each asks first where the line is touched, says what came of it, and never twice.

import { send } from "./api.js";
import * as device from "./device.js";
import { ask, signIn, whyNot } from "./dialog.js";
import { h } from "./dom.js";
import * as notice from "./notice.js";
import { known, number, plain, span, t } from "./text.js";

const followed = new Map(); // operation id -> what to do with its end
const TRIALS_S = [0, 60, 600, 3600, 28800];
let acting = false; // a second tap while the first is under way is not a second wish

/** Run an action that needs a permission: whoever may not is told why, and asked to sign in where that would help. */
async function act(permission, work) {
  if (acting) return;
  acting = true;
  try {
    const reason = whyNot(permission);
    if (!reason) await work();
    else if (device.state.who?.anonymous && !device.state.failedSince) await signIn(reason);
    else notice.bad({ detail: reason });
  } catch (error) {
    notice.bad(error, { unchanged: true });
  } finally {
    acting = false;
  }
}

function follow(operation, ended) {
  followed.set(operation.id, ended);
  device.takeOperation(operation);
}

/** Say the end of what was begun here. Called whenever something has changed. */
export function lookAtOperations() {
  for (const [id, ended] of followed) {
    const operation = device.state.operations.get(id);
    if (!operation || !device.over(operation)) continue;
    followed.delete(id);
    if (operation.error) notice.bad(operation.error, { unchanged: operation.kind !== "rollback" });
    else notice.good(ended(operation));
  }
}

export const rollback = () =>
  act("rollback", async () => {
    const slot = device.slot();
    const changing = slot.state === "swapping";
    const names = { slot: slot.slot, previous: plain(slot.previous), active: plain(device.onTrial(slot)), wanted: plain(slot.wanted) };
    const sure = await ask(
      changing
        ? { title: t("ask.cancel.title", names), lines: [t("ask.cancel.text", names)], action: t("ask.cancel.do") }
        : {
            title: t("ask.rollback.title", names),
            lines: [t("ask.rollback.text", names), t(slot.previous_warm ? "ask.rollback.warm" : "ask.rollback.cold", names)],
            action: t("ask.rollback.do", names),
          },
    );
    if (!sure) return;
    const operation = await send("POST", "/v1/rollbacks", { slot: slot.slot, reason: "asked for on the page" });
    follow(operation, (one) => (changing ? t("did.cancel", names) : t("did.rollback", { ...names, gap: gapOf(one) })));
  });

export const confirm = () =>
  act("confirm", async () => {
    const slot = device.slot();
    await send("POST", "/v1/confirmations", { slot: slot.slot, reason: "confirmed on the page" });
    notice.good(t("did.confirm", { active: plain(device.onTrial(slot)) }));
    device.poll();
  });

export const check = (bundle) =>
  act("check", async () => {
    const ref = `${bundle.name}@${bundle.version}`;
    const operation = await send("POST", "/v1/checks", { bundle: ref, slot: device.slot()?.slot });
    follow(operation, () => t("did.check", { ref: plain(ref) }));
  });

export const activate = (bundle) =>
  act("activate", async () => {
    const slot = device.slot();
    const ref = `${bundle.name}@${bundle.version}`;
    const names = { slot: slot.slot, ref: plain(ref), active: plain(slot.active) };
    const fields = activationFields(slot);
    const sure = await ask({
      title: t("ask.activate.title", names),
      lines: [t(slot.active ? "ask.activate.text" : "ask.activate.first", names)],
      body: fields.node,
      action: t("ask.activate.do", names),
    });
    if (!sure) return;
    const operation = await send("POST", "/v1/activations", { bundle: ref, slot: slot.slot, ...fields.values() });
    follow(operation, (one) => t("did.activate", { ...names, gap: gapOf(one) }));
    if (operation.state === "awaiting_approval") notice.good(t("did.waits", names));
    device.poll();
  });

export const approve = () =>
  act("approve", async () => {
    const { waiting } = device.slot();
    const names = { slot: waiting.slot, bundle: plain(waiting.bundle) };
    const meaning = h("select", { id: "meaning" }, ...waiting.meanings.map((one) => h("option", { value: one }, known("meaning", one))));
    const reason = reasonField();
    const body = h("div", {}, h("label", { class: "field", for: "meaning" }, t("approval.meaning"), meaning), reason.node);
    const lines = [t("ask.approve.text", { digest: waiting.digest })];
    if (!(await ask({ title: t("ask.approve.title", names), lines, body, action: t("approval.approve") }))) return;
    const signature = { id: waiting.id, digest: waiting.digest, meaning: meaning.value, reason: reason.value() };
    await send("POST", `/v1/slots/${waiting.slot}/approvals`, signature);
    notice.good(t("did.approve", names));
    device.poll();
  });

export const refuse = () =>
  act("approve", async () => {
    const { waiting } = device.slot();
    const names = { slot: waiting.slot, bundle: plain(waiting.bundle) };
    const reason = reasonField();
    const lines = [t("ask.refuse.text")];
    if (!(await ask({ title: t("ask.refuse.title", names), lines, body: reason.node, action: t("approval.refuse") }))) return;
    await send("POST", `/v1/slots/${waiting.slot}/refusals`, { id: waiting.id, reason: reason.value() });
    notice.good(t("did.refuse", names));
    device.poll();
  });

function reasonField() {
  const input = h("input", { id: "why", type: "text", maxlength: 200, autocomplete: "off", required: true });
  return { node: h("label", { class: "field", for: "why" }, t("approval.why"), input), value: () => input.value.trim() };
}

function activationFields(slot) {
  const trial = h("select", { id: "trial" }, ...TRIALS_S.map((s) => h("option", { value: s }, s ? t("trial.for", { time: span(s) }) : t("trial.none"))));
  const reason = h("input", { id: "reason", type: "text", maxlength: 200, autocomplete: "off" });
  const shift = h("input", { id: "shift", type: "checkbox" });
  // offered only to who has just been told of it, under the name of the risk
  const offered = slot.reason.startsWith("LK-8105");
  const node = h(
    "div",
    {},
    h("label", { class: "field", for: "trial" }, t("trial.label"), trial),
    h("label", { class: "field", for: "reason" }, t("ask.reason"), reason),
    offered ? h("label", { class: "tick", for: "shift" }, shift, t("ask.shift")) : "",
  );
  const values = () => ({
    ...(Number(trial.value) ? { trial_s: Number(trial.value) } : {}),
    ...(shift.checked ? { accept_risks: ["outcome-shift"] } : {}),
    reason: reason.value.trim(),
  });
  return { node, values };
}

/** How long the line waited for its next result, if the device measured it. */
function gapOf(operation) {
  const ms = operation.result?.interval_ms;
  return typeof ms === "number" && ms > 0 ? t("did.gap", { ms: number(ms, ms < 10 ? 1 : 0) }) : "";
}

/** Where an operation is, in words and as a share (null = not known). */
export function progressOf(operation) {
  const { progress } = operation;
  if (!progress) return { text: t("stage.begin"), share: null };
  const stage = known("stage", progress.stage);
  if (!progress.total) return { text: stage, share: null };
  return { text: `${stage} ${number(progress.done)}/${number(progress.total)}`, share: progress.done / progress.total };
}
