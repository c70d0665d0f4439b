// What came of an action, in the device's own words: code, sentence, fix, and what goes on unchanged.

import { slot } from "./device.js";
import { byId, h, sentence, show } from "./dom.js";
import { plain, t } from "./text.js";

/** A fault as people read it; `problem` has code, title, detail or message, hint. */
export function problemNode(problem, { unchanged = false } = {}) {
  const detail = plain(problem.detail || problem.message);
  const title = plain(problem.title);
  const running = unchanged && slot()?.active;
  return h(
    "div",
    { class: "problem" },
    h(
      "p",
      { class: "what" },
      problem.code ? h("code", {}, plain(problem.code, 20)) : null,
      problem.code ? " " : null,
      h("b", { lang: problem.code ? "en" : null }, title || detail),
    ),
    title && detail && detail !== title ? h("p", { lang: "en" }, ...sentence(detail)) : null,
    problem.hint ? h("p", {}, h("b", {}, t("problem.fix")), " ", h("span", { lang: "en" }, ...sentence(plain(problem.hint)))) : null,
    running ? h("p", { class: "small" }, t("problem.unchanged", { ref: plain(running) })) : null,
    problem.code ? h("p", { class: "small" }, t("problem.more"), " ", h("code", {}, `lenskeep explain ${plain(problem.code, 20)}`)) : null,
  );
}

export function begin() {
  byId("notice-close").addEventListener("click", clear);
}

export function clear() {
  show(byId("notice"), false);
  byId("notice-body").replaceChildren();
}

export function good(sentence) {
  put(h("p", {}, sentence), false);
}

export function bad(problem, more = {}) {
  put(problemNode(problem, more), true);
}

function put(node, abnormal) {
  byId("notice").classList.toggle("bad", abnormal);
  show(byId("notice"), true);
  byId("notice-body").replaceChildren(node);
}
