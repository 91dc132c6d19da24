/** One edit in detail: what was asked for, what became of it, what the model says, and earlier edits of its subject. */

import { get } from "./api.js";
import { button, facts, fill, h } from "./dom.js";
import { correction } from "./correct.js";
import { ago, asked, difference, editLink, held, state, versionLink } from "./format.js";
import { revertDialog } from "./moves.js";
import { may, session } from "./session.js";

const MAX_HISTORY = 20;

/** Show an edit; `isNew`: it was chosen just now, and gets the focus. `list` has the edits among which its history is looked for. */
export function showEdit(side, entry, { list, isNew, signal }) {
  const { edit } = entry;
  const heading = h("h2", { tabindex: -1 }, asked(edit));
  const more = h("div", { class: "more" });
  const where = h("span", {});
  const past = h("div", {});
  fill(
    side,
    h("a", { class: "close", href: "#/edits", "aria-label": "Close" }, "×"),
    heading,
    h("p", { class: "big" }, edit.target),
    h("p", {}, state(entry), " ", entry.version != null && versionLink(entry.version), " ", where),
    problem(entry),
    entry.answers && h("div", {}, h("h3", {}, "Answer, before and after"), h("p", { class: "pair" }, difference(entry.answers.before, entry.answers.after))),
    tools(entry, more, signal),
    more,
    description(entry),
    past,
  );
  history(past, entry, list, signal);
  side.onkeydown = (event) => {
    if (event.key === "Escape") location.hash = "#/edits";
  };
  if (isNew) heading.focus({ preventScroll: true });
  if (entry.version != null && entry.changed !== false) carried(where, entry, signal);
}

/** Say whether the edit is answered by the weights or by a memory beside them; of one that is not live, what its version says. */
async function carried(place, entry, signal) {
  const version = await get(`v1/versions/${entry.version}`, { signal }).catch(() => null);
  if (!version) return;
  const tier = entry.carried_by ?? (Object.keys(version.ranks).length ? "weights" : "memory");
  fill(place, `by ${version.editor}, in ${tier === "weights" ? "the weights" : "memory"}`);
}

function problem(entry) {
  const isWrong = entry.state === "rejected" || entry.answered === false || entry.live === false;
  if (!isWrong && !entry.reason) return null;
  const gone = entry.live === false && entry.state === "applied" && "The service went back to a version without it.";
  const lost = entry.answered === false && "Later edits have taken the answer away.";
  return h(
    "div",
    { class: "problem" },
    [entry.reason, gone, lost].filter(Boolean).map((text) => h("p", {}, text)),
    entry.code && h("p", { class: "hint" }, "code ", h("code", {}, entry.code), entry.field && `, field ${entry.field}`),
    entry.says && h("p", {}, "The model says instead: ", h("q", {}, entry.says)),
  );
}

function tools(entry, more, signal) {
  const { edit } = entry;
  const again = async () => {
    await session.offer;
    const values = { target: edit.target, subject: edit.subject ?? "", rephrasings: edit.rephrasings, aliases: edit.aliases, source: edit.source };
    const before = edit.messages?.slice(0, -1) ?? [];
    const form = correction({ question: asked(edit), before, says: entry.says ?? entry.answers?.after ?? "", values, signal });
    fill(more, form);
    form.querySelector("[data-first]").focus();
  };
  const isOut = entry.state !== "applied" || entry.live === false || entry.changed === false;
  return h(
    "div",
    { class: "tools" },
    h("a", { class: "button", href: `#/ask?q=${encodeURIComponent(asked(edit))}` }, "Ask it now"),
    may("propose") && button("Correct again", again),
    may("admin") && !isOut && button("Take it back", () => revertDialog({ edits: [entry.id] }), "", { "data-revert": true }),
  );
}

/** Return what an edit says about itself, as pairs of name and value. */
export function editFacts(edit) {
  const list = (texts) => texts?.length && h("ul", { class: "plain" }, texts.map((text) => h("li", {}, text)));
  const before = edit.messages?.slice(0, -1).map((message) => `${message.role}: ${message.content}`);
  return [
    ["Subject", edit.subject],
    ["Whole answer", edit.answer],
    ["Also right", list(edit.aliases)],
    ["Other wordings", list(edit.rephrasings)],
    ["Earlier messages", list(before)],
    ["Source", edit.source],
    ["Valid from", edit.valid_from],
    ["Valid to", edit.valid_to],
    ["Reason", edit.reason],
    ["Asked as", edit.form],
  ];
}

function description(entry) {
  return facts([
    ["Author", entry.poster],
    ["Approved by", entry.approver],
    ["Posted", ago(entry.created)],
    ...editFacts(entry.edit),
    ["Holds", entry.live && held(entry)],
    ["Ended by", entry.superseded_by && editLink(entry.superseded_by)],
    ["Contradicted", entry.contradicts?.length > 0 && entry.contradicts.map((id) => [editLink(id), " "])],
    ["Made again in", entry.repaired_in != null && versionLink(entry.repaired_in)],
    ["Id", h("code", {}, entry.id)],
  ]);
}

/** List the other edits of the subject, from the service; without one, those of the question among those that are loaded. */
async function history(place, entry, list, signal) {
  const { subject } = entry.edit;
  let found = list.items.filter((other) => asked(other.edit) === asked(entry.edit));
  if (subject) {
    const query = new URLSearchParams({ subject, limit: String(MAX_HISTORY + 1) });
    const answer = await get(`v1/edits?${query}`, { signal }).catch(() => null);
    if (answer) found = answer.edits;
  }
  const others = found.filter((other) => other.id !== entry.id).slice(0, MAX_HISTORY);
  if (!others.length) return;
  const lines = others.map((other) => {
    const link = h("a", { href: `#/edits/${encodeURIComponent(other.id)}` }, asked(other.edit));
    const notes = [held(other), other.edit.reason, other.edit.source].filter(Boolean).join(" · ");
    return h("li", {}, link, " → ", h("strong", {}, other.edit.target), " ", state(other), " ", h("span", { class: "quiet" }, ago(other.created)), notes && h("div", { class: "hint" }, notes));
  });
  fill(place, h("h3", {}, subject ? `Other edits about ${subject}` : "Other edits of this question"), h("ul", { class: "history" }, lines));
}
