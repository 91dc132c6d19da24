/** What a correction would change, side by side, as a dry run answers. */

import { h, table } from "./dom.js";
import { difference, score, several } from "./format.js";

/** Show the answer of `POST /v1/edits?dry_run=true`. */
export function tried(found) {
  return (found.edits ?? []).map((one) => trial(one, found));
}

function trial(one, found) {
  const answers = one.answers ?? one;
  const columns = [
    one.unedited != null && ["Unedited model", one.unedited],
    ["Now", answers.before ?? "–"],
    ["After", answers.before && answers.after ? difference(answers.before, answers.after) : (answers.after ?? "–")],
  ].filter(Boolean);
  const neighbours = found.neighbours ?? one.neighbours ?? [];
  const rows = neighbours.map((other) => [other.prompt ?? other.question, other.before, { text: other.after, class: "warn" }]);
  return h(
    "div",
    { class: "trial" },
    h("div", { class: "beside" }, columns.map(([title, text]) => h("div", {}, h("h4", {}, title), h("p", {}, text)))),
    rows.length ? table(`${several(rows.length, "other answer")} would change`, ["question", "now", "after"], rows) : h("p", { class: "ok" }, "No other answer that was asked would change."),
    figures(found.scorecard ?? found.guard ?? {}),
  );
}

function figures(card) {
  const rows = ["efficacy", "retention", "locality", "ppl_ratio"].filter((name) => typeof card[name] === "number").map((name) => `${name} ${score(card[name])}`);
  return rows.length > 0 && h("p", { class: "hint" }, rows.join(" · "));
}
