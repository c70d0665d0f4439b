// How many are well, behind, silent, refused; what goes on; what needs a look.

import { get } from "./api.js";
import { card, deviceLink, health, table, when } from "./bits.js";
import { h } from "./dom.js";
import * as alarms from "./alarms.js";
import * as rollouts from "./rollouts.js";
import { known, number, plain, t } from "./text.js";

const ORDER = ["healthy", "behind", "refused", "silent", "invited", "revoked"];
const SEVERITY = { behind: "warn", refused: "stop", silent: "stop" };
const APART_SHOWN = 8;

export async function load() {
  const [head, apart, list] = await Promise.all([get("/v1/fleet/overview"), get("/v1/fleet/drift"), get("/v1/fleet/rollouts")]);
  return { head: { ...head, at: "" }, apart, list };
}

export function nodes({ head, apart, list }) {
  const tiles = ORDER.filter((name) => head.health[name] || name === "healthy" || name in SEVERITY).map((name) => tile(name, head.health[name] || 0));
  tiles.push(plainTile(t("tile.alarms"), head.alarms, "#alarms", head.alarms ? "stop" : null));
  const live = list.filter((one) => !["finished", "aborted"].includes(one.state));
  return [
    h("div", { class: "tiles", id: "tiles" }, ...tiles),
    head.certificates_ending ? card(t("soon.title"), h("p", { class: "apart" }, t("soon.certificates", { n: head.certificates_ending }))) : "",
    live.length ? card(t("tab.rollouts"), ...live.map(rollouts.short)) : "",
    card(t("apart.title"), apart.length ? apartTable(apart) : h("p", { class: "quiet", id: "apart-none" }, t("apart.none"))),
    head.newest_alarms.length ? card(t("tab.alarms"), ...head.newest_alarms.map(alarms.node)) : "",
  ].filter(Boolean);
}

function tile(name, count) {
  return h(
    "a",
    { class: "card tile", id: `tile-${name}`, href: "#devices", "data-some": count ? SEVERITY[name] : null, click: () => chosen(name) },
    h("b", {}, number(count)),
    health(name, count > 0),
  );
}

function chosen(name) {
  document.getElementById("filter-health").value = name;
}

function plainTile(title, count, href, some) {
  return h("a", { class: "card tile", href, "data-some": some }, h("b", {}, number(count)), h("span", {}, title));
}

function apartTable(apart) {
  const rows = apart.slice(0, APART_SHOWN).map((one) => [
    deviceLink(one.device),
    plain(one.slot, 40),
    plain(one.desired, 140),
    plain(one.running, 140) || t("slot.nothing"),
    [known("state", one.state), one.pinned ? ` (${t("slot.pinned")})` : ""],
    one.since ? when(one.since) : "",
    `${plain(one.code, 20)} ${plain(one.reason, 300)}`.trim(),
  ]);
  const columns = ["device", "slot", "desired", "running", "state", "since", "why"].map((name) => [t(`column.${name}`)]);
  const more = apart.length > APART_SHOWN ? h("p", { class: "small" }, t("apart.more", { n: apart.length - APART_SHOWN })) : "";
  return h("div", { id: "apart" }, table(t("apart.title"), columns, rows), more);
}
