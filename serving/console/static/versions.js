/** The page Versions: the chain with its scores, one version in detail, and the comparison of two. */

import { get } from "./api.js";
import { lineChart } from "./chart.js";
import { button, fill, h } from "./dom.js";
import { ago, score, several } from "./format.js";
import { live } from "./live.js";
import { Renewal } from "./renewal.js";
import { Rows } from "./rows.js";
import { may } from "./session.js";
import { showComparison, showVersion, verdict } from "./version_detail.js";

const FIRST_PAGE = 50;
const PAGE = 200;
const SERIES = [
  { name: "own edits answered", short: "own", field: "efficacy", colour: "c0" },
  { name: "earlier edits kept", short: "kept", field: "retention", colour: "c2" },
  { name: "other answers unchanged", short: "others", field: "locality", colour: "c1" },
];

/** Show the page; the rest of the address is a version's number, or `compare` and two numbers. */
export function show(root, { rest, signal }) {
  const page = { signal, items: [], isComplete: false, isLoading: false, chosen: null };
  const scores = SERIES.map(({ short, name }) => ({ title: h("span", { title: name }, short), class: "number score" }));
  page.rows = new Rows({
    label: "Versions",
    columns: [{ title: "Version", class: "mark" }, { title: "Edits", class: "number" }, ...scores, { title: "Guard", class: "wide" }, { title: "Editor", class: "author" }, { title: "Made", class: "time" }],
    row: (version) => rowOf(page, version),
    height: 40,
    narrowHeight: 56,
    onEnd: () => more(page),
    isChosen: (version) => version.version === page.chosen,
    key: (version) => String(version.version),
  });
  page.chart = h("div", { class: "chart-place" });
  page.count = h("p", { class: "count", role: "status" }, "Loading …");
  page.side = h("aside", { class: "detail", "aria-label": "Version" });
  page.frame = h("div", { class: "split" }, h("div", { class: "column" }, page.chart, page.count, page.rows.element), page.side);
  fill(root, h("h1", { class: "unseen" }, "Versions"), tools(), page.frame);
  signal.addEventListener("abort", () => page.rows.end());
  page.renewal = new Renewal(() => renew(page), signal);
  for (const name of ["version", "head", "again"]) live.on(name, () => page.renewal.request(), signal);
  choose(page, rest);
  more(page);
  return (next) => {
    choose(page, next);
    return true;
  };
}

function tools() {
  if (!may("edit")) return null;
  const number = (label) => h("input", { type: "number", min: 0, required: true, "aria-label": label, placeholder: "0" });
  const [from, to] = [number("Compare version"), number("with version")];
  const form = h("form", { class: "toolbar" }, h("span", {}, "Compare"), from, h("span", {}, "with"), to, h("button", {}, "Compare"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    location.hash = `#/versions/compare/${from.value}/${to.value}`;
  });
  return form;
}

function rowOf(page, version) {
  const number = version.version;
  const isOn = page.chain?.has(number);
  const mark = h("span", { class: `node ${isOn ? "on" : ""}`, "aria-hidden": "true" });
  const link = h("a", { href: `#/versions/${number}` }, `v${number}`);
  const badge = number === live.head ? h("span", { class: "badge" }, "live") : !isOn && h("span", { class: "quiet" }, "off the chain");
  const from = version.parent !== null && version.parent !== number - 1 && h("span", { class: "quiet" }, `after v${version.parent}`);
  const scores = SERIES.map(({ field }) => score(version.scorecard[field]));
  const edits = number === 0 ? "" : String(version.num_edits);
  return [[mark, link, " ", badge, " ", from], edits, ...scores, verdict(version), version.editor, ago(version.created)];
}

async function more(page) {
  if (page.isLoading || page.isComplete || page.signal.aborted) return;
  page.isLoading = true;
  try {
    const oldest = page.items.at(-1)?.version;
    const query = oldest === undefined ? `limit=${FIRST_PAGE}` : `limit=${PAGE}&before=${oldest}`;
    const { versions } = await get(`v1/versions?${query}`, { signal: page.signal });
    const known = new Set(page.items.map((one) => one.version));
    page.items = [...page.items, ...versions.reverse().filter((one) => !known.has(one.version))];
    page.isComplete = !versions.length || page.items.at(-1).version === 0;
    draw(page);
  } catch (fault) {
    if (fault.name !== "AbortError") fill(page.count, h("span", { class: "fault" }, fault.message));
  } finally {
    page.isLoading = false;
  }
}

/** Read the newest versions again. */
async function renew(page) {
  const { versions } = await get(`v1/versions?limit=${FIRST_PAGE}`, { signal: page.signal });
  const oldest = versions[0].version;
  const isJoined = page.items.some((one) => one.version >= oldest); // Otherwise versions between them were missed.
  page.items = [...versions.reverse(), ...page.items.filter((one) => isJoined && one.version < oldest)];
  page.isComplete &&= isJoined;
  draw(page);
  if (page.chosen !== null) choose(page, [String(page.chosen)]);
}

/** Find the versions between the live one and the base model, as far as they are loaded. */
function chainOf(items) {
  const parents = new Map(items.map((one) => [one.version, one.parent]));
  const chain = new Set();
  for (let number = live.head; number !== null && parents.has(number); number = parents.get(number)) chain.add(number);
  return chain;
}

function draw(page) {
  page.chain = chainOf(page.items);
  const all = page.isComplete ? "" : " so far";
  fill(page.count, `${several(page.items.length, "version")}${all}; ${page.chain.size} on the chain to v${live.head ?? "?"}`);
  page.rows.set(page.items);
  const onChain = page.items.filter((one) => page.chain.has(one.version)).reverse();
  if (onChain.length < 2) return fill(page.chart);
  const series = SERIES.map((one) => ({ ...one, values: onChain.map((version) => version.scorecard[one.field] ?? null) }));
  const labels = onChain.map((one) => `v${one.version}`);
  const onPick = (index) => (location.hash = `#/versions/${onChain[index].version}`);
  fill(page.chart, lineChart({ title: "Scores along the chain", series, labels, onPick }));
}

async function choose(page, rest) {
  const isComparison = rest[0] === "compare";
  const number = rest[0] === undefined || isComparison ? null : Number(rest[0]);
  const isNew = number !== page.chosen || isComparison;
  const mine = (page.choosing = {});
  page.chosen = number;
  page.frame.classList.toggle("open", rest.length > 0);
  page.rows.refresh();
  if (!rest.length) return fill(page.side);
  try {
    if (isComparison) await showComparison(page.side, Number(rest[1]), Number(rest[2]), page.signal);
    else {
      const version = await get(`v1/versions/${number}`, { signal: page.signal });
      if (page.choosing === mine) showVersion(page.side, version, isNew);
    }
  } catch (fault) {
    if (fault.name === "AbortError") return;
    fill(page.side, h("p", { class: "fault", role: "alert" }, fault.message), button("Close", () => (location.hash = "#/versions")));
  }
}
