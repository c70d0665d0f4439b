// What the page knows of the fleet, and how it asks.

import { get } from "./api.js";
import * as session from "./session.js";

export const state = { who: null, head: null, failedSince: 0 };
const RANK = ["viewer", "auditor", "operator", "admin"];

export async function learnWho() {
  state.who = state.who || (await get("/v1/me"));
}

export function forget() {
  state.who = null;
  state.head = null;
}

export async function signIn(token) {
  state.who = await get("/v1/me", { token }); // refused: nothing is kept
  session.keepToken(token);
}

export function signOut() {
  session.keepToken("");
  forget();
}

export const may = (role) => RANK.indexOf(state.who?.role) >= RANK.indexOf(role);
export const overview = () => get("/v1/fleet/overview");

export function answered() {
  state.failedSince = 0;
}

export function lost() {
  state.failedSince = state.failedSince || performance.now();
}

/** One word for the whole fleet: ALARM for what stands still or is refused, ATTENTION for what is late. */
export function verdict(head) {
  const { silent = 0, refused = 0, behind = 0 } = head.health;
  if (head.alarms || silent || refused) return "ALARM";
  return behind || head.rollouts.paused || head.rollouts.reverting || head.certificates_ending ? "ATTENTION" : "WELL";
}
