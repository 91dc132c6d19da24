/** The edits of the service, loaded page by page, newest first. */

import { get } from "./api.js";
import { asked } from "./format.js";

const FIRST_PAGE = 100; // Shown soon; the next pages are larger.
const PAGE = 500;

/** The edits of one state, or all. */
export class EditList {
  items = [];
  isComplete = false;
  isLoading = false;
  #before = null;

  constructor(state = "") {
    this.state = state;
  }

  #path(limit, before) {
    const query = new URLSearchParams({ limit: String(limit) });
    if (this.state) query.set("state", this.state);
    if (before !== null) query.set("before", String(before));
    return `v1/edits?${query}`;
  }

  /** Load the next page. Throws `Refused`. */
  async load(signal) {
    this.isLoading = true;
    try {
      const limit = this.items.length ? PAGE : FIRST_PAGE;
      const { edits, next } = await get(this.#path(limit, this.#before), { signal });
      const known = new Set(this.items.map((entry) => entry.id));
      this.items = [...this.items, ...edits.filter((entry) => !known.has(entry.id))];
      this.#before = next;
      this.isComplete = next === null;
    } finally {
      this.isLoading = false;
    }
  }

  /** Load the newest edits again: new ones come to the front, known ones get their new state. Throws `Refused`. */
  async renew(signal) {
    const { edits, next } = await get(this.#path(FIRST_PAGE, null), { signal });
    const fresh = new Set(edits.map((entry) => entry.id));
    const isJoined = next === null || this.items.some((entry) => fresh.has(entry.id)); // Otherwise edits between them were missed.
    this.items = [...edits, ...this.items.filter((entry) => isJoined && !fresh.has(entry.id))];
    if (!isJoined) [this.#before, this.isComplete] = [next, false];
  }
}

/** Decide whether an edit has all the words of a search in one of its texts. */
export function isFound(entry, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const { edit } = entry;
  const texts = [asked(edit), edit.target, edit.subject, edit.source, edit.reason, entry.poster, entry.id, `v${entry.version}`, entry.code, ...(edit.aliases ?? []), ...(edit.rephrasings ?? [])];
  const all = texts.filter(Boolean).join("\n").toLowerCase();
  return words.every((word) => all.includes(word));
}
