// A bundle file from a stick or a disk: sent with its progress, verified by the device, tried by the device.

import { Refusal, get, upload } from "./api.js";
import { progressOf } from "./actions.js";
import * as device from "./device.js";
import { signIn, whyNot } from "./dialog.js";
import { arm, armed, byId, h, mark, say, show } from "./dom.js";
import { problemNode } from "./notice.js";
import { bytes, number, plain, t } from "./text.js";

const job = { file: null, sent: 0, going: null, operation: "", ref: "", shown: "" };

export function begin() {
  byId("file").addEventListener("change", (event) => take(event.target.files[0]));
  byId("import-form").addEventListener("submit", (event) => (event.preventDefault(), begun()));
  byId("import-stop").addEventListener("click", () => job.going?.stop());
  const drop = byId("drop");
  for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => hover(event, true));
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, (event) => hover(event, false));
  drop.addEventListener("drop", (event) => take(event.dataTransfer.files[0]));
  // a file that misses the field must not replace the page
  for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
}

function hover(event, over) {
  event.preventDefault();
  byId("drop").classList.toggle("over", over);
}

function take(file) {
  if (!file || job.going) return;
  Object.assign(job, { file, sent: 0, operation: "", ref: "", shown: "" });
  byId("import-said").replaceChildren();
  paint();
}

async function begun() {
  if (!armed(byId("import-send"))) {
    if (whyNot("bundles") && device.state.who?.anonymous) await signIn(whyNot("bundles"));
    return;
  }
  byId("import-said").replaceChildren();
  Object.assign(job, { operation: "", ref: "", shown: "" });
  job.going = upload("/v1/imports", job.file, (sent) => {
    job.sent = sent;
    paint();
  });
  paint();
  try {
    const operation = await job.going.done;
    Object.assign(job, { operation: operation.id, ref: operation.subject });
    device.takeOperation(operation);
    await sayVerified(operation.subject);
  } catch (error) {
    byId("import-said").replaceChildren(problemNode(error, { unchanged: error instanceof Refusal }));
  } finally {
    job.going = null;
    job.sent = 0;
    paint();
  }
}

async function sayVerified(ref) {
  const { bundle } = await get(`/v1/bundles/${encodeURIComponent(ref)}`);
  byId("import-said").replaceChildren(
    h("p", {}, t("import.verified", { ref: plain(ref), signer: plain(bundle.signer, 64) })),
    h("p", { class: "small" }, t("import.digest"), " ", h("code", {}, bundle.digest)),
    h("div", { id: "import-trial" }),
  );
}

export function paint() {
  const sending = job.going !== null;
  say(byId("drop-text"), job.file ? `${plain(job.file.name, 100)} · ${bytes(job.file.size)}` : t("import.choose"));
  const reason = whyNot("bundles");
  arm(byId("import-send"), sending ? t("why.busy") : reason || (job.file ? "" : t("import.no_file")), byId("import-why"));
  show(byId("import-stop"), sending);
  byId("file").disabled = sending;
  const operation = device.state.operations.get(job.operation);
  const trying = operation?.state === "running";
  show(byId("import-progress"), sending || trying);
  if (sending) paintSending();
  else if (trying) paintTrial(operation);
  if (operation && !trying) sayEnd(operation);
}

function paintSending() {
  const share = job.file.size ? job.sent / job.file.size : 0;
  const sent = { sent: bytes(job.sent), total: bytes(job.file.size), share: number(share * 100) };
  say(byId("import-stage"), t(job.sent < job.file.size ? "import.sending" : "import.verifying", sent));
  mark(byId("import-bar"), "value", job.sent < job.file.size ? share : null);
}

function paintTrial(operation) {
  const { text, share } = progressOf(operation);
  say(byId("import-stage"), t("import.trying", { stage: text }));
  mark(byId("import-bar"), "value", share);
}

function sayEnd(operation) {
  const node = byId("import-trial");
  if (!node || job.shown === operation.id) return;
  job.shown = operation.id;
  if (operation.error) node.replaceChildren(problemNode(operation.error, { unchanged: true }));
  else node.replaceChildren(h("p", {}, t("import.passed", { ref: plain(operation.subject) })));
}
