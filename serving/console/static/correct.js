/** The form of a correction: filled in from an answer, tried without publishing, published or proposed, and followed. */

import { events, get, post, randomKey } from "./api.js";
import { area, button, facts, field, fill, h, notify } from "./dom.js";
import { difference, state, versionLink } from "./format.js";
import { live } from "./live.js";
import { revertDialog } from "./moves.js";
import { may, session } from "./session.js";
import { sideBySide, tried } from "./trial.js";

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

/**
 * Make the form. `question` was asked after the messages `before`, and the model `says` something else. `onPublished` gets the
 * version of an edit that was applied; `values` fills in other fields.
 */
export function correction({ question, before = [], says = "", values = {}, onPublished = () => {}, signal }) {
  const controls = makeControls(question, before, says, values);
  const outcome = h("div", { class: "outcome", "aria-live": "polite" });
  const form = h("form", { class: "card correction", "aria-label": "Correction" });
  const parts = { form, controls, outcome, before, onPublished, signal };
  const tools = h(
    "div",
    { class: "tools" },
    session.hasDryRun && button("Try it", () => tryIt(parts), "", { "data-try": true }),
    may("edit") && h("button", { class: "primary" }, "Publish"),
    may("edit") ? button("Propose", () => propose(parts), "", { title: "Let someone else decide" }) : h("button", { class: "primary" }, "Propose"),
    button("Discard", () => form.remove(), "quiet"),
  );
  parts.tools = tools;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    may("edit") ? publish(parts) : propose(parts);
  });
  form.addEventListener("keydown", (event) => event.key === "Escape" && form.remove());
  fill(form, h("h3", {}, "Correct this answer"), layout(controls), tools, outcome);
  return form;
}

function makeControls(question, before, says, values) {
  const isChat = session.form === "chat";
  const context = before.length > 0 && h("input", { type: "checkbox" });
  return {
    isChat,
    question: area(question, { required: true, name: "question" }),
    says: says && h("p", { class: "quoted" }, says),
    target: h("input", { required: true, name: "target", "data-first": true, autocomplete: "off", value: values.target ?? "" }),
    subject: h("input", { name: "subject", autocomplete: "off", value: values.subject ?? guessedSubject(question) }),
    answer: isChat && area(values.answer ?? "", { name: "answer" }),
    rephrasings: area((values.rephrasings ?? []).join("\n"), { name: "rephrasings" }),
    aliases: area((values.aliases ?? []).join("\n"), { name: "aliases" }),
    source: session.fields.has("source") && h("input", { name: "source", value: values.source ?? "" }),
    valid_from: session.fields.has("valid_from") && h("input", { name: "valid_from", type: "date", value: values.valid_from ?? "" }),
    valid_to: session.fields.has("valid_to") && h("input", { name: "valid_to", type: "date", value: values.valid_to ?? "" }),
    reason: session.fields.has("reason") && h("input", { name: "reason", value: values.reason ?? "" }),
    context,
  };
}

function layout(controls) {
  const { context } = controls;
  const more = h(
    "div",
    { class: "grid" },
    field("Subject", controls.subject, "What the fact is about, as it is spelt in the question."),
    controls.answer && field("Whole answer", controls.answer, "The sentence to say, with the right answer in it. Empty: one is made."),
    field("Other wordings of the question", controls.rephrasings, "One a line."),
    field("Also right", controls.aliases, "Other names of the right answer, one a line."),
    controls.source && field("Source", controls.source, "Where it is written: an address or a note."),
    controls.valid_from && field("Valid from", controls.valid_from, "The first day on which it holds."),
    controls.valid_to && field("Valid to", controls.valid_to, "The first day on which it does not hold any more."),
    controls.reason && field("Reason", controls.reason, "Why it is corrected."),
  );
  return [
    h("div", { class: "grid" }, field("Question", controls.question), field("Right answer", controls.target, "Only the fact: Abuja, +234.")),
    controls.says && h("div", { class: "field" }, h("span", { class: "label" }, "The model said"), controls.says),
    context && h("label", { class: "check" }, context, "only after the earlier messages of this conversation"),
    h("details", { open: true }, h("summary", {}, "More about it"), more),
  ];
}

/** Guess the subject: the longest run of words with a capital letter that does not begin the question. */
function guessedSubject(question) {
  const runs = question.slice(1).match(/(?<=\s)\p{Lu}[\p{L}\p{N}'’.-]*(?:\s+(?:of|the|de|la|and)\s+\p{Lu}[\p{L}'’-]*|\s+\p{Lu}[\p{L}\p{N}'’-]*)*/gu) ?? [];
  const longest = runs.reduce((best, run) => (run.length > best.length ? run : best), "");
  return longest.replace(/[.?!,;:]+$/, "");
}

/** Return the edit as the routes take it. */
function editOf({ controls, before }) {
  const { isChat, context } = controls;
  const question = controls.question.value;
  const edit = { target: controls.target.value.trim() };
  if (context && context.checked) edit.messages = [...before, { role: "user", content: question }];
  else edit[isChat ? "question" : "prompt"] = question;
  for (const name of ["subject", "answer", "source", "valid_from", "valid_to", "reason"]) {
    const value = controls[name] ? controls[name].value.trim() : "";
    if (value) edit[name] = value;
  }
  for (const name of ["rephrasings", "aliases"]) {
    const given = lines(controls[name].value);
    if (given.length) edit[name] = given;
  }
  return edit;
}

function busy({ tools }, isBusy) {
  for (const one of tools.querySelectorAll("button")) one.disabled = isBusy;
}

async function tryIt(parts) {
  if (!parts.form.reportValidity()) return;
  busy(parts, true);
  fill(parts.outcome, h("p", { class: "busy" }, "Trying it: nothing is published …"));
  try {
    const found = await post("v1/edits?dry_run=true", { edits: [editOf(parts)] });
    parts.unedited = found.edits[0].unedited;
    fill(parts.outcome, tried(found));
  } catch (fault) {
    showFault(parts, fault);
  } finally {
    busy(parts, false);
  }
}

/** Show a refusal; a field at fault is marked, and what the model says instead is quoted. */
function showFault({ outcome, controls }, fault) {
  const faults = fault.faults.length ? fault.faults : [{ field: null, reason: fault.message }];
  for (const one of faults) {
    const control = controls[one.field === "prompt" ? "question" : one.field];
    if (control instanceof HTMLElement && control.matches("input, textarea")) {
      control.setAttribute("aria-invalid", "true");
      control.addEventListener("input", () => control.removeAttribute("aria-invalid"), { once: true });
    }
  }
  const shown = faults.map((one) => [
    h("p", { class: "fault" }, one.field ? `${one.field}: ${one.reason}` : one.reason),
    one.says && h("p", {}, "The model says: ", h("q", {}, one.says)),
  ]);
  fill(outcome, h("div", { role: "alert" }, shown));
}

async function publish(parts) {
  busy(parts, true);
  try {
    const { ids } = await post("v1/edits", { edits: [editOf(parts)] }, { headers: { "Idempotency-Key": randomKey() } });
    await follow(parts, ids[0]);
  } catch (fault) {
    if (fault.name !== "AbortError") showFault(parts, fault);
  } finally {
    busy(parts, false);
  }
}

/** Leave the decision to a reviewer. */
async function propose(parts) {
  if (!parts.form.reportValidity()) return;
  busy(parts, true);
  try {
    const { ids } = await post("v1/proposals", { edits: [editOf(parts)] }, { headers: { "Idempotency-Key": randomKey() } });
    const link = h("a", { href: `#/review/${ids[0]}` }, "See the proposal");
    fill(parts.form, h("p", { class: "ok" }, "Proposed: it changes nothing until a reviewer approves it."), h("div", { class: "tools" }, link));
    notify("Correction proposed");
  } catch (fault) {
    showFault(parts, fault);
    busy(parts, false);
  }
}

/** Show each state of the edit until it is settled, and then the outcome. */
async function follow(parts, id) {
  for await (const { event } of events(`v1/edits/${id}/events`, { signal: parts.signal })) {
    if (event === "lagged" || event === "error") break;
    fill(parts.outcome, h("p", { class: "busy" }, "The correction is ", state({ state: event }), " …"));
  }
  const entry = await settledEntry(id, parts.signal);
  if (entry.state === "applied") applied(parts, entry);
  else showFault(parts, { message: `${entry.state}: ${entry.reason ?? ""}`, faults: [{ field: entry.field, reason: entry.reason ?? entry.state, says: entry.says }] });
}

async function settledEntry(id, signal) {
  for (;;) {
    const entry = await get(`v1/edits/${id}`, { signal });
    if (!["queued", "applying"].includes(entry.state)) return entry;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

function applied(parts, entry) {
  const isNew = entry.changed !== false;
  const text = isNew ? "Published in version " : "The model says so already, in version ";
  const revert = may("admin") && isNew && button("Take it back", () => revertDialog({ edits: [entry.id] }), "small");
  const answers = entry.answers ?? {};
  const pair = entry.answers && sideBySide([["Unedited", parts.unedited], ["Before", answers.before], ["Now", difference(answers.before, answers.after).filter((part) => part.localName !== "del")]]);
  const links = h("div", { class: "tools" }, h("a", { href: `#/edits/${entry.id}` }, "See the edit"), revert);
  fill(parts.form, h("p", { class: "ok" }, text, versionLink(entry.version)), pair, facts([["Right answer", entry.edit.target]]), links);
  notify(`Correction published in version ${entry.version}`);
  live.look().catch(() => {});
  parts.onPublished(entry.version);
}
