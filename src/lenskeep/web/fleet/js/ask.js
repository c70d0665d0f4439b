// The dialog for everything that needs a second thought, the sign-in, and what came of an action.

import { send } from "./api.js";
import { arm, armed, byId, h, say, sentence, show } from "./dom.js";
import * as fleet from "./fleet.js";
import { known, plain, t } from "./text.js";

let whenDone = () => {};

export function begin(done) {
  whenDone = done;
  byId("notice-close").addEventListener("click", () => show(byId("notice"), false));
}

/** A fault as people read it; the fleet's own words are English. */
export function problemNode(problem) {
  const code = plain(problem.code, 20);
  return h(
    "div",
    { class: "problem card", role: "alert" },
    h("p", { class: "what" }, code ? h("code", {}, code) : null, " ", h("b", { lang: "en" }, plain(problem.title || problem.message))),
    problem.title && problem.message ? h("p", { lang: "en" }, ...sentence(plain(problem.message, 1000))) : null,
    problem.hint ? h("p", {}, h("b", {}, t("problem.fix")), " ", h("span", { lang: "en" }, ...sentence(plain(problem.hint)))) : null,
  );
}

/** Show what came of something. */
export function put(node, bad) {
  byId("notice").classList.toggle("bad", bad);
  byId("notice-body").replaceChildren(node);
  show(byId("notice"), true);
}

/** A button for who has the role; anybody else, or with a reason `why` not, finds out why it does nothing. */
export function button(id, role, title, act, why = "") {
  const made = h("button", { type: "button", id, click: () => armed(made) && act() }, title);
  arm(made, fleet.may(role) ? why : t("why.role", { role: known("role", role) }));
  return made;
}

/** Ask before something is done, then do it and say what came of it. `reason` = a reason must be given. */
export async function doAfterAsking({ title, text, action, method = "POST", path, body = {}, reason = false }) {
  const field = reason ? h("input", { id: "reason", type: "text", required: true, maxlength: "500", autocomplete: "off" }) : null;
  const sure = await open(title, [h("p", {}, text), field ? h("label", { class: "field", for: "reason" }, t("ask.reason"), field) : null], action, field);
  if (!sure) return;
  try {
    await send(method, path, field ? { ...body, reason: field.value.trim() } : body);
    put(h("p", {}, t("ask.done", { what: title })), false);
  } catch (error) {
    put(problemNode(error), true);
  }
  whenDone();
}

function open(title, nodes, action, focused = null, submit = null) {
  const dialog = byId("dialog");
  const no = h("button", { type: "button", class: "big", click: () => dialog.close("no") }, t("cancel"));
  const yes = h("button", { type: "submit", class: "big main", id: "dialog-yes" }, action);
  const done = (event) => {
    event.preventDefault();
    if (submit) submit(dialog);
    else dialog.close("yes");
  };
  dialog.replaceChildren(h("form", { submit: done }, h("h2", { id: "dialog-title" }, title), ...nodes.filter(Boolean), h("div", { class: "actions" }, yes, no)));
  dialog.returnValue = "no";
  dialog.showModal();
  (focused || no).focus();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

/** Sign in, or show who is signed in and let them leave. */
export async function person() {
  const { who } = fleet.state;
  if (!who) return signIn();
  const text = t("sign.as", { name: plain(who.by, 80), role: known("role", who.role) });
  if (await open(t("sign.who"), [h("p", {}, text)], t("sign.out"))) fleet.signOut();
}

function signIn() {
  const field = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const wrong = h("p", { class: "wrong", id: "token-wrong", role: "alert", hidden: true });
  const attempt = async (dialog) => {
    try {
      await fleet.signIn(field.value.trim());
      dialog.close("yes");
    } catch (error) {
      say(wrong, `${plain(error.code, 20)} ${plain(error.message)}`);
      show(wrong, true);
      field.select();
    }
  };
  const nodes = [
    h("p", {}, t("sign.text"), " ", h("code", {}, "lenskeep fleet operator add NAME --role operator")),
    h("label", { class: "field", for: "token" }, t("sign.token"), field),
    wrong,
  ];
  return open(t("sign.title"), nodes, t("sign.in"), field, attempt);
}

/** What stands in the place of everything while nobody is signed in. */
export function signInCard() {
  return h(
    "section",
    { class: "card", id: "signed-out" },
    h("h2", {}, t("sign.title")),
    h("p", {}, t("sign.needed")),
    h("div", { class: "actions" }, h("button", { type: "button", class: "big main", id: "sign-in", click: () => person().then(whenDone) }, t("sign.in"))),
  );
}
