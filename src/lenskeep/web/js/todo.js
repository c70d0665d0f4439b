// What somebody should do now: nothing, or a list with the worst first.

import { stale, state } from "./device.js";
import { byId, h, icon, keep, mark, say, sentence, show } from "./dom.js";
import { known, plain, t } from "./text.js";

const ORDER = ["stop", "fault", "warn", "info", "ok"];
const ICONS = { stop: "STOPPED", fault: "DEGRADED", warn: "DEGRADED", info: "UNKNOWN" };

export function paint() {
  const { status } = state;
  const found = status ? [...status.slots.flatMap((one) => one.faults), ...status.faults] : [];
  const faults = found.filter((one) => !one.passed);
  faults.sort((one, other) => ORDER.indexOf(one.severity) - ORDER.indexOf(other.severity));
  show(byId("todo-none"), faults.length === 0);
  mark(byId("todo"), "data-worst", faults[0]?.severity);
  if (!faults.length) say(byId("todo-none"), t(stale() ? "todo.unknown" : status ? "todo.none" : "wait"));
  keep(byId("todo-list"), faults, (one) => `${one.code}|${one.name}|${one.text}|${one.severity}`, item, () => {});
}

function item(one) {
  return h(
    "li",
    { "data-severity": one.severity },
    icon(ICONS[one.severity] || "UNKNOWN"),
    h(
      "div",
      {},
      h("p", {}, h("b", {}, known("severity", one.severity)), ` · ${plain(one.name, 60)}`, one.code ? " · " : "", one.code ? h("code", {}, plain(one.code, 20)) : ""),
      h("p", { lang: "en" }, ...sentence(plain(one.text))),
      one.hint ? h("p", {}, h("b", {}, t("problem.fix")), " ", h("span", { lang: "en" }, ...sentence(plain(one.hint)))) : "",
    ),
  );
}
