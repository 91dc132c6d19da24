/** The page Now: the state of the service, from its status, its metrics and its events. */

import { get, getText } from "./api.js";
import { bars } from "./chart.js";
import { facts, fill, h, table } from "./dom.js";
import { count, seconds, several, versionLink } from "./format.js";
import { live } from "./live.js";
import { may } from "./session.js";
import { parsed, quantile, sum } from "./metrics.js";

const STATUS_MS = 4_000;
const METRICS_EVERY = 3; // Readings of the status.
const SWAPS = 12;
const EVENTS = 40;
const TIME = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });

/** Show the page; it reads again every few seconds while it is in sight. */
export function show(root, { signal }) {
  const parts = Object.fromEntries(["ready", "cards", "errors", "replicas", "swaps", "rest", "events"].map((name) => [name, h("section", { class: `now-${name}` })]));
  fill(root, h("h1", { class: "unseen" }, "Now"), parts.ready, parts.cards, h("div", { class: "now-grid" }, parts.replicas, parts.swaps, parts.errors, parts.events, parts.rest));
  const page = { parts, signal, readings: 0, first: null, metrics: null };
  drawEvents(page);
  for (const name of ["edit", "version", "head", "proposal"]) live.on(name, () => drawEvents(page), signal);
  read(page);
}

async function read(page) {
  while (!page.signal.aborted) {
    if (!document.hidden) await readOnce(page);
    await new Promise((resolve) => setTimeout(resolve, STATUS_MS));
  }
}

async function readOnce(page) {
  const { signal } = page;
  try {
    if (page.readings % METRICS_EVERY === 0) {
      page.metrics = parsed(await getText("metrics", { signal }));
      page.first ??= page.metrics;
    }
    page.readings += 1;
    const [status, ready] = await Promise.all([get("v1/status", { signal }), readiness(signal)]);
    if (!signal.aborted) draw(page, status, ready);
  } catch (fault) {
    if (fault.name !== "AbortError") fill(page.parts.ready, h("p", { class: "fault", role: "alert" }, fault.message));
  }
}

/** Ask for the readiness, which is answered with 503 and the reasons if it is missing. */
async function readiness(signal) {
  try {
    return await get("ready", { signal });
  } catch (fault) {
    if (fault.body?.reasons) return fault.body;
    throw fault;
  }
}

function draw(page, status, ready) {
  const { parts } = page;
  const text = ready.ready ? "Ready: the live version is served, and edits are made" : `Not ready: ${ready.reasons.join("; ")}`;
  fill(parts.ready, h("p", { class: `banner ${ready.ready ? "ok" : "bad"}` }, text), status.stalled && h("p", { class: "banner bad" }, status.stalled));
  fill(parts.cards, cards(page, status));
  fill(parts.replicas, replicas(status));
  fill(parts.swaps, swaps(status.timings ?? []));
  fill(parts.errors, errors(page));
  fill(parts.rest, rest(status));
}

function card(title, value, note = "", tone = "") {
  return h("div", { class: `figure ${tone}` }, h("h3", {}, title), h("p", { class: "value" }, value), note && h("p", { class: "hint" }, note));
}

function cards(page, status) {
  const { metrics, first } = page;
  const queue = status.queue ?? { depth: 0, age_s: 0, limit: 0 };
  const [gap, stall] = ["vllm:inter_token_latency_seconds", "errata_stall_seconds"].map((name) => [0.5, 0.99].map((share) => recent(metrics, first, name, share)));
  const held = status.held_edits ?? {};
  const swap = (status.timings ?? []).at(-1)?.swap_ms;
  const serving = (status.replicas ?? []).filter((one) => one.version === status.head).length;
  return [
    card("Live version", versionLink(status.head), `newest ${status.newest}`),
    card("Replicas at it", `${serving} of ${status.replicas?.length ?? 0}`, "", serving === status.replicas?.length ? "" : "bad"),
    card("Edits that wait", count(queue.depth), queue.depth ? `the oldest for ${seconds(queue.age_s)}, at most ${count(queue.limit)}` : `at most ${count(queue.limit)}`),
    may("propose") && status.proposals && card("To review", h("a", { href: "#/review" }, count(status.proposals.open)), `proposals, at most ${count(status.proposals.limit)}`),
    card("Edits lost", count(held.lost ?? 0), held.lost ? `${count(held.repairable ?? 0)} will be made again` : "live edits that are not answered", held.lost ? "warn" : ""),
    card("Last swap", swap === undefined ? "–" : `${Math.round(swap)} ms`),
    card("Between tokens", seconds(gap[0]), gap[0] === null ? "no token was generated" : `99 of 100 within ${seconds(gap[1])}`),
    card("Wait for a swap", seconds(stall[0]), stall[0] === null ? "no request was answered" : `99 of 100 within ${seconds(stall[1])}`),
  ];
}

/** Take the quantile of what came since the page was opened, or of all if nothing came. */
function recent(metrics, first, name, share) {
  return quantile(metrics, name, share, first === metrics ? undefined : first) ?? quantile(metrics, name, share);
}

function replicas(status) {
  const rows = (status.replicas ?? []).map((one) => {
    const isBehind = one.version !== status.head;
    const rotation = one.in_rotation === false ? { text: "out of rotation", class: "bad" } : { text: "in rotation", class: "ok" };
    const engine = one.intact === null ? { text: "does not answer", class: "bad" } : one.intact ? { text: "intact", class: "ok" } : { text: "damaged", class: "bad" };
    return [one.replica, { text: [`v${one.version}`, isBehind && " behind"], class: isBehind ? "warn" : "" }, engine, rotation];
  });
  return table("Replicas", ["replica", "version", "weights", "requests"], rows);
}

function swaps(timings) {
  const last = timings.slice(-SWAPS);
  if (!last.length) return h("p", { class: "hint" }, "No version was made since the edit worker started.");
  const rows = last.toReversed().map((one) => [versionLink(one.version), count(one.num_edits), seconds(one.edit_s), { text: `${Math.round(one.swap_ms)} ms`, class: one.swap_error ? "warn" : "" }]);
  return [bars("Swaps, in milliseconds", last.map((one) => one.swap_ms)), table("Last swaps", ["version", "edits", "to make", "to swap"], rows, [1, 2, 3])];
}

function errors({ metrics, first }) {
  const kinds = [
    ["errata_answers_total", "code", (code) => !code.startsWith("2"), "answers"],
    ["errata_requests_refused_total", "code", () => true, "requests"],
    ["errata_edits_refused_total", "code", () => true, "edits"],
  ];
  const rows = kinds.flatMap(([name, label, isError, what]) => {
    const codes = [...new Set((metrics?.get(name) ?? []).map(({ labels }) => labels[label]))].filter((code) => code && isError(code));
    return codes.flatMap((code) => {
      const [now, before] = [metrics, first].map((one) => sum(one, name, (labels) => labels[label] === code) ?? 0);
      if (!now) return [];
      return [[code, what, count(now), now > before ? { text: `+${count(now - before)}`, class: "warn" } : ""]];
    });
  });
  if (!rows.length) return h("p", { class: "hint" }, "Nothing was refused and nothing failed.");
  return table("Refused and failed", ["code", "what", "in all", "since you look"], rows, [2, 3]);
}

function rest(status) {
  const { mirror = {}, scrub = {}, worker = {}, links = {} } = status;
  const damaged = scrub.damaged ?? [];
  return facts([
    ["Editor", worker.editor],
    ["Asked as", worker.form],
    ["MLflow", mirror.error ?? (mirror.version === undefined ? "not mirrored" : `version ${mirror.version}${mirror.left ? `, ${several(mirror.left, "version")} behind` : ""}`)],
    ["In MLflow", elsewhere([[links.mlflow, "all versions"], [links.mlflow_version, `version ${mirror.serving}, which is served`]])],
    ["Ray", elsewhere([[links.ray, "dashboard"]])],
    ["Report", worker.ledger && h("code", {}, `errata report ${worker.ledger}`)],
    ["Files of the ledger", damaged.length ? h("span", { class: "bad" }, `damaged: ${damaged.join(", ")}`) : "as they were written"],
  ]);
}

/** Link to pages of other programs, in a window of their own; an address of the service's machine only from there. */
function elsewhere(pages) {
  const isHere = (host) => ["localhost", "127.0.0.1", "[::1]"].includes(host);
  const shown = pages.filter(([address]) => address && /^https?:/.test(address) && (isHere(location.hostname) || !isHere(new URL(address).hostname)));
  const links = shown.map(([address, text]) => h("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, text));
  return links.length > 0 && links.flatMap((link, index) => (index ? [", ", link] : [link]));
}

function drawEvents({ parts }) {
  const lines = live.recent.slice(0, EVENTS).map(({ kind, data, time }) => h("li", {}, h("time", {}, TIME.format(time)), " ", eventText(kind, data)));
  const none = !lines.length && h("p", { class: "hint" }, "Nothing has happened since you opened the console.");
  fill(parts.events, h("h3", {}, "Events"), none, lines.length > 0 && h("ol", { class: "events", tabindex: 0, "aria-label": "Events" }, lines));
}

function eventText(kind, data) {
  if (kind === "edit") {
    const link = h("a", { href: `#/edits/${encodeURIComponent(data.id)}` }, data.id.slice(0, 8));
    return ["edit ", link, ` ${data.state}`, data.version != null && [" in ", versionLink(data.version)], data.code && ` (${data.code})`];
  }
  if (kind === "head") return ["the live version is ", versionLink(data.head), `, before it ${data.before}`];
  if (kind === "proposal") return ["proposal ", may("propose") ? h("a", { href: `#/review/${encodeURIComponent(data.id)}` }, data.id.slice(0, 8)) : data.id.slice(0, 8), ` ${data.state}`];
  if (kind === "version") return [versionLink(data.version), ` with ${several(data.num_edits, "edit")}`];
  return `${kind} ${data.message ?? ""}`;
}
