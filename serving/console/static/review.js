/** The page Review: proposed edits, one in detail with a dry run of it, decided on by key presses. */

import { get, post } from "./api.js";
import { button, facts, field, fill, h, notify, uniqueId } from "./dom.js";
import { ago, asked, several, state } from "./format.js";
import { editFacts } from "./edit_detail.js";
import { live } from "./live.js";
import { Rows } from "./rows.js";
import { may, session } from "./session.js";
import { tried } from "./trial.js";

const STATES = [["open", "to decide"], ["approved", "approved"], ["refused", "refused"]];
const FIRST_PAGE = 50;
const PAGE = 200;
const PAUSE_MS = 350; // Before a dry run, so that a reviewer who passes by starts none.
const approved = new Set(); // Of this tab: their edits are made after the reviewer has gone on.

live.addEventListener("edit", ({ detail }) => {
  if (!approved.has(detail.id) || !["applied", "rejected", "superseded"].includes(detail.state)) return;
  approved.delete(detail.id);
  const isMade = detail.state === "applied";
  notify(isMade ? `The approved edit is in version ${detail.version}` : `The approved edit is ${detail.state}: ${detail.reason ?? ""}`, isMade ? "ok" : "bad");
});

/** Show the page; the rest of the address is the id of a proposal in detail. */
export function show(root, { rest, query, signal }) {
  const page = { signal, state: query.get("state") ?? "open", items: [], cursor: null, isComplete: false, chosen: null };
  page.rows = new Rows({
    label: "Proposals",
    columns: [{ title: "Question", class: "wide" }, { title: "Right answer", class: "target" }, { title: "Author", class: "author" }, { title: "Proposed", class: "time" }],
    row: (one) => [h("a", { href: `#/review/${one.id}` }, asked(one.edit)), one.edit.target, one.author ?? "", ago(one.created)],
    height: 40,
    narrowHeight: 68,
    onEnd: () => more(page),
    isChosen: (one) => one.id === page.chosen,
    key: (one) => one.id,
  });
  page.count = h("p", { class: "count", role: "status" }, "Loading …");
  page.side = h("aside", { class: "detail", "aria-label": "Proposal" });
  page.frame = h("div", { class: "split" }, h("div", { class: "column" }, page.count, page.rows.element), page.side);
  fill(root, h("h1", { class: "unseen" }, "Review"), tools(page), page.frame);
  signal.addEventListener("abort", () => {
    page.rows.end();
    page.trial?.abort();
  });
  document.addEventListener("keydown", (event) => pressed(page, event), { signal });
  live.on("proposal", (event) => changed(page, event), signal);
  live.on("again", () => readAgain(page), signal);
  choose(page, rest[0] ?? null);
  more(page);
  return (next) => {
    choose(page, next[0] ?? null);
    return true;
  };
}

function tools(page) {
  const choice = h("select", { id: uniqueId("state"), "aria-label": "State" }, STATES.map(([name, text]) => h("option", { value: name, selected: name === page.state }, text)));
  choice.addEventListener("change", () => {
    page.state = choice.value;
    restart(page);
  });
  const keys = [["j", "next"], ["k", "previous"], ...(may("edit") ? [["a", "approve"], ["r", "refuse"]] : [])];
  const shown = keys.map(([key, text]) => [h("kbd", {}, key), ` ${text} `]);
  return h("div", { class: "toolbar" }, choice, h("span", { class: "grow" }), h("span", { class: "hint" }, shown));
}

/** Show another list, from its beginning. */
function restart(page) {
  page.items = [];
  readAgain(page);
  draw(page);
}

/** Read the list again from its beginning; what is shown stays until the answer comes. */
function readAgain(page) {
  Object.assign(page, { cursor: null, isComplete: false, reading: null });
  more(page);
}

/** Load the next page: of what waits the oldest first, of what is decided the newest first. */
async function more(page) {
  if (page.reading || page.isComplete || page.signal.aborted) return;
  const mine = (page.reading = { isFirst: page.cursor === null, isOld: false });
  const isOpen = page.state === "open";
  const query = new URLSearchParams({ state: page.state, limit: String(mine.isFirst ? FIRST_PAGE : PAGE) });
  if (isOpen) query.set("after", String(page.cursor ?? 0));
  else if (!mine.isFirst) query.set("before", String(page.cursor));
  try {
    const { proposals, next } = await get(`v1/proposals?${query}`, { signal: page.signal });
    if (page.reading !== mine) return;
    page.items = mine.isFirst ? proposals : [...page.items, ...proposals];
    Object.assign(page, { cursor: next, isComplete: next === null, reading: null });
    draw(page);
    if (mine.isOld) readAgain(page);
  } catch (fault) {
    if (fault.name === "AbortError" || page.reading !== mine) return;
    page.reading = null;
    page.isComplete = true;
    fill(page.count, h("span", { class: "fault" }, fault.message), " ", button("Try again", () => restart(page), "small"));
  }
}

function draw(page) {
  const [, word] = STATES.find(([name]) => name === page.state);
  const all = page.isComplete ? "" : " so far";
  const text = page.items.length || page.isComplete ? `${several(page.items.length, "proposal")} ${word}${all}` : "Loading …";
  fill(page.count, text);
  page.rows.set(page.items);
}

/** Show what became of a proposal, here or at another reviewer's. */
function changed(page, event) {
  if (page.reading) page.reading.isOld = true; // Its answer may be from before this event.
  const isListed = page.items.some((one) => one.id === event.id);
  if (event.state !== page.state && isListed) {
    page.items = page.items.filter((one) => one.id !== event.id);
    draw(page);
  } else if (event.state === page.state && !isListed && (page.isComplete || page.state !== "open")) {
    if (page.state !== "open") restart(page);
    else get(`v1/proposals/${event.id}`, { signal: page.signal }).then((one) => added(page, one), () => {});
  }
  if (event.id === page.chosen && event.state !== "open" && !page.isDeciding) choose(page, page.chosen, true);
}

function added(page, one) {
  if (one.state !== page.state || page.items.some((other) => other.id === one.id)) return;
  page.items = [...page.items, one];
  draw(page);
}

async function choose(page, id, isForced = false) {
  if (id === page.chosen && !isForced) return;
  page.trial?.abort();
  page.chosen = id;
  page.frame.classList.toggle("open", id !== null);
  page.rows.refresh();
  if (id === null) return fill(page.side);
  try {
    const one = await get(`v1/proposals/${encodeURIComponent(id)}`, { signal: page.signal });
    if (page.chosen === id) showProposal(page, one);
  } catch (fault) {
    if (fault.name === "AbortError" || page.chosen !== id) return;
    fill(page.side, h("p", { class: "fault", role: "alert" }, fault.message), h("a", { href: "#/review" }, "Close"));
  }
}

function showProposal(page, one) {
  const { edit } = one;
  const heading = h("h2", { tabindex: -1 }, asked(edit));
  const trial = h("div", { class: "trial-place", "aria-live": "polite" });
  const isOpen = one.state === "open";
  page.decision = isOpen && may("edit") ? decision(page, one) : null;
  fill(
    page.side,
    h("a", { class: "close", href: "#/review", "aria-label": "Close" }, "×"),
    heading,
    h("p", { class: "big" }, edit.target),
    h("p", {}, state(one), isOpen && [" · proposed", one.author && ` by ${one.author}`, " ", ago(one.created)], one.decider && ` by ${one.decider}`, one.decided && [", ", ago(one.decided)], one.state === "approved" && [" · ", h("a", { href: `#/edits/${one.id}` }, "See the edit")]),
    one.reason && h("p", { class: "problem" }, one.reason),
    page.decision?.element,
    trial,
    facts([["Author", one.author], ["Proposed", ago(one.created)], ...editFacts(edit), ["Id", h("code", {}, one.id)]]),
  );
  page.side.onkeydown = (event) => {
    if (event.key === "Escape" && !event.target.closest("input")) location.hash = "#/review";
  };
  heading.focus({ preventScroll: true });
  if (isOpen) tryIt(page, one, trial, PAUSE_MS);
}

/** Return an edit as the routes take it: messages end with its question. */
const posted = ({ prompt, ...edit }) => (edit.messages ? edit : { prompt, ...edit });

/** Try a proposal as soon as the reviewer stays at it; going on stops the attempt at the service, too. */
async function tryIt(page, one, place, pause) {
  page.trial?.abort();
  const abort = (page.trial = new AbortController());
  await session.offer;
  if (abort.signal.aborted || !session.hasDryRun) return;
  fill(place, h("p", { class: "busy" }, "Trying it: nothing is published …"));
  await new Promise((resolve) => setTimeout(resolve, pause));
  if (abort.signal.aborted || page.chosen !== one.id) return;
  try {
    fill(place, tried(await post("v1/edits?dry_run=true", { edits: [posted(one.edit)] }, { signal: abort.signal })));
  } catch (fault) {
    if (fault.name === "AbortError") return;
    fill(place, h("p", { class: "fault", role: "alert" }, `It was not tried: ${fault.message}`), button("Try again", () => tryIt(page, one, place, 0), "small"));
  }
}

/** Make the buttons of a decision and the place of its reason; an author may not approve. */
function decision(page, one) {
  const isOwn = session.hasKeys && one.author === session.name;
  const reason = h("input", { name: "reason", autocomplete: "off", maxlength: 16_384 });
  const approve = button("Approve", () => decide(page, one, "approve"), "primary", { disabled: isOwn });
  const refuse = button("Refuse", () => decide(page, one, "refuse"), "danger");
  const outcome = h("div", { "aria-live": "polite" });
  reason.addEventListener("keydown", (event) => {
    if (event.key === "Enter") decide(page, one, "refuse");
    if (event.key === "Escape") page.side.querySelector("h2").focus();
  });
  const element = h(
    "div",
    { class: "decision" },
    field("Reason, for the author", reason, "Enter refuses."),
    h("div", { class: "tools" }, approve, refuse),
    isOwn && h("p", { class: "hint" }, "It is your own proposal: someone else must approve it."),
    outcome,
  );
  return { element, reason, approve, refuse, outcome };
}

async function decide(page, one, what) {
  const { reason, approve, refuse, outcome } = page.decision;
  if (page.isDeciding || (what === "approve" && approve.disabled)) return;
  page.isDeciding = true;
  const was = [approve, refuse].map((each) => each.disabled);
  approve.disabled = refuse.disabled = true;
  const text = reason.value.trim();
  const next = beside(page, 1) ?? beside(page, -1);
  try {
    if (what === "approve") approved.add(one.id);
    const decided = await post(`v1/proposals/${one.id}/${what}`, text ? { reason: text } : {});
    notify(`${decided.state === "approved" ? "Approved" : "Refused"}: ${asked(one.edit)}`);
    changed(page, { id: one.id, state: decided.state });
    go(next);
  } catch (fault) {
    approved.delete(one.id);
    const gone = fault.code === "already_decided";
    fill(outcome, h("p", { class: "fault", role: "alert" }, fault.message), gone && button("Next", () => go(next), "small"));
    if (gone) changed(page, { id: one.id, state: "decided" });
    else [approve.disabled, refuse.disabled] = was;
  } finally {
    page.isDeciding = false;
  }
}

/** Return the id of the proposal so many rows from the chosen one; the first one if none is chosen. */
function beside(page, step) {
  const index = page.items.findIndex((one) => one.id === page.chosen);
  const found = index < 0 ? page.items[0] : page.items[index + step];
  return found?.id === page.chosen ? null : (found?.id ?? null);
}

/** Show another proposal in place of this one, so that the browser's way back leads out of the review. */
function go(id) {
  location.replace(id === null ? "#/review" : `#/review/${id}`);
}

function pressed(page, event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target !== document.body && !event.target.closest("main")) return; // Keys alone act where the page has the focus.
  if (event.target.closest("input, textarea, select, dialog") || document.querySelector("dialog[open]")) return;
  const one = page.items.find((each) => each.id === page.chosen);
  const act = {
    j: () => beside(page, 1) && go(beside(page, 1)),
    k: () => beside(page, -1) && go(beside(page, -1)),
    a: () => one && page.decision && decide(page, one, "approve"),
    r: () => page.decision && page.decision.reason.focus(),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}
