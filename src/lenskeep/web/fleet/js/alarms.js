// What a person should look at, and closing it with a reason.

import { get } from "./api.js";
import { button, doAfterAsking } from "./ask.js";
import { deviceLink, when } from "./bits.js";
import { h } from "./dom.js";
import { number, plain, t } from "./text.js";

export function load() {
  return get("/v1/alarms");
}

export function nodes(alarms) {
  if (alarms.length) return [h("section", { class: "card" }, h("h2", {}, t("tab.alarms")), ...alarms.map(node))];
  return [h("section", { class: "card" }, h("p", { class: "quiet" }, t("alarms.none")))];
}

export function node(alarm) {
  const wish = { title: t("alarms.close"), text: t("alarms.close_text"), action: t("alarms.close"), path: `/v1/alarms/${alarm.id}/acceptance`, reason: true };
  const close = button(`close-${alarm.id}`, "operator", t("alarms.close"), () => doAfterAsking(wish));
  return h(
    "div",
    { class: "alarm" },
    h("p", {}, h("code", {}, plain(alarm.code, 20)), " ", alarm.device ? deviceLink(alarm.device) : h("b", {}, t("title"))),
    h("p", { lang: "en" }, plain(alarm.text, 1000)),
    h("p", { class: "small" }, t("alarms.times", { n: number(alarm.count), first: when(alarm.first), last: when(alarm.last) })),
    h("div", { class: "actions" }, close),
  );
}
