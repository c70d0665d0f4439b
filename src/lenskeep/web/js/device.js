// The device as this page knows it: asked every two seconds, told in between, and honest about how old that is.
// Nothing here touches the page; whoever paints asks for `state` after `changed`.

import * as api from "./api.js";
import * as session from "./session.js";
import { EventLine } from "./stream.js";

const POLL_MS = 2000;
const PAUSE_MS_MAX = 10000;
const WINDOWS_EVERY_MS = 30000;
const STALE_MS = 6000;
const RESULTS_KEPT = 100;

export const state = {
  status: null, // the newest answer
  statusAt: 0, // when it came, by this page's own clock
  who: null,
  locked: false, // nothing is shown without a sign-in
  failedSince: 0, // the device does not answer since then; 0 = it does
  nextTryAt: 0,
  slotName: "",
  results: new Map(), // slot -> newest results, oldest first
  lastBad: new Map(), // slot -> the newest result that was not OK
  windows: new Map(), // slot -> windows of the last hour
  bundles: null,
  operations: new Map(),
};

const listeners = [];
const timers = { poll: 0, bundles: 0, results: 0 };
let windowsAt = -Infinity;
const line = new EventLine(lineOpened, heard);

/** Be told that something may look different now. */
export function onChange(listener) {
  listeners.push(listener);
}

function changed() {
  for (const listener of listeners) listener();
}

export const now = () => performance.now();

export function slot() {
  return state.status?.slots.find((one) => one.slot === state.slotName) || state.status?.slots[0] || null;
}

/** What the slot has been exchanged to; its process may take half a second to say so itself. */
export function onTrial(one) {
  return one.state === "probation" ? one.wanted : one.active;
}

export function stale() {
  return state.status !== null && (state.failedSince > 0 || now() - state.statusAt > STALE_MS);
}

/** How old the newest answer is, in seconds. */
export function age() {
  return (now() - state.statusAt) / 1000;
}

/** Say whether who is signed in here has a permission; the device has the table. */
export function may(permission) {
  return state.who !== null && state.who.may.includes(permission);
}

export function running(kinds, subject = "") {
  const found = [...state.operations.values()].filter(
    (one) => one.state === "running" && kinds.includes(one.kind) && (!subject || one.subject === subject),
  );
  return found.length ? found[found.length - 1] : null;
}

// --- asking -----------------------------------------------------------------------------------------------------------

/** Ask and listen while the page can be seen; a hidden page costs the device nothing. */
export function begin() {
  document.addEventListener("visibilitychange", () => (document.hidden ? rest() : wake()));
  if (!document.hidden) wake();
}

function wake() {
  line.start();
  poll();
}

function rest() {
  line.stop();
  clearTimeout(timers.poll);
}

/** Ask at once, whatever the pause. */
export function poll() {
  clearTimeout(timers.poll);
  timers.poll = -1;
  askStatus().then((pause) => {
    if (timers.poll === -1 && !document.hidden) timers.poll = setTimeout(poll, pause);
    changed();
  });
}

async function askStatus() {
  try {
    if (!state.who) state.who = await api.get("/v1/whoami");
    state.status = await api.get("/v1/status");
    state.statusAt = now();
    const back = state.failedSince > 0 || state.locked || !state.bundles;
    state.failedSince = 0;
    state.locked = false;
    if (back) await catchUp();
    if (now() - windowsAt > WINDOWS_EVERY_MS) await askWindows();
    if (!line.open) await Promise.all([askResults(), askOperations()]);
    return POLL_MS;
  } catch (error) {
    return failed(error);
  }
}

async function failed(error) {
  if (error instanceof api.Refusal && error.status === 401) {
    if (session.hasToken()) {
      session.keepToken("");
      state.who = null;
      state.signedOut = error;
      return 0;
    }
    state.locked = true;
    return POLL_MS * 2;
  }
  const first = state.failedSince === 0;
  if (first) state.failedSince = now();
  const pause = Math.min(PAUSE_MS_MAX, Math.max(1000, (now() - state.failedSince) / 2));
  state.nextTryAt = now() + pause;
  return pause;
}

/** After a pause of any kind: what was missed. */
async function catchUp() {
  windowsAt = -Infinity;
  state.who = await api.get("/v1/whoami");
  await Promise.all([askBundles(), askResults(), askOperations()]);
}

async function askBundles() {
  state.bundles = await api.get("/v1/bundles");
}

async function askOperations() {
  const found = await api.get("/v1/operations");
  for (const one of found.reverse()) takeOperation(one);
}

async function askResults() {
  const name = slot()?.slot;
  if (!name) return;
  const page = await api.get(`/v1/results?slot=${encodeURIComponent(name)}&limit=${RESULTS_KEPT}`);
  const found = page.results;
  state.results.set(name, found);
  const bad = found.filter((one) => one.outcome !== "OK").pop();
  if (bad) state.lastBad.set(name, bad);
}

async function askWindows() {
  const name = slot()?.slot;
  if (!name) return;
  windowsAt = now();
  state.windows.set(name, await api.get(`/v1/windows?slot=${encodeURIComponent(name)}&since_s=3600&seconds=60`));
}

/** Do something soon and once, however often it is asked for. */
function soon(name, work, wait = 300) {
  timers[name] = timers[name] || setTimeout(async () => {
    timers[name] = 0;
    try {
      await work();
    } catch {
      // the status poll meets the same trouble and says it
    }
    changed();
  }, wait);
}

export function chooseSlot(name) {
  state.slotName = name;
  windowsAt = -Infinity;
  soon("results", askResults, 0);
  poll();
}

// --- being told -------------------------------------------------------------------------------------------------------

function lineOpened() {
  soon("results", askResults, 0);
  soon("operations", askOperations, 0);
}

function heard(event) {
  const data = event.data;
  if (event.type === "result") takeResult(data.slot, data.result);
  else if (event.type === "operation") takeOperation(data);
  else soon("status", async () => poll(), 100);
  if (event.type === "bundle" || event.type === "slot") soon("bundles", askBundles);
  changed();
}

function takeResult(name, result) {
  const kept = state.results.get(name) || [];
  if (kept.length && result.sequence < kept[kept.length - 1].sequence) kept.length = 0; // the process was started anew
  kept.push(result);
  if (kept.length > RESULTS_KEPT) kept.splice(0, kept.length - RESULTS_KEPT);
  state.results.set(name, kept);
  if (result.outcome !== "OK") state.lastBad.set(name, result);
}

/** Work is over when it neither goes on nor waits for people. */
export const over = (operation) => !["running", "awaiting_approval"].includes(operation.state);

export function takeOperation(operation) {
  const before = state.operations.get(operation.id);
  if (before && over(before) && !over(operation)) return; // an older word came later
  state.operations.delete(operation.id);
  state.operations.set(operation.id, operation);
  if (state.operations.size > 200) state.operations.delete(state.operations.keys().next().value);
  if (over(operation) && before && !over(before)) {
    soon("bundles", askBundles);
    soon("status", async () => poll(), 0);
    soon("status_again", async () => poll(), 800); // what runs is told by the slot's process, twice a second
  }
  changed();
}

// --- who --------------------------------------------------------------------------------------------------------------

/** Take a token if the device knows it. Raises: Refusal, Unreachable; then everything is as before. */
export async function signIn(token) {
  state.who = await api.get("/v1/whoami", { token });
  session.keepToken(token);
  restart();
}

export function signOut() {
  session.keepToken("");
  state.who = null;
  state.bundles = null;
  restart();
}

/** Ask everything anew, as whoever this is now. */
export function restart() {
  state.who = null;
  line.stop();
  wake();
}
