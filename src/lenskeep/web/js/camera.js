// The live picture. It is never older than it says: every picture carries its age at the device, the time since it came
// is added here, and what is too old is hatched and stamped. The overlay is drawn on the device.

import { Refusal, ask } from "./api.js";
import { now, slot, state } from "./device.js";
import { byId, mark, options, say, show } from "./dom.js";
import { known, number, plain, span, t } from "./text.js";

const PICTURE_EVERY_MS = 250; // at most 4 a second: watching must not cost the line its deadline
const LIVE_MS_MAX = 2000;
const PAUSE_MS = 1500;

const view = { camera: "", pictureOf: "", ageMs: 0, cameAt: 0, ref: "", fault: null, frozen: false, ending: null };

export function begin() {
  byId("camera-choice").addEventListener("change", (event) => choose(event.target.value));
  byId("freeze").addEventListener("click", () => {
    view.frozen = !view.frozen;
    paint();
  });
  document.addEventListener("visibilitychange", () => document.hidden && view.ending?.abort());
  watch();
}

function choose(name) {
  view.camera = name;
  view.pictureOf = "";
  view.fault = null;
  view.ending?.abort();
  paint();
}

async function watch() {
  for (;;) {
    const begun = now();
    const wanted = !document.hidden && !view.frozen && view.camera && !state.failedSince && document.body.dataset.view === "run";
    const came = wanted ? await fetchOne(view.camera) : true;
    const pause = came ? PICTURE_EVERY_MS - (now() - begun) : PAUSE_MS;
    await new Promise((resolve) => setTimeout(resolve, Math.max(20, pause)));
  }
}

async function fetchOne(camera) {
  view.ending = new AbortController();
  try {
    const read = async (answer) => {
      const cameAt = now();
      const headers = answer.headers;
      return { cameAt, headers, image: await createImageBitmap(await answer.blob()) };
    };
    const path = `/v1/cameras/${encodeURIComponent(camera)}/snapshot.jpg`;
    const { cameAt, headers, image } = await ask(path, { signal: view.ending.signal, read });
    if (camera !== view.camera || view.frozen) return true;
    draw(image);
    view.pictureOf = camera;
    view.ageMs = Number(headers.get("X-Frame-Age-Ms")) || 0;
    view.cameAt = cameAt;
    view.ref = headers.get("X-Model-Version") || "";
    view.fault = null;
    paint();
    return true;
  } catch (error) {
    view.fault = error instanceof Refusal ? error : null;
    return false;
  }
}

function draw(image) {
  const canvas = byId("picture");
  if (canvas.width !== image.width || canvas.height !== image.height) {
    canvas.width = image.width;
    canvas.height = image.height;
  }
  canvas.getContext("2d").drawImage(image, 0, 0);
  image.close();
}

export function paint() {
  const cameras = slot()?.cameras || [];
  if (cameras.length && !cameras.some((one) => one.name === view.camera)) choose(cameras[0].name);
  const camera = cameras.find((one) => one.name === view.camera);
  show(byId("camera-pick"), cameras.length > 1);
  options(byId("camera-choice"), cameras.map((one) => [one.name, `${one.name} · ${known("camera", one.state)}`]), view.camera);
  say(byId("camera-facts"), camera ? facts(camera) : "");
  say(byId("freeze"), t(view.frozen ? "camera.live" : "camera.freeze"));
  mark(byId("freeze"), "aria-pressed", String(view.frozen));
  show(byId("freeze"), view.pictureOf !== "");
  paintPicture(camera);
}

function facts(camera) {
  const drops = Object.values(camera.drops).reduce((sum, count) => sum + count, 0);
  return [
    camera.state === "running" ? t("camera.fps", { fps: number(camera.fps, 1) }) : known("camera", camera.state),
    camera.width_px ? `${camera.width_px}×${camera.height_px}` : "",
    drops ? t("camera.drops", { n: number(drops) }) : "",
    camera.reconnects ? t("camera.reconnects", { n: number(camera.reconnects) }) : "",
  ].filter(Boolean).join(" · ");
}

function paintPicture(camera) {
  const has = view.pictureOf !== "" && view.pictureOf === view.camera;
  const ageMs = has ? view.ageMs + now() - view.cameAt : 0;
  const old = has && (view.frozen || ageMs > LIVE_MS_MAX);
  show(byId("picture"), has);
  show(byId("blank"), !has);
  show(byId("stamp"), old);
  mark(byId("screen"), "data-old", old);
  mark(byId("picture"), "aria-label", has ? t(old ? "camera.alt_old" : "camera.alt", { name: plain(view.camera) }) : "");
  if (old) say(byId("stamp"), stamp(camera, ageMs));
  if (!has) say(byId("blank"), reason(camera) || t("camera.wait"));
  say(byId("frame-age"), has ? t("camera.age", { age: ageMs < 1000 ? `${number(ageMs)} ms` : span(ageMs / 1000) }) : "");
  mark(byId("frame-age"), "data-bad", old && !view.frozen);
}

function stamp(camera, ageMs) {
  const age = span(ageMs / 1000);
  if (view.frozen) return t("camera.frozen_here", { age });
  const why = reason(camera);
  return `${t("camera.old", { age })}${why ? ` · ${why}` : ""}`;
}

/** Why there is no fresh picture, most telling cause first. */
function reason(camera) {
  if (state.failedSince) return t("camera.no_device");
  if (!state.status) return "";
  if (!camera) return t("camera.none");
  if (camera.state !== "running") {
    const said = plain(camera.message);
    return [t(`camera.is_${camera.state}`), camera.code, said].filter(Boolean).join(" · ");
  }
  if (!slot()?.active) return t("camera.no_model");
  return view.fault ? `${view.fault.code} ${plain(view.fault.message)}`.trim() : "";
}
