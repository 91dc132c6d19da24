/** The import of a file: what is in it and what is wrong is shown first; posts go in batches, and their states are followed. */

import { get, post, randomKey } from "./api.js";
import { button, dialog, fill, h, table } from "./dom.js";
import { asked, count, several, state } from "./format.js";
import { live } from "./live.js";
import { readRecords } from "./records.js";
import { session } from "./session.js";

const MAX_POSTED = 200; // Edits of a post.
const MAX_BYTES = 400_000; // Of a post's edits, below the default of `max_body_bytes`.
const MAX_FILE = 64 * 2 ** 20;
const SHOWN = 50;
const PERIOD_MS = 1_500;
const ASKED = 20; // Open edits in a period; edits are made in the order of their posts.

/** Open the dialog. */
export function importFile() {
  const stop = new AbortController();
  return dialog("Import edits", (body, close) => choose(body, close, stop)).then(() => stop.abort());
}

function choose(body, close, stop) {
  const file = h("input", { type: "file", accept: ".json,.jsonl,.ndjson,.csv,.tsv,.txt", id: "import-file" });
  const problem = h("p", { class: "fault", role: "alert" });
  const read = async (chosen) => {
    if (!chosen) return;
    try {
      if (chosen.size > MAX_FILE) throw new SyntaxError("the file is larger than 64 MiB: use `errata import`");
      preview(body, close, stop, chosen.name, readRecords(await chosen.text(), session.fields));
    } catch (fault) {
      if (!(fault instanceof SyntaxError)) throw fault;
      fill(problem, `${chosen.name}: ${fault.message}`);
    }
  };
  file.addEventListener("change", () => read(file.files[0]));
  const zone = h("div", { class: "drop" }, h("label", { for: file.id }, "JSON lines, a JSON list or CSV, with a question or prompt and a target"), file);
  zone.addEventListener("dragover", (event) => event.preventDefault());
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    read(event.dataTransfer.files[0]);
  });
  fill(body, zone, problem, h("div", { class: "tools" }, button("Cancel", close)));
}

function faultTable(faulty) {
  if (!faulty.length) return null;
  const rows = faulty.slice(0, SHOWN).map((one) => [`${one.line}`, { text: one.faults.join("; "), class: "bad" }, one.edit ? asked(one.edit) : ""]);
  const more = faulty.length > SHOWN && h("p", { class: "hint" }, `and ${count(faulty.length - SHOWN)} more`);
  return [table("What is wrong", ["record", "fault", "question"], rows), more];
}

function preview(body, close, stop, name, { records, left }) {
  const good = records.filter((one) => !one.faults.length);
  const faulty = records.filter((one) => one.faults.length);
  const rows = good.slice(0, 8).map((one) => [asked(one.edit), one.edit.target, one.edit.subject ?? ""]);
  const start = button(`Import ${several(good.length, "edit")}`, () => run(body, close, stop, good, faulty), "primary", { "data-start": true });
  start.disabled = !good.length;
  fill(
    body,
    h("p", {}, h("strong", {}, name), `: ${several(records.length, "record")}, `, h("span", { class: faulty.length ? "bad" : "ok" }, several(faulty.length, "fault"))),
    faultTable(faulty),
    left.length > 0 && h("p", { class: "hint" }, `Not posted, because only training and scoring need it: ${left.join(", ")}`),
    rows.length > 0 && table(good.length > 8 ? "The first of them" : "Edits", ["question", "right answer", "subject"], rows),
    h("div", { class: "tools" }, start, button("Another file", () => choose(body, close, stop)), button("Cancel", close, "quiet")),
  );
  start.focus();
}

/** Divide records into posts, by number and size. */
function batches(records) {
  const found = [];
  let size = Infinity;
  for (const one of records) {
    const bytes = new Blob([JSON.stringify(one.edit)]).size;
    if (size + bytes > MAX_BYTES || found.at(-1).length >= MAX_POSTED) {
      found.push([]);
      size = 0;
    }
    found.at(-1).push(one);
    size += bytes;
  }
  return found;
}

async function run(body, close, stop, good, faulty) {
  const progress = { good, faulty: [...faulty], byId: new Map(), states: new Map(), posted: 0, fault: "", isPosted: false };
  progress.bar = h("progress", { max: good.length, value: 0, "aria-label": "Edits settled" });
  progress.text = h("p", { role: "status" });
  const halt = button("Stop", () => stop.abort());
  progress.outcome = h("div", {});
  fill(body, progress.bar, progress.text, progress.outcome, h("div", { class: "tools" }, halt));
  const listening = new AbortController();
  live.on("edit", (event) => settled(progress, event), listening.signal);
  draw(progress);
  try {
    for (const batch of batches(good)) await send(progress, batch, stop.signal);
    progress.isPosted = true;
    await wait(progress, stop.signal);
  } catch (fault) {
    if (fault.name !== "AbortError") progress.fault = fault.message;
  }
  listening.abort();
  finished(body, close, progress);
}

/** Post a batch; edits that the service finds at fault are left out, and a full queue is waited for. */
async function send(progress, batch, signal) {
  let [rest, key] = [batch, randomKey()];
  while (rest.length) {
    if (signal.aborted) throw new DOMException("stopped", "AbortError");
    try {
      const { ids, edits } = await post("v1/edits", { edits: rest.map((one) => one.edit) }, { headers: { "Idempotency-Key": key }, signal });
      ids.forEach((id, index) => {
        progress.byId.set(id, rest[index]);
        settled(progress, edits[index]);
      });
      progress.posted += ids.length;
      return draw(progress);
    } catch (fault) {
      if (fault.name === "AbortError") throw fault;
      const retry = [0, 429, 503].includes(fault.status);
      if (retry) await pause(Number(fault.retryAfter ?? 2) * 1e3, signal);
      else [rest, key] = [leftOut(progress, rest, fault), randomKey()];
    }
  }
}

/** Move the records at fault to the faults, and return the others. Throws the fault if it names none of them. */
function leftOut(progress, batch, fault) {
  const wrong = new Map(fault.faults.filter((one) => Number.isInteger(one.edit)).map((one) => [one.edit, one]));
  if (!wrong.size) throw fault;
  for (const [index, one] of wrong) {
    progress.faulty.push({ ...batch[index], faults: [[one.field, one.reason].filter(Boolean).join(": ")] });
  }
  progress.good = progress.good.filter((one) => ![...wrong.keys()].some((index) => batch[index] === one));
  draw(progress);
  return batch.filter((_, index) => !wrong.has(index));
}

const pause = (ms, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });

const isOpen = (one) => ["queued", "applying"].includes(one.state);

function settled(progress, entry) {
  if (!progress.byId.has(entry.id)) return;
  progress.states.set(entry.id, entry);
  draw(progress);
}

/** Wait until no edit is open. Events say so; those that came before the answer to their post, or never, are asked for. */
async function wait(progress, signal) {
  for (;;) {
    const open = [...progress.states.values()].filter(isOpen);
    if (!open.length) return;
    await pause(PERIOD_MS, signal);
    for (const { id } of open.slice(0, ASKED)) {
      const entry = isOpen(progress.states.get(id)) && (await get(`v1/edits/${id}`, { signal }).catch(() => null));
      if (entry) settled(progress, entry);
    }
  }
}

function draw(progress) {
  const entries = [...progress.states.values()];
  const done = entries.filter((one) => !isOpen(one)).length;
  progress.bar.max = Math.max(1, progress.good.length);
  progress.bar.value = done;
  const rejected = entries.filter((one) => one.state === "rejected").length;
  const parts = [`${count(done)} of ${count(progress.good.length)} settled`, `${count(progress.posted)} posted`];
  fill(progress.text, parts.join(", "), rejected > 0 && h("span", { class: "bad" }, `, ${count(rejected)} rejected`));
}

async function finished(body, close, progress) {
  const entries = [...progress.states.values()];
  const applied = entries.filter((one) => one.state === "applied").length;
  const refused = entries.filter((one) => one.state === "rejected").slice(0, SHOWN);
  const whole = await Promise.all(refused.map((one) => get(`v1/edits/${one.id}`).catch(() => one)));
  const rows = whole.map((one) => [String(progress.byId.get(one.id).line), state(one), { text: one.reason ?? "", class: "bad" }, one.says ?? ""]);
  fill(
    progress.outcome,
    progress.fault && h("p", { class: "fault", role: "alert" }, progress.fault),
    h("p", { class: applied ? "ok" : "" }, `${several(applied, "edit")} applied`, entries.length > applied && `, ${count(entries.length - applied)} not`),
    rows.length > 0 && table("Rejected", ["record", "state", "reason", "the model says"], rows),
    faultTable(progress.faulty),
  );
  fill(body.querySelector(".tools:last-child"), button("Close", close, "primary"));
}
