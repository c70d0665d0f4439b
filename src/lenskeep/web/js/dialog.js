// One dialog for everything that needs a second thought, and the sign-in.

import * as device from "./device.js";
import { byId, h, mark, say, show } from "./dom.js";
import { known, plain, t } from "./text.js";

/** Ask before something is done: says the consequence. Resolves to true, or false when it was left alone. */
export function ask({ title, lines, action, body = null, careful = false }) {
  const dialog = byId("dialog");
  const yes = h("button", { type: "submit", class: "big main" }, action);
  const no = h("button", { type: "button", class: "big", click: () => dialog.close("no") }, t("cancel"));
  const form = h(
    "form",
    { submit: (event) => (event.preventDefault(), dialog.close("yes")) },
    h("h2", { id: "dialog-title" }, title),
    ...lines.map((line) => h("p", {}, line)),
    body,
    h("div", { class: "actions" }, yes, no),
  );
  return open(dialog, form, careful ? no : yes);
}

function open(dialog, form, focused) {
  dialog.replaceChildren(form);
  dialog.returnValue = "no";
  dialog.showModal();
  focused.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Ask for a token, or show who is signed in. */
export function signIn(reason = "") {
  const who = device.state.who;
  if (who && !who.anonymous) return signedIn(who);
  const dialog = byId("dialog");
  const field = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const wrong = h("p", { class: "wrong", id: "token-wrong", role: "alert", hidden: true });
  const yes = h("button", { type: "submit", class: "big main" }, t("sign.in"));
  const no = h("button", { type: "button", class: "big", click: () => dialog.close("no") }, t("cancel"));
  const form = h(
    "form",
    { submit: (event) => (event.preventDefault(), tryToken(dialog, field, wrong)) },
    h("h2", { id: "dialog-title" }, t("sign.title")),
    reason ? h("p", {}, reason) : null,
    h("p", {}, t("sign.text"), " ", h("code", {}, "lenskeep token add NAME --role operator")),
    h("label", { class: "field", for: "token" }, t("sign.token"), field),
    wrong,
    h("div", { class: "actions" }, yes, no),
  );
  return open(dialog, form, field);
}

async function tryToken(dialog, field, wrong) {
  try {
    await device.signIn(field.value.trim());
    dialog.close("yes");
  } catch (error) {
    say(wrong, `${error.code ? `${error.code} ` : ""}${plain(error.message)}`);
    show(wrong, true);
    mark(field, "aria-describedby", "token-wrong");
    field.select();
  }
}

async function signedIn(who) {
  const sure = await ask({
    title: t("sign.who"),
    lines: [t("sign.as", { name: plain(who.name, 80), role: known("role", who.role) })],
    action: t("sign.out"),
    careful: true,
  });
  if (sure) device.signOut();
}

/** Say why this page may not do something now; empty when it may. */
export function whyNot(permission) {
  const { who, failedSince } = device.state;
  if (failedSince) return t("why.link");
  if (!who) return t("why.wait");
  if (device.may(permission)) return outOfReach(who);
  const values = { role: known("role", who.needs[permission]?.[0] || permission), yours: known("role", who.role) };
  return who.anonymous ? t("why.sign", values) : t("why.role", values);
}

/** A token may be bound to some slots; then it changes no other. */
function outOfReach(who) {
  const slot = device.slot()?.slot;
  return !who.slots.length || !slot || who.slots.includes(slot) ? "" : t("why.slot", { slots: who.slots.join(", ") });
}
