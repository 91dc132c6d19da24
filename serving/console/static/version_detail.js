/** One version in detail, and the comparison of two. */

import { get } from "./api.js";
import { button, facts, fill, h, table } from "./dom.js";
import { ago, asked, count, difference, score, seconds, several, versionLink } from "./format.js";
import { live } from "./live.js";
import { changes, revertDialog, rollbackDialog } from "./moves.js";
import { may } from "./session.js";

const SHOWN = 100;
const largest = (byMatrix) => Math.max(...Object.values(byMatrix ?? {}).filter((value) => typeof value === "number"));

// The guard's limits, what they are called, and the value of a scorecard that each bounds.
const LIMITS = {
  perplexity: ["perplexity, relative to the unedited model", (card) => card.ppl_ratio],
  broken: ["broken sentences", (card) => card.broken_sentences],
  forgotten: ["earlier edits lost", (card) => card.lost_retention],
  disturbed: ["other answers changed by this version", (card) => card.lost_locality],
  drift: ["other answers changed in all", (card) => (card.locality === undefined ? card.decided : 1 - card.locality)],
  fires: ["other questions at which a new record decides", (card) => card.fires],
  unanswered: ["own edits not answered", (card) => (card.efficacy === undefined ? undefined : 1 - card.efficacy)],
  change: ["largest change of a matrix", (card) => largest(card.relative_norm)],
  growth: ["largest growth of a matrix", (card) => largest(card.norm_growth)],
};

/** Show in a word what the guard found, or what the version is for. */
export function verdict(version) {
  const card = version.scorecard;
  if (version.version === 0) return h("span", { class: "quiet" }, "the unedited model");
  const warnings = card.warnings?.length ?? 0;
  const mark = warnings ? h("span", { class: "state warn" }, several(warnings, "warning")) : h("span", { class: "state ok" }, "passed");
  const what = card.reverted ? " takes edits out" : card.repaired ? ` makes ${several(card.repaired.length, "edit")} again` : "";
  return [mark, h("span", { class: "quiet" }, what)];
}

/** Show a version; `isNew`: it was chosen just now, and gets the focus. */
export function showVersion(side, version, isNew) {
  const card = version.scorecard;
  const number = version.version;
  const heading = h("h2", { tabindex: -1 }, `Version ${number}`, number === live.head && [" ", h("span", { class: "badge" }, "live")]);
  fill(
    side,
    h("a", { class: "close", href: "#/versions", "aria-label": "Close" }, "×"),
    heading,
    h("p", {}, verdict(version)),
    (card.warnings ?? []).map((text) => h("p", { class: "problem" }, text)),
    tools(version),
    editsOf(version),
    guardTable(card),
    description(version),
  );
  side.onkeydown = (event) => {
    if (event.key === "Escape") location.hash = "#/versions";
  };
  if (isNew) heading.focus({ preventScroll: true });
}

function tools(version) {
  const number = version.version;
  const isLive = number === live.head;
  const compare = live.head !== null && !isLive && may("edit");
  const hasEdits = version.edits.some((edit) => edit.id);
  return h(
    "div",
    { class: "tools" },
    may("admin") && !isLive && button("Serve this version", () => rollbackDialog(number), "", { "data-rollback": true }),
    may("admin") && hasEdits && button("Take its edits out", () => revertDialog({ versions: [number] })),
    compare && h("a", { class: "button", href: `#/versions/compare/${number}/${live.head}` }, "Compare with the live version"),
    version.parent !== null && may("edit") && h("a", { class: "button", href: `#/versions/compare/${version.parent}/${number}` }, "Compare with its parent"),
  );
}

function editsOf(version) {
  if (!version.edits.length) return null;
  const answers = version.scorecard.answers ?? [];
  const lines = version.edits.slice(0, SHOWN).map((edit, index) => {
    const link = edit.id ? h("a", { href: `#/edits/${encodeURIComponent(edit.id)}` }, asked(edit)) : asked(edit);
    const after = answers[index] ? difference(...answers[index]) : h("ins", {}, edit.target);
    return h("li", {}, link, h("div", { class: "pair" }, after));
  });
  const more = version.edits.length > SHOWN && h("p", { class: "hint" }, `and ${count(version.edits.length - SHOWN)} more`);
  return h("div", {}, h("h3", {}, several(version.edits.length, "edit")), h("ul", { class: "changes" }, lines), more);
}

function guardTable(card) {
  const rows = Object.entries(card.limits ?? {}).flatMap(([name, [warn, refuse]]) => {
    const [title, of] = LIMITS[name] ?? [name, () => undefined];
    const value = of(card);
    if (typeof value !== "number" || !Number.isFinite(value)) return [];
    return [[title, { text: score(value), class: warn !== null && value > warn ? "warn" : "" }, warn ?? "–", refuse ?? "–"]];
  });
  return rows.length > 0 && table("What the guard measured", ["", "here", "warns above", "refuses above"], rows, [1, 2, 3]);
}

function description(version) {
  const card = version.scorecard;
  return facts([
    ["Made", ago(version.created)],
    ["By", version.editor],
    ["Carried in", version.version === 0 ? null : Object.keys(version.ranks).length ? `the weights, ${several(Object.keys(version.ranks).length, "matrix", "matrices")}` : "memory"],
    ["After", version.parent !== null && versionLink(version.parent)],
    ["Size", version.num_bytes ? `${count(Math.ceil(version.num_bytes / 1024))} KiB` : null],
    ["To edit, to measure", card.edit_s !== undefined && `${seconds(card.edit_s)}, ${seconds(card.guard_s)}`],
    ["Trained weights", version.plan],
    ["Fingerprint", h("code", { class: "long" }, version.fingerprint)],
  ]);
}

/** Compare two versions: edits, scores, and how much each matrix changes. */
export async function showComparison(side, from, to, signal) {
  fill(side, h("p", { class: "busy", role: "status" }, "Comparing …"));
  const found = await get(`v1/diff?from=${from}&to=${to}`, { signal });
  const norms = Object.entries(found.norms).map(([name, value]) => [name, score(value)]);
  const heading = h("h2", { tabindex: -1 }, `Version ${from} and version ${to}`);
  fill(
    side,
    h("a", { class: "close", href: "#/versions", "aria-label": "Close" }, "×"),
    heading,
    h("p", { class: "quiet" }, "Both follow ", versionLink(found.common), ". Seen from version ", String(from), ", in version ", String(to), " …"),
    changes(found),
    norms.length > 0 && table("Change of the weights", ["matrix", "norm"], norms, [1]),
  );
  heading.focus({ preventScroll: true });
}
