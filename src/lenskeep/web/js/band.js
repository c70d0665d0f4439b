// The band at the top: the verdict, what runs, where, and who looks.

import { age, slot, stale, state } from "./device.js";
import { byId, mark, say, show } from "./dom.js";
import { known, moment, plain, span, t } from "./text.js";
import { whyNot } from "./dialog.js";

const VERDICTS = ["RUNNING", "DEGRADED", "STOPPED", "EMPTY"];

export function paint() {
  const verdict = VERDICTS.includes(state.status?.verdict) ? state.status.verdict : "UNKNOWN";
  const old = stale();
  mark(byId("band"), "data-verdict", verdict);
  mark(byId("band"), "data-stale", old);
  mark(byId("band-icon"), "href", `#i-${old ? "UNKNOWN" : verdict}`);
  say(byId("band-word"), state.locked ? t("verdict.LOCKED") : word(verdict, old));
  paintRunning();
  paintPlace();
  const anonymous = !state.who || state.who.anonymous;
  say(byId("person-text"), anonymous ? t("sign.read_only") : known("role", state.who.role));
  mark(byId("person"), "title", anonymous ? whyNot("rollback") : t("sign.as", { name: plain(state.who.name, 80), role: known("role", state.who.role) }));
  const device = plain(state.status?.device, 64);
  const title = [state.status && !old ? t(`verdict.${verdict}`) : "", device, "Lenskeep"].filter(Boolean).join(" · ");
  if (document.title !== title) document.title = title;
}

function word(verdict, old) {
  if (!state.status) return state.failedSince ? t("verdict.UNREACHABLE") : t("verdict.WAIT");
  return old ? t("verdict.STALE", { word: t(`verdict.${verdict}`) }) : t(`verdict.${verdict}`);
}

function paintRunning() {
  const now = slot();
  if (!now) {
    say(byId("band-ref"), state.status ? t("band.no_slot") : "");
    say(byId("band-facts"), state.status ? t("band.no_slot_next") : "");
    return;
  }
  say(byId("band-ref"), now.active ? plain(now.active, 130) : t("band.no_model"));
  const since = now.active ? moment(now.since) : "";
  const facts = [
    now.active && now.signer ? t("band.signed", { name: plain(now.signer, 64) }) : "",
    since ? t("band.since", { at: since }) : "",
    now.pinned ? t("band.pinned") : "",
    now.active ? "" : t("band.no_model_next"),
  ];
  say(byId("band-facts"), facts.filter(Boolean).join(" · "));
}

function paintPlace() {
  const { status } = state;
  say(byId("band-device"), plain(status?.device, 64));
  say(byId("band-clock"), status ? t(status.clock_trusted ? "clock.good" : "clock.bad") : "");
  mark(byId("band-clock"), "data-bad", status && !status.clock_trusted);
}

/** The line below the band when the device does not answer. */
export function paintLink() {
  const lost = state.failedSince > 0;
  const quiet = !lost && stale();
  show(byId("link"), lost || quiet || state.locked);
  show(byId("link-retry"), lost);
  if (state.locked) {
    say(byId("link-text"), t("link.locked"));
    say(byId("link-age"), "");
  } else if (lost || quiet) {
    say(byId("link-text"), state.status ? t("link.lost") : t("link.never"));
    const next = Math.max(0, Math.ceil((state.nextTryAt - performance.now()) / 1000));
    const parts = [
      state.status ? t("link.age", { age: span(age()) }) : "",
      lost ? (next > 0 ? t("link.next", { n: next }) : t("link.trying")) : "",
    ];
    say(byId("link-age"), parts.filter(Boolean).join(" · "));
  }
}
