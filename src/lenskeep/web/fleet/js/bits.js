// Small pieces that several views are made of.

import { h, icon } from "./dom.js";
import { known, moment, plain, span, t } from "./text.js";

const BAD = { behind: "warn", refused: "stop", silent: "stop" };

export function health(word, some = true) {
  return h("span", { class: "state", "data-bad": some ? BAD[word] : null }, icon(word), known("health", word));
}

export function ago(seconds) {
  return seconds === null || seconds === undefined ? t("never") : t("ago", { span: span(seconds) });
}

export const when = (text) => moment(text, true) || "–";

export function deviceLink(name) {
  return h("a", { href: `#devices/${encodeURIComponent(name)}` }, plain(name, 64));
}

/** What a slot runs; what it should run instead is said with it. */
export function slotNode(slot) {
  const apart = slot.desired && slot.desired !== slot.running;
  return h(
    "div",
    {},
    `${plain(slot.slot, 40)}: ${plain(slot.running, 140) || t("slot.nothing")}`,
    apart ? h("span", { class: "apart" }, ` → ${plain(slot.desired, 140)}`) : null,
    slot.pinned ? ` (${t("slot.pinned")})` : null,
  );
}

/** A table that scrolls sideways on a narrow screen. Columns: [title, digits?]. */
export function table(label, columns, rows) {
  const head = columns.map(([title, digits]) => h("th", { scope: "col", class: digits ? "digits" : null }, title));
  const cells = (row) => row.map((cell, i) => h("td", { class: columns[i][1] ? "digits" : null }, ...[cell].flat()));
  return h(
    "div",
    { class: "wide", role: "region", "aria-label": label, tabindex: "0" },
    h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows.map((row) => h("tr", {}, ...cells(row))))),
  );
}

export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return h("dl", { class: "facts-list" }, ...shown.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, ...[value].flat())]));
}

export function card(title, ...children) {
  return h("section", { class: "card" }, h("h2", {}, title), ...children);
}
