// The page of one device. Order: take the token out of the address, learn the language, ask the device, paint.

import * as actions from "./actions.js";
import * as approval from "./approval.js";
import * as band from "./band.js";
import * as camera from "./camera.js";
import * as device from "./device.js";
import * as dialog from "./dialog.js";
import { byId, mark, options, say, show } from "./dom.js";
import * as importing from "./import.js";
import * as models from "./models.js";
import * as notice from "./notice.js";
import * as results from "./results.js";
import * as session from "./session.js";
import * as slot from "./slot.js";
import * as text from "./text.js";
import * as timing from "./timing.js";
import * as todo from "./todo.js";

const VIEWS = ["run", "models"];
const TRANSLATED = ["todo-list", "strip", "counts", "results-rows", "models", "notice-body", "import-said", "approval-signed"];
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const paintEveryMs = () => (calm.matches ? 1000 : 200); // five times a second, whatever the line's pace

let painting = 0;
let paintedAt = -Infinity;

function paintSoon() {
  if (painting || document.hidden) return;
  painting = setTimeout(paint, Math.max(0, paintedAt + paintEveryMs() - device.now()));
}

function paint() {
  painting = 0;
  paintedAt = device.now();
  const { state } = device;
  if (state.signedOut) {
    notice.bad(state.signedOut);
    state.signedOut = null;
  }
  mark(document.body, "data-stale", device.stale());
  band.paint();
  band.paintLink();
  actions.lookAtOperations();
  paintSlotChoice();
  if (document.body.dataset.view === "run") {
    for (const card of [camera, todo, approval, results, timing, slot]) card.paint();
  } else {
    importing.paint();
    models.paint();
  }
  say(byId("footer"), state.status ? footer(state.status) : "");
}

function footer(status) {
  const box = text.t("footer", { version: status.version, rss: text.number(status.daemon_rss_mb), load: text.number(status.load, 2) });
  return status.fleet ? `${box} · ${fleetLine(status.fleet)}` : box;
}

function fleetLine(fleet) {
  const heard = fleet.heard_s === null ? "" : text.t("fleet.heard", { seconds: text.number(fleet.heard_s) });
  const facts = { heard, seconds: text.number(fleet.heard_s || 0), waiting: text.number(fleet.waiting) };
  if (!fleet.url) return text.t("fleet.stick", facts);
  return text.t(fleet.level ? "fleet.level" : "fleet.behind", facts);
}

function paintSlotChoice() {
  const slots = device.state.status?.slots || [];
  show(byId("slot-pick"), slots.length > 1);
  if (slots.length < 2) return;
  options(byId("slot-choice"), slots.map((one) => [one.slot, `${one.slot} · ${text.known("state", one.state)}`]), device.slot().slot);
}

function openView() {
  const asked = location.hash.slice(1);
  const view = VIEWS.includes(asked) ? asked : document.body.dataset.view;
  document.body.dataset.view = view;
  for (const name of VIEWS) mark(byId(`tab-${name}`), "aria-current", name === view ? "page" : "");
  paintSoon();
}

function addressChanged() {
  if (session.adopt()) device.restart();
  openView();
}

async function chooseLanguage(event) {
  await text.choose(event.target.value);
  for (const list of TRANSLATED) byId(list).replaceChildren(); // made anew in the other language
  paintSoon();
}

async function begin() {
  session.adopt();
  await text.begin();
  byId("language").value = text.currentLanguage();
  byId("language").addEventListener("change", chooseLanguage);
  byId("person").addEventListener("click", () => dialog.signIn());
  byId("link-retry").addEventListener("click", device.poll);
  byId("slot-choice").addEventListener("change", (event) => device.chooseSlot(event.target.value));
  byId("results-more").addEventListener("toggle", paintSoon);
  window.addEventListener("hashchange", addressChanged);
  document.addEventListener("visibilitychange", paintSoon);
  for (const part of [notice, camera, slot, approval, importing]) part.begin();
  device.onChange(paintSoon);
  openView();
  device.begin();
  setInterval(paintSoon, 500); // ages and countdowns go on when nothing comes
}

begin();
