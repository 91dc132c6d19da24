/** Rollback and revert: their effect is shown first, and they move nothing if the live version is another one by then. */

import { get, post } from "./api.js";
import { button, dialog, fill, h, notify, table } from "./dom.js";
import { asked, count, difference, score, several, versionLink } from "./format.js";
import { live } from "./live.js";
import { neighbours } from "./trial.js";

const SHOWN = 50; // Edits listed in a dialog.

/** Show what serving version `number` instead of the live one changes, and do it if the user agrees. */
export function rollbackDialog(number) {
  return moveDialog(`Serve version ${number}`, {
    effect: (head) => rollbackEffect(head, number),
    confirm: `Serve version ${number}`,
    move: (head) => post("v1/rollback", { version: number, expected_head: head }),
    done: () => `Version ${number} is served`,
  });
}

/** Show what taking out `edits` (ids) or `versions` changes, and do it if the user agrees. */
export function revertDialog({ edits = [], versions = [] }) {
  const what = versions.length ? `Take out version ${versions.join(", ")}` : `Take out ${several(edits.length, "edit")}`;
  return moveDialog(what, {
    effect: () => revertEffect(edits, versions),
    confirm: "Take out",
    move: (head) => post("v1/revert", { edits, versions, expected_head: head }),
    done: (made) => `Taken out in version ${made.version}`,
    outcome: revertOutcome,
  });
}

function moveDialog(title, move) {
  return dialog(title, (body, close) => look(body, close, move));
}

/** Show the effect on the version that is live now; that version is the one that the move expects. */
async function look(body, close, move) {
  fill(body, h("p", { class: "busy", role: "status" }, "Looking what would change …"), h("div", { class: "tools" }, button("Cancel", close)));
  let head = null;
  let effect;
  try {
    await live.look();
    head = live.head;
    effect = await move.effect(head);
  } catch (fault) {
    effect = h("p", { class: "fault" }, `What would change is not known: ${fault.message}`);
  }
  if (head === null) return fill(body, effect, h("div", { class: "tools" }, button("Cancel", close)));
  const confirm = button(move.confirm, () => carryOut(body, close, move, head), "danger", { "data-confirm": true });
  fill(body, h("p", {}, "Live now: ", h("strong", {}, `version ${head}`)), effect, h("div", { class: "tools" }, confirm, button("Cancel", close)));
}

async function carryOut(body, close, move, head) {
  for (const one of body.querySelectorAll("button")) one.disabled = true;
  try {
    const made = await move.move(head);
    notify(move.done(made));
    live.look().catch(() => {});
    if (!move.outcome) return close();
    fill(body, h("p", { class: "ok" }, move.done(made)), move.outcome(made), h("div", { class: "tools" }, button("Close", close, "primary")));
  } catch (fault) {
    const again = button("Look again", () => look(body, close, move), "primary");
    fill(body, h("div", { role: "alert" }, refusal(fault, head)), h("div", { class: "tools" }, again, button("Cancel", close)));
    again.focus();
  }
}

function refusal(fault, head) {
  if (fault.code !== "head_moved") return h("p", { class: "fault" }, fault.message);
  const text = `Version ${head} is not live any more: someone else published or moved a version while you looked. Nothing was changed.`;
  return h("p", { class: "fault" }, text);
}

async function rollbackEffect(head, number) {
  if (head === number) return h("p", {}, "This version is live already.");
  const found = await get(`v1/diff?from=${head}&to=${number}`);
  return [...changes(found), h("p", { class: "hint" }, "Nothing is deleted: a later version can be served again.")];
}

/** Show the edits, the answers and the scores in which two versions differ. */
export function changes(found) {
  const out = edits("will no longer hold", found.removed, "del");
  const back = edits("will hold again", found.added, "ins");
  const none = !out && !back && h("p", {}, "Both hold the same edits.");
  return [out, back, none, answers(found.answers), scores(found)];
}

/** Show answers as they were when the edits were made; the model is not asked again. */
function answers(list) {
  if (!list.length) return null;
  const lines = list.slice(0, SHOWN).map((one) => h("li", {}, h("span", { class: "quiet" }, one.prompt), h("div", { class: "pair" }, difference(one.from, one.to))));
  const more = list.length > SHOWN && h("p", { class: "hint" }, `and ${count(list.length - SHOWN)} more`);
  return h("details", { open: list.length <= 10 }, h("summary", {}, `${several(list.length, "answer")} ${list.length === 1 ? "changes" : "change"}`), h("ul", { class: "changes" }, lines), more);
}

function edits(what, list, kind) {
  if (!list.length) return null;
  const lines = list.slice(0, SHOWN).map((edit) => h("li", { class: kind }, asked(edit), " → ", h("strong", {}, edit.target)));
  const more = list.length > SHOWN && h("p", { class: "hint" }, `and ${count(list.length - SHOWN)} more`);
  return h("details", { open: list.length <= 10 }, h("summary", {}, `${several(list.length, "edit")} ${what}`), h("ul", { class: "changes" }, lines), more);
}

const SCORES = {
  efficacy: "own edits answered",
  retention: "earlier edits kept",
  locality: "other answers unchanged",
  ppl_ratio: "perplexity, relative",
};

function scores(found) {
  const rows = Object.entries(SCORES)
    .filter(([name]) => found.scorecard[name])
    .map(([name, title]) => [title, ...found.scorecard[name].map(score)]);
  return rows.length > 0 && table("Scores", ["", `version ${found.from}`, `version ${found.to}`], rows, [1, 2]);
}

async function revertEffect(ids, versions) {
  const ofVersions = await Promise.all(versions.map((number) => get(`v1/versions/${number}`)));
  const chosen = [...ids, ...ofVersions.flatMap((version) => version.edits.map((edit) => edit.id).filter(Boolean))];
  const entries = await Promise.all(chosen.slice(0, SHOWN).map((id) => get(`v1/edits/${id}`)));
  const lines = entries.map((entry) => {
    const answers = entry.answers ? difference(entry.answers.after, entry.answers.before) : [asked(entry.edit), " → ", h("del", {}, entry.edit.target)];
    return h("li", {}, h("span", { class: "quiet" }, asked(entry.edit)), h("br"), answers);
  });
  return [
    h("p", {}, "The model will probably answer as it did before:"),
    h("ul", { class: "changes" }, lines),
    chosen.length > SHOWN && h("p", { class: "hint" }, `and ${count(chosen.length - SHOWN)} more`),
    revertTrial(ids, versions),
    h("p", { class: "hint" }, "All other edits stay. A new version is made and measured; the present one can be served again."),
  ];
}

/** Offer a dry run, which takes as long as the revert itself. */
function revertTrial(edits, versions) {
  const found = h("div", { class: "trial", role: "status" });
  const run = async () => {
    fill(found, h("p", { class: "busy" }, "Trying …"));
    try {
      fill(found, triedRevert(await post("v1/revert?dry_run=true", { edits, versions })));
    } catch (fault) {
      fill(found, h("p", { class: "fault" }, fault.message));
    }
  };
  return [h("p", {}, button("Try it", run, "small")), found];
}

function triedRevert(found) {
  if (!found.publish) return found.breaches.map(({ message }) => h("p", { class: "bad" }, `It would be refused: ${message}`));
  return [h("h3", {}, `Tried on version ${found.head}; nothing was published`), revertedAnswers(found, "after"), neighbours(found.neighbours)];
}

function revertOutcome(made) {
  return [
    h("p", {}, "Version ", versionLink(made.version), ` (${made.mode})`, made.swap_error && `: ${made.swap_error}`),
    revertedAnswers(made, "now"),
  ];
}

function revertedAnswers(found, title) {
  const rows = found.scorecard?.reverted_answers ?? [];
  return rows.length > 0 && table("Answers", ["question", "with the edit", title], rows.map((row) => [row.prompt, row.said, row.says]));
}
