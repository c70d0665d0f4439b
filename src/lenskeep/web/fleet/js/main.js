// The fleet's pages. Order: take the token out of the address, learn the language, ask the fleet, paint, ask again.

import * as alarms from "./alarms.js";
import * as ask from "./ask.js";
import * as devices from "./devices.js";
import { byId, mark, say, show } from "./dom.js";
import * as fleet from "./fleet.js";
import * as onedevice from "./onedevice.js";
import * as overview from "./overview.js";
import * as rollouts from "./rollouts.js";
import * as session from "./session.js";
import { begin as learn, choose, currentLanguage, moment, plain, t } from "./text.js";
import * as versions from "./versions.js";

const EVERY_MS = 3000;
const VIEWS = { overview, devices, versions, rollouts, alarms };

let timer = 0;
let round = 0; // of two questions under way at once, the later one counts
let painted = "";

/** What the address asks for: a view, and one thing in it. */
function place() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  const view = name in VIEWS ? name : "overview";
  const thing = decodeURIComponent(rest.join("/"));
  return { view, thing, part: view === "devices" && thing ? onedevice : VIEWS[view] };
}

async function look() {
  clearTimeout(timer);
  const mine = ++round;
  const { part, thing, view } = place();
  try {
    if (!document.hidden) {
      await fleet.learnWho();
      const [head, data] = await Promise.all([fleet.overview(), part.load(thing)]);
      if (mine !== round) return;
      fleet.answered();
      paint(part, view, thing, head, data);
    }
  } catch (error) {
    if (mine !== round) return;
    failed(error);
  }
  timer = setTimeout(look, EVERY_MS);
}

function failed(error) {
  if (error.status === 401) {
    fleet.forget();
    byId("view").replaceChildren(ask.signInCard());
    painted = "";
  } else if (error.status) {
    byId("view").replaceChildren(ask.problemNode(error));
    painted = "";
  } else fleet.lost();
  paintHead();
}

function paint(part, view, thing, head, data) {
  fleet.state.head = head;
  paintHead();
  for (const name of Object.keys(VIEWS)) mark(byId(`tab-${name}`), "aria-current", name === view ? "page" : "");
  show(byId("filters"), view === "devices" && !thing);
  const still = JSON.stringify([view, thing, currentLanguage(), fleet.state.who?.role, data]);
  if (still === painted) return;
  painted = still;
  const focused = document.activeElement?.id;
  byId("view").replaceChildren(...part.nodes(data, thing));
  if (focused && document.activeElement?.id !== focused) byId(focused)?.focus();
}

function paintHead() {
  const { head, who, failedSince } = fleet.state;
  const word = failedSince || !head ? "UNKNOWN" : fleet.verdict(head);
  mark(byId("band"), "data-verdict", word);
  mark(document.body, "data-stale", failedSince > 0);
  byId("band-icon").setAttribute("href", `#i-${{ WELL: "healthy", ATTENTION: "refused", ALARM: "silent" }[word] || "invited"}`);
  say(byId("band-word"), t(`verdict.${word}`));
  say(byId("band-facts"), head ? t("band.facts", { devices: head.devices, healthy: head.health.healthy || 0, versions: head.versions }) : "");
  say(byId("person-text"), who ? plain(who.by, 40) : t("sign.in"));
  show(byId("link"), failedSince > 0);
  say(byId("link-text"), failedSince ? t("link.lost") : "");
  document.title = `${t(`verdict.${word}`)} · ${t("title")} · Lenskeep`;
  say(byId("footer"), head ? t("footer", { at: moment(head.at, true) }) : "");
}

function again() {
  painted = "";
  look();
}

async function begin() {
  session.adopt();
  await learn();
  byId("language").value = currentLanguage();
  byId("language").addEventListener("change", async (event) => {
    await choose(event.target.value);
    devices.paintFilters();
    again();
  });
  byId("person").addEventListener("click", () => ask.person().then(again));
  window.addEventListener("hashchange", () => (session.adopt() && fleet.forget(), again()));
  document.addEventListener("visibilitychange", look);
  ask.begin(again);
  devices.begin(again);
  look();
}

begin();
