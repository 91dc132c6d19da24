/** The page Edits: all corrections, newest first, with a search, filters, one edit in detail, import and export. */

import { get } from "./api.js";
import { button, fill, h, saveFile, uniqueId } from "./dom.js";
import { showEdit } from "./edit_detail.js";
import { EditList, isFound } from "./edit_list.js";
import { ago, asked, count, held, several, state } from "./format.js";
import { importFile } from "./import.js";
import { live } from "./live.js";
import { Renewal } from "./renewal.js";
import { Rows } from "./rows.js";
import { may } from "./session.js";

const STATES = ["applied", "rejected", "queued", "applying", "superseded", "reverted"];

/** Show the page; the rest of the address is the id of an edit in detail. */
export function show(root, { rest, query, signal }) {
  const page = { signal, list: new EditList(query.get("state") ?? ""), words: query.get("q") ?? "", chosen: null, poster: "" };
  page.rows = new Rows({
    label: "Edits",
    columns: [
      { title: "Question", class: "wide" },
      { title: "Right answer", class: "target" },
      { title: "State" },
      { title: "Holds", class: "held" },
      { title: "Version", class: "narrow" },
      { title: "In", class: "carried" },
      { title: "Author", class: "author" },
      { title: "Posted", class: "time" },
    ],
    row: rowOf,
    height: 40,
    narrowHeight: 68,
    onEnd: () => more(page),
    isChosen: (entry) => entry.id === page.chosen,
    key: (entry) => entry.id,
  });
  page.count = h("p", { class: "count", role: "status" });
  page.side = h("aside", { class: "detail", "aria-label": "Edit" });
  page.frame = h("div", { class: "split" }, h("div", { class: "column" }, page.count, page.rows.element), page.side);
  fill(root, h("h1", { class: "unseen" }, "Edits"), tools(page), page.frame);
  signal.addEventListener("abort", () => page.rows.end());
  page.renewal = new Renewal(() => renew(page), signal);
  live.on("edit", (event) => changed(page, event), signal);
  for (const name of ["head", "again"]) live.on(name, () => page.renewal.request(), signal);
  choose(page, rest[0] ?? null);
  more(page);
  return (next) => {
    choose(page, next[0] ?? null);
    return true;
  };
}

function rowOf(entry) {
  return [
    h("a", { href: `#/edits/${encodeURIComponent(entry.id)}` }, asked(entry.edit)),
    entry.edit.target,
    state(entry),
    held(entry),
    entry.version != null ? `v${entry.version}` : "",
    entry.carried_by ?? "",
    entry.poster ?? "",
    ago(entry.created),
  ];
}

function tools(page) {
  const search = h("input", { type: "search", placeholder: "Search questions, answers, subjects, authors", "aria-label": "Search", value: page.words });
  search.addEventListener("input", () => {
    page.words = search.value;
    draw(page);
  });
  const choice = h("select", { id: uniqueId("state"), "aria-label": "State" }, h("option", { value: "" }, "all states"));
  choice.append(...STATES.map((name) => h("option", { value: name, selected: name === page.list.state }, name)));
  choice.addEventListener("change", () => {
    page.list = new EditList(choice.value);
    draw(page);
    more(page);
  });
  const actions = [
    may("edit") && button("Import a file", () => importFile(), "", { "data-import": true }),
    button("Export", () => exported(page), "", { "data-export": true }),
  ];
  return h("div", { class: "toolbar" }, search, choice, h("span", { class: "grow" }), actions);
}

/** Load more edits if the list wants some: to fill the window, or to search further. */
async function more(page) {
  const { list } = page;
  if (list.isLoading || list.isComplete || page.signal.aborted) return;
  try {
    await list.load(page.signal);
  } catch (fault) {
    if (fault.name !== "AbortError") fill(page.count, h("span", { class: "fault" }, fault.message));
    return;
  }
  if (page.list === list) draw(page);
}

function draw(page) {
  const found = page.list.items.filter((entry) => isFound(entry, page.words));
  const all = page.list.isComplete ? "" : page.words ? ` among the newest ${count(page.list.items.length)}` : " so far";
  fill(page.count, found.length || page.list.isComplete ? `${several(found.length, "edit")}${all}` : "Loading …");
  page.rows.set(found);
}

/** Show the new state of an edit, or the edits that came. */
function changed(page, event) {
  const known = page.list.items.find((entry) => entry.id === event.id);
  if (!known) return page.renewal.request();
  Object.assign(known, event);
  page.renewal.outdate();
  page.rows.refresh();
  if (event.id === page.chosen) chooseAgain(page);
}

/** Read the newest edits again. */
async function renew(page) {
  const { list } = page;
  await list.renew(page.signal);
  if (page.list !== list) return;
  draw(page);
  if (page.chosen) chooseAgain(page);
}

/** Show the chosen edit as it is now, unless a correction is being written in its place. */
function chooseAgain(page) {
  if (!page.side.querySelector("form")) choose(page, page.chosen);
}

async function choose(page, id) {
  const isNew = page.chosen !== id;
  const mine = (page.choosing = {});
  page.chosen = id;
  page.frame.classList.toggle("open", id !== null);
  page.rows.refresh();
  if (id === null) return fill(page.side);
  try {
    const entry = await get(`v1/edits/${encodeURIComponent(id)}`, { signal: page.signal });
    if (page.choosing === mine) showEdit(page.side, entry, { list: page.list, isNew, signal: page.signal });
  } catch (fault) {
    if (fault.name !== "AbortError") fill(page.side, h("p", { class: "fault", role: "alert" }, fault.message), h("a", { href: "#/edits" }, "Close"));
  }
}

/** Save the edits that the list shows as a file that can be imported again: all of them, not only those that are loaded. */
async function exported(page) {
  const { list, words } = page;
  while (!list.isComplete && !page.signal.aborted) {
    fill(page.count, `Reading: ${several(list.items.length, "edit")} …`);
    if (list.isLoading) await new Promise((resolve) => setTimeout(resolve, 50));
    else await list.load(page.signal);
  }
  draw(page);
  const found = list.items.filter((entry) => isFound(entry, words)).reverse(); // Oldest first, as they were made.
  const lines = found.map(({ id, edit }) => JSON.stringify({ ...withoutAuthor(edit), id }));
  saveFile("edits.jsonl", lines.map((line) => `${line}\n`).join(""), "application/x-ndjson");
}

function withoutAuthor({ poster: _, ...edit }) {
  return edit;
}
