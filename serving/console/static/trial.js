/** What a correction would change, side by side, as a dry run answers. */

import { h, table } from "./dom.js";
import { difference, editLink, score, several } from "./format.js";

const SCORES = { efficacy: "own edits answered", retention: "earlier edits kept", locality: "other answers unchanged", ppl_ratio: "perplexity, relative" };

/** Show the answer of `POST /v1/edits?dry_run=true` to one edit. */
export function tried(found) {
  const [one] = found.edits;
  return h("div", { class: "trial" }, h("h3", {}, `Tried on version ${found.head}; nothing was published`), verdictOf(one), beside(one), found.guard.map(guarded), neighbours(found.neighbours));
}

function verdictOf(one) {
  if (one.state === "rejected") {
    return h("div", { class: "problem" }, h("p", {}, `It would be refused: ${one.reason}`), one.code && h("p", { class: "hint" }, "code ", h("code", {}, one.code)));
  }
  return [
    one.changed === false && h("p", { class: "ok" }, "The model says so already."),
    one.contradicts?.length > 0 && h("p", { class: "warn" }, "It contradicts ", one.contradicts.map((id) => [editLink(id), " "])),
  ];
}

function beside(one) {
  const isKnown = one.before !== undefined && one.after !== undefined;
  const columns = [
    ["Unedited", one.unedited],
    ["Now", one.before],
    [one.state === "rejected" ? "After, instead" : "After", isKnown ? difference(one.before, one.after).filter((part) => part.localName !== "del") : one.after],
  ];
  return sideBySide(columns);
}

/** Show texts beside each other under their titles, those that are known. */
export function sideBySide(columns) {
  const shown = columns.filter(([, text]) => text !== undefined && text !== null);
  return shown.length > 0 && h("div", { class: "beside" }, shown.map(([title, text]) => h("div", {}, h("h4", {}, title), h("p", {}, text))));
}

function guarded(one) {
  const rows = Object.keys(SCORES).filter((name) => typeof one.scores[name] === "number").map((name) => `${SCORES[name]} ${score(one.scores[name])}`);
  const messages = [...one.breaches.map(({ message }) => [message, "bad"]), ...one.warnings.map((text) => [text, "warn"])];
  return [messages.map(([text, tone]) => h("p", { class: tone }, text)), rows.length > 0 && h("p", { class: "hint" }, `The guard: ${rows.join(" · ")}`)];
}

/** List the other answers that would change: those of edits that hold, and of questions that no edit may change. */
export function neighbours(found) {
  const edits = found.edits.map((one) => [one.prompt, one.before, { text: [one.after, one.lost && " (lost)"], class: one.lost ? "bad" : "warn" }]);
  const probes = found.probes.map((one) => [one.prompt, one.before, { text: one.after, class: "warn" }]);
  const asked = `${several(found.num_edits_asked, "edit")} of ${found.num_edits} and ${several(found.num_probes, "other question")} asked`;
  const rows = [...edits, ...probes];
  if (!rows.length) return h("p", { class: "ok" }, `No other answer would change: ${asked}.`);
  return [table(`${several(rows.length, "other answer")} would change`, ["question", "now", "after"], rows), h("p", { class: "hint" }, `${asked}.`)];
}
