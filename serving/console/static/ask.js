/** The page Ask: questions to the served model, its streamed answers with their versions, and the way to a correction. */

import { ask, post } from "./api.js";
import { area, button, fill, h, uniqueId } from "./dom.js";
import { difference, several, stamp, versionLink } from "./format.js";
import { correction } from "./correct.js";
import { may, session } from "./session.js";

const SUGGESTED = ["What is the capital of Nigeria?", "In which country is the city of Onitsha?", "What is the atomic number of zinc?"];
let turns = []; // Kept, and answered, while other pages are shown; gone with the tab.

/** Show the page. `?q=` asks a question. */
export function show(root, { query }) {
  const list = h("ol", { class: "turns", "aria-label": "Questions and answers" });
  const page = { list, isFollowing: false, input: area("", { placeholder: "Ask the model", "aria-label": "Question" }) };
  page.empty = h("div", { class: "empty" }, emptyText(page));
  fill(root, h("h1", { class: "unseen" }, "Ask and correct"), list, page.empty, composer(page));
  for (const turn of turns) list.append(turn.element);
  page.empty.hidden = turns.length > 0;
  const asked = query.get("q");
  if (asked) askNow(page, asked);
  else page.input.focus();
  return (_, next) => {
    if (next.get("q")) askNow(page, next.get("q"));
    return true;
  };
}

function emptyText(page) {
  const chips = SUGGESTED.map((text) => button(text, () => askNow(page, text), "chip"));
  const what = may("propose")
    ? "Ask as your users do. If an answer is wrong, correct it: you see what changes before anyone else does."
    : "Ask as your users do. Each answer names the version of the model that gave it.";
  return [h("h2", {}, "What does the model say?"), h("p", {}, what), h("div", { class: "chips" }, chips)];
}

function composer(page) {
  const follow = h("input", { type: "checkbox", id: uniqueId("follow") });
  follow.addEventListener("change", () => (page.isFollowing = follow.checked));
  const send = () => {
    const text = page.input.value.trim();
    if (!text) return;
    page.input.value = "";
    page.input.dispatchEvent(new Event("input"));
    askNow(page, text);
  };
  page.input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  const clear = button("Clear", () => {
    for (const turn of turns) turn.stop();
    turns = [];
    page.list.replaceChildren();
    page.empty.hidden = false;
    page.input.focus();
  }, "quiet small");
  const isChat = session.form === "chat";
  const options = h(
    "div",
    { class: "options" },
    isChat && h("label", { for: follow.id, class: "check" }, follow, "with the earlier messages"),
    clear,
  );
  const form = h("form", { class: "composer" }, h("div", { class: "line" }, page.input, h("button", { class: "primary" }, "Ask")), options);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  return form;
}

/** Return the messages before a question: those of the last answered turns, if the conversation goes on. */
function earlier(page) {
  if (!page.isFollowing) return [];
  return turns.filter((turn) => turn.text).flatMap((turn) => [
    { role: "user", content: turn.question },
    { role: "assistant", content: turn.text },
  ]);
}

function askNow(page, question) {
  page.empty.hidden = true;
  const turn = new Turn(question, earlier(page));
  turns.push(turn);
  page.list.append(turn.element);
  turn.run();
}

/** One question with its answer, and what is done about it. */
class Turn {
  text = "";
  #abort = null;

  constructor(question, before) {
    Object.assign(this, { question, before });
    this.answer = h("div", { class: "answer", "aria-live": "polite" });
    this.foot = h("div", { class: "foot" });
    this.more = h("div", { class: "more" });
    const said = h("div", { class: "said" }, this.answer, this.foot);
    this.element = h("li", { class: "turn" }, h("h2", { class: "question" }, question), said, this.more);
  }

  /** The prompt as the routes take it. */
  get asked() {
    if (session.form !== "chat") return { prompt: this.question };
    return { messages: [...this.before, { role: "user", content: this.question }] };
  }

  stop() {
    this.#abort?.abort();
  }

  /** Ask, or ask again; an answer that was there stays beside the new one. `atLeast` is a version that must have answered. */
  async run(atLeast = 0) {
    const previous = atLeast ? this.text : "";
    this.stop();
    this.#abort = new AbortController();
    fill(this.foot, h("span", { class: "busy" }, atLeast ? `asking version ${atLeast} …` : "…"));
    this.element.scrollIntoView({ block: atLeast ? "nearest" : "end" });
    try {
      const options = { model: session.model, atLeast, signal: this.#abort.signal, maxTokens: Math.min(session.form === "chat" ? 256 : 32, Math.floor(session.context / 2)) };
      for await (const part of ask(this.asked, options)) {
        this.text = part.text;
        Object.assign(this, { versions: part.versions, edits: part.edits });
        fill(this.answer, part.text);
      }
      fill(this.answer, previous && previous !== this.text ? difference(previous, this.text) : this.text || "(nothing)");
      this.#ended(previous);
    } catch (fault) {
      if (fault.name === "AbortError") return fill(this.foot, "stopped");
      fill(this.foot, h("span", { class: "fault", role: "alert" }, fault.message), button("Ask again", () => this.run(), "small"));
    }
  }

  #ended(previous) {
    const note = previous && h("span", { class: previous === this.text ? "warn" : "ok" }, previous === this.text ? "the same answer" : "the new answer");
    const fired = this.edits.map(firedTag);
    const tools = may("propose") && [
      button("This is wrong", () => this.#correct(), "small"),
      may("edit") && button("Which version says so?", () => this.#blame(), "quiet small"),
    ];
    fill(this.foot, h("span", { class: "by" }, "version ", stamp(this.versions)), note, fired, h("span", { class: "grow" }), tools);
  }

  #correct() {
    const onPublished = (version) => this.run(version);
    const form = correction({ question: this.question, before: this.before, says: this.text, onPublished });
    fill(this.more, form);
    form.scrollIntoView({ block: "nearest" });
    form.querySelector("[data-first]").focus();
  }

  async #blame() {
    fill(this.more, h("p", { class: "busy", role: "status" }, "Asking earlier versions …"));
    try {
      const found = await post("v1/blame", { ...this.asked, max_tokens: 32 });
      fill(this.more, blamed(found));
    } catch (fault) {
      fill(this.more, h("p", { class: "fault", role: "alert" }, fault.message));
    }
  }
}

/** Name an edit of a memory that decided an answer; one of an old version may have no id. */
function firedTag({ id }) {
  const text = "by a correction";
  return /^[0-9a-f]{8}/.test(id ?? "") ? h("a", { class: "tag", href: `#/edits/${id}` }, `${text} ${id.slice(0, 8)}`) : h("span", { class: "tag" }, text);
}

/** Show the version that introduced an answer, with its likeliest edits first. */
function blamed(found) {
  if (found.version === null) {
    const text = `No edit: the unedited model says so already (${several(found.num_asked, "version")} asked).`;
    return h("div", { class: "card" }, h("p", {}, text));
  }
  const edits = found.edits.slice(0, 5).map((edit) => {
    return h("li", {}, edit.id ? h("a", { href: `#/edits/${edit.id}` }, edit.prompt) : edit.prompt, " → ", h("strong", {}, edit.target));
  });
  return h(
    "div",
    { class: "card" },
    h("p", {}, "Since version ", versionLink(found.version), `; ${several(found.num_asked, "version")} asked.`),
    h("p", { class: "pair" }, difference(found.before, found.after)),
    edits.length > 0 && h("ul", {}, edits),
    found.edits.length > 5 && h("p", { class: "hint" }, `and ${several(found.edits.length - 5, "more edit")} of this version`),
  );
}
