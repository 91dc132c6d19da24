/** The console's frame: sign-in, the bar with the live version, and the page of the address after `#`. */

import { get } from "./api.js";
import { button, field, fill, h } from "./dom.js";
import { live } from "./live.js";
import { forget, keep, key, may, readSchema, session } from "./session.js";

const PAGES = [
  { path: "ask", title: "Ask", needsOffer: true, load: () => import("./ask.js") },
  { path: "edits", title: "Edits", load: () => import("./edits.js") },
  { path: "versions", title: "Versions", load: () => import("./versions.js") },
  { path: "review", title: "Review", role: "propose", load: () => import("./review.js") },
  { path: "now", title: "Now", load: () => import("./now.js") },
];
const pages = () => PAGES.filter((page) => may(page.role ?? "read"));
const bar = document.getElementById("bar");
const main = document.getElementById("main");
let leaving = null; // Ends the listeners and requests of the present page.
let shown = null;

/** Read the caller's role, and begin to read what the service offers. Throws `Refused`. */
async function readSession() {
  const found = await get("v1/key");
  Object.assign(session, { name: found.name, role: found.role, hasKeys: found.name !== null, offer: readOffer() });
}

async function readOffer() {
  const [schema, models, status] = await Promise.all([get("openapi.json"), get("v1/models"), get("v1/status")].map(settled));
  if (schema) readSchema(schema);
  session.model = models?.data?.[0]?.id ?? session.model;
  session.context = models?.data?.[0]?.max_model_len ?? session.context;
  session.form = status?.worker?.form ?? session.form;
}

const settled = (promise) => promise.catch(() => null);

async function start() {
  try {
    await readSession();
  } catch (fault) {
    return fault.status === 401 ? signIn(key() ? fault.message : "") : unreachable(fault);
  }
  drawBar();
  live.start();
  await show();
}

function unreachable(fault) {
  fill(bar, brand());
  const again = button("Try again", start, "primary");
  fill(main, h("div", { class: "alone" }, h("h1", {}, "The service does not answer"), h("p", {}, fault.message), again));
}

function signIn(reason) {
  live.stop();
  leaving?.abort();
  shown = null;
  fill(bar, brand());
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const enter = (event) => {
    event.preventDefault();
    keep(input.value.trim());
    start();
  };
  const form = h(
    "form",
    { class: "alone", onsubmit: enter },
    h("h1", {}, "Sign in"),
    h("p", {}, "This service needs an access key. It is kept for this tab, until you close it or sign out."),
    reason && h("p", { class: "fault", role: "alert" }, reason),
    field("Key", input, "`errata keys add NAME --role edit` makes one on the service's machine."),
    h("button", { class: "primary" }, "Sign in"),
  );
  fill(main, form);
  document.title = "Sign in – Errata";
  input.focus();
}

function signOut() {
  forget();
  location.reload(); // Questions and answers of this caller are forgotten, too.
}

const brand = () => h("a", { class: "brand", href: "#/ask" }, h("img", { src: "icon.svg", alt: "", width: 22, height: 22 }), "Errata");

function drawBar() {
  const links = pages().map((page) => h("a", { href: `#/${page.path}` }, page.title));
  const version = h("a", { class: "live", id: "live", href: "#/versions" });
  const who = session.hasKeys && [
    h("span", { class: "who", title: `role ${session.role}` }, `${session.name} · ${session.role}`),
    button("Sign out", signOut, "quiet small"),
  ];
  fill(bar, brand(), h("nav", { "aria-label": "Pages" }, links), h("div", { class: "side" }, version, who));
  drawLive();
}

function drawLive() {
  const place = document.getElementById("live");
  if (!place) return;
  const text = live.isConnected ? "live" : "not connected";
  place.className = live.isConnected ? "live on" : "live";
  fill(place, h("span", { class: "dot", "aria-hidden": "true" }), h("strong", {}, live.head === null ? "–" : `v${live.head}`), ` ${text}`);
}

/** Return the page, the rest of the path and the parameters of the address after `#`. */
function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/").map(decodeURIComponent);
  return { page: pages().find((one) => one.path === name) ?? PAGES[0], rest, query: new URLSearchParams(query) };
}

async function show() {
  const address = location.hash;
  const { page, rest, query } = route();
  for (const link of bar.querySelectorAll("nav a")) {
    const isHere = link.getAttribute("href") === `#/${page.path}`;
    isHere ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  const module = await page.load();
  if (page.needsOffer) await session.offer;
  if (location.hash !== address) return show(); // Another page was chosen meanwhile.
  document.title = `${page.title} – Errata`;
  if (shown?.page === page && shown.follow?.(rest, query)) return;
  leaving?.abort();
  for (const open of document.querySelectorAll("dialog")) open.close();
  leaving = new AbortController();
  const isFirst = shown === null;
  const root = h("div", { class: `page ${page.path}` });
  fill(main, root);
  main.scrollTop = 0;
  shown = { page, follow: module.show(root, { rest, query, signal: leaving.signal }) };
  if (!isFirst) main.focus({ preventScroll: true });
}

window.addEventListener("hashchange", () => shown && show());
window.addEventListener("errata:unauthorized", () => shown && signIn("This key is unknown or has expired."));
live.addEventListener("state", drawLive);
start();
