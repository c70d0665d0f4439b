// Asking the device. A refusal keeps the device's own words: code, sentence, fix. No answer at all is another thing.

import * as session from "./session.js";
import { t } from "./text.js";

const PATIENCE_MS = 8000;

/** The device answered, and said no. */
export class Refusal extends Error {
  constructor(problem) {
    super(problem.detail || problem.title);
    this.status = problem.status;
    this.code = problem.code || "";
    this.title = problem.title || "";
    this.hint = problem.hint || "";
  }
}

/** Nobody answered. */
export class Unreachable extends Error {}

/**
 * Ask, and return what `read` makes of a good answer, within the caller's patience (0 = endless: a stream).
 * Raises: Refusal, Unreachable.
 */
export async function ask(path, { method = "GET", headers = {}, body, signal, patience = PATIENCE_MS, token, read } = {}) {
  const ending = new AbortController();
  const stop = () => ending.abort();
  const timer = patience ? setTimeout(stop, patience) : 0;
  signal?.addEventListener("abort", stop);
  if (signal?.aborted) stop();
  try {
    const all = session.headers(headers, token);
    const answer = await fetch(path, { method, headers: all, body, signal: ending.signal, cache: "no-store" });
    if (!answer.ok) throw new Refusal(await problemOf(answer));
    return read ? await read(answer) : answer;
  } catch (error) {
    throw error instanceof Refusal ? error : new Unreachable(t("error.unreachable"));
  } finally {
    clearTimeout(timer);
  }
}

export function get(path, more = {}) {
  return ask(path, { ...more, read: (answer) => answer.json() });
}

/** Change something. The key lets the device see that a second tap is the same wish. */
export function send(method, path, body, key = newKey()) {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": key };
  const read = (answer) => (answer.status === 204 ? null : answer.json());
  return ask(path, { method, headers, body: JSON.stringify(body), patience: 30000, read });
}

/** Sixteen random bytes in hex: `crypto.randomUUID` is not there over plain HTTP. */
export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function problemOf(answer) {
  return problemIn(answer.status, await answer.text().catch(() => ""));
}

function problemIn(status, text) {
  try {
    const problem = JSON.parse(text);
    if (problem && typeof problem === "object") return { ...problem, status };
  } catch {
    // not ours: something between here and the device answered
  }
  return { status, title: t("error.http", { status }) };
}

/**
 * Upload a file and tell how far it is; `start.stop()` breaks it off.
 * XMLHttpRequest, because fetch does not tell the progress of what it sends.
 */
export function upload(path, file, progress) {
  const request = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    request.upload.onprogress = (event) => progress(event.loaded, event.total || file.size);
    request.upload.onload = () => progress(file.size, file.size);
    request.onload = () => {
      if (request.status < 300) resolve(JSON.parse(request.responseText));
      else reject(new Refusal(problemIn(request.status, request.responseText)));
    };
    request.onerror = () => reject(new Unreachable(t("error.upload")));
    request.onabort = () => reject(new Unreachable(t("error.upload_stopped")));
  });
  request.open("POST", path);
  const headers = session.headers({ "Content-Type": "application/octet-stream" });
  for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
  request.send(file);
  return { done, stop: () => request.abort() };
}
