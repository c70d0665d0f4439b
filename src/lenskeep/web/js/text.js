// Words and numbers in the reader's language. A catalogue is a flat JSON file; English fills what another one lacks.

export const LANGUAGES = ["en", "de", "es", "zh"];
const KEPT_AS = "lenskeep.language";

let language = "en";
let english = {};
let words = {};

export function currentLanguage() {
  return language;
}

/** Load the language chosen here before, else the browser's, else English. */
export async function begin() {
  english = await catalogue("en");
  const asked = (navigator.languages || []).map((tag) => tag.slice(0, 2)).find((tag) => LANGUAGES.includes(tag));
  await choose(remembered() || asked || "en", false);
}

export async function choose(code, keep = true) {
  words = code === "en" ? english : await catalogue(code);
  language = code;
  if (keep) remember(code);
  document.documentElement.lang = code === "zh" ? "zh-Hans" : code;
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
}

async function catalogue(code) {
  const answer = await fetch(`/i18n/${code}.json`);
  return answer.ok ? answer.json() : {};
}

function remembered() {
  try {
    const code = localStorage.getItem(KEPT_AS);
    return LANGUAGES.includes(code) ? code : "";
  } catch {
    return ""; // storage is switched off; the choice lasts as long as the page
  }
}

function remember(code) {
  try {
    localStorage.setItem(KEPT_AS, code);
  } catch {
    // as above
  }
}

/** The sentence of a key, with `{name}` filled from `values`. A key that nobody has written shows itself. */
export function t(key, values = {}) {
  const sentence = words[key] ?? english[key] ?? key;
  return sentence.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** Like `t`, but says the bare word when the device names something that this page does not know yet. */
export function known(prefix, word) {
  const key = `${prefix}.${word}`;
  return words[key] ?? english[key] ?? plain(word);
}

// Control characters and what turns the writing direction have no business in a name or a reason.
const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** Text that came from a bundle or a camera: one line, nothing invisible, not endless. */
export function plain(value, length = 400) {
  const text = String(value ?? "").replace(/[\t\n\v]+/g, " ").replace(INVISIBLE, "\ufffd");
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
}

export function number(value, digits = 0) {
  return value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function milliseconds(value) {
  return number(value, value < 10 ? 1 : 0);
}

export function percent(ratio) {
  return `${number(ratio * 100, ratio > 0 && ratio < 0.1 ? 1 : 0)} %`;
}

export function bytes(count) {
  const [unit, scale] = [["kB", 1e3], ["MB", 1e6], ["GB", 1e9]].reduce((best, one) => (count >= one[1] ? one : best));
  return `${number(count / scale, scale > 1e3 && count < scale * 10 ? 1 : 0)} ${unit}`;
}

/** A duration in its largest sensible unit. */
export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 120) return t("span.s", { n: number(s) });
  if (s < 7200) return t("span.min", { n: number(Math.round(s / 60)) });
  if (s < 172800) return t("span.h", { n: number(Math.round(s / 3600)) });
  return t("span.d", { n: number(Math.round(s / 86400)) });
}

/** A moment of the device's clock, in local time: the time alone when it is today. Nothing for the year 1970. */
export function moment(value, seconds = false) {
  const at = new Date(value);
  if (Number.isNaN(at.getTime()) || at.getTime() < 86400000) return "";
  const time = { hour: "2-digit", minute: "2-digit", hour12: false, ...(seconds ? { second: "2-digit" } : {}) };
  const today = new Date().toDateString() === at.toDateString();
  return at.toLocaleString(language, today ? time : { day: "numeric", month: "short", year: "numeric", ...time });
}
