// The list of devices, narrowed by state, tags, version and name.

import { get } from "./api.js";
import { ago, deviceLink, health, slotNode, table } from "./bits.js";
import { byId, h, options } from "./dom.js";
import { known, number, plain, t } from "./text.js";

const HEALTHS = ["healthy", "behind", "refused", "silent", "invited", "revoked"];
const FIELDS = ["health", "target", "runs", "text"];
const LIMIT = 200;
const PAUSE_MS = 300; // while somebody types

export function begin(again) {
  paintFilters();
  let timer = 0;
  byId("filters").addEventListener("submit", (event) => (event.preventDefault(), again()));
  byId("filters").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(again, PAUSE_MS);
  });
}

export function paintFilters() {
  const select = byId("filter-health");
  options(select, [["", t("filter.all")], ...HEALTHS.map((name) => [name, known("health", name)])], select.value);
}

export function load() {
  const query = new URLSearchParams({ limit: LIMIT });
  for (const name of FIELDS) {
    const value = byId(`filter-${name}`).value.trim();
    if (value) query.set(name, value);
  }
  return get(`/v1/fleet/devices?${query}`);
}

export function nodes(page) {
  const columns = [...["device", "state", "runs", "heard", "hardware", "why"].map((name) => [t(`column.${name}`)]), [t("column.alarms"), true]];
  const rows = page.devices.map((line) => [
    deviceLink(line.device),
    health(line.health),
    line.slots.map(slotNode),
    ago(line.heard_s),
    plain(line.hardware, 80),
    plain(line.reason, 300),
    line.alarms ? number(line.alarms) : "",
  ]);
  const shown = page.devices.length < page.total ? t("devices.some", { n: page.devices.length, total: number(page.total) }) : t("devices.all", { total: number(page.total) });
  return [
    h(
      "section",
      { class: "card" },
      h("div", { class: "head" }, h("h2", {}, t("tab.devices")), h("span", { class: "aside", id: "devices-count" }, shown)),
      page.devices.length ? table(t("tab.devices"), columns, rows) : h("p", { class: "quiet" }, t("devices.none")),
    ),
  ];
}
