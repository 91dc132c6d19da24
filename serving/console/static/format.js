/** Numbers, times, versions, states and differences of texts, as they are shown. */

import { h } from "./dom.js";

const NUMBER = new Intl.NumberFormat("en");
const MOMENT = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
const UNITS = [["day", 86_400], ["hour", 3_600], ["minute", 60]];

/** Write a number with separators. */
export const count = (value) => NUMBER.format(value);

/** Write "3 edits", "1 edit". */
export const several = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** Write a share or ratio with three digits; nothing for what is not a number. */
export const score = (value) => (typeof value === "number" ? value.toFixed(3) : "–");

/** Write seconds or milliseconds briefly. */
export function seconds(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  return value < 1 ? `${Math.round(value * 1e3)} ms` : `${value.toFixed(value < 10 ? 1 : 0)} s`;
}

/** Show a time as "3 minutes ago", with the whole date as its title; `time` is in seconds, or an ISO text. */
export function ago(time) {
  const date = new Date(typeof time === "number" ? time * 1e3 : time);
  const passed = (Date.now() - date.getTime()) / 1e3;
  const [name, size] = UNITS.find(([, unit]) => passed >= unit) ?? [null, 1];
  const text = passed > 7 * 86_400 ? MOMENT.format(date) : name ? `${several(Math.floor(passed / size), name)} ago` : "just now";
  return h("time", { datetime: date.toISOString(), title: date.toISOString() }, text);
}

/** Show a version as a link. */
export function versionLink(number, text = `v${number}`) {
  return h("a", { class: "version", href: `#/versions/${number}` }, text);
}

/** Show the versions that an answer was sampled under. */
export function stamp(versions) {
  if (!versions) return null;
  const [low, high] = versions;
  return low === high ? versionLink(high) : [versionLink(low), " to ", versionLink(high)];
}

const TONES = { applied: "ok", rejected: "bad", reverted: "off", superseded: "off", queued: "wait", applying: "wait", open: "wait", approved: "ok", refused: "bad" };

/** Show the state of an edit as a word with a mark; an applied edit that is not live, or not answered, says so. */
export function state(entry) {
  let [word, tone] = [entry.state, TONES[entry.state] ?? "off"];
  if (entry.state === "applied" && entry.live === false) [word, tone] = ["not live", "off"];
  if (entry.state === "applied" && entry.answered === false) [word, tone] = ["lost", "warn"];
  return h("span", { class: `state ${tone}` }, word);
}

/** Say when an edit holds, as far as it is known: "2020-03-01 to 2024-05-01", "since 2020-03-01", "until 2024-05-01". */
export function held(entry) {
  const [from, to] = [entry.held_from ?? entry.edit.valid_from, entry.held_to ?? entry.edit.valid_to];
  if (from && to) return `${from} to ${to}`;
  return from ? `since ${from}` : to ? `until ${to}` : "";
}

/** Show an edit's id as a link to it. */
export const editLink = (id) => h("a", { href: `#/edits/${encodeURIComponent(id)}` }, id.slice(0, 8));

/** Return the question of an edit. */
export const asked = (edit) => edit.prompt ?? edit.question ?? edit.messages?.at(-1)?.content ?? "";

const MIN_SHARED = 0.4; // Of the words; texts that share less are shown one after the other.
const MAX_WORDS = 300; // The table of a comparison has its square.

/** Show two texts as one, with the words that went and the words that came. */
export function difference(before, after) {
  if (before == null || after == null) return [h("ins", {}, after ?? before ?? "")]; // The model was not asked.
  const [one, other] = [words(before), words(after)];
  const apart = [h("del", {}, before), " ", h("ins", {}, after)];
  if (one.length > MAX_WORDS || other.length > MAX_WORDS) return apart;
  const found = steps(one, other);
  const numSame = found.filter(([kind]) => kind === "same").length;
  if (2 * numSame < MIN_SHARED * (one.length + other.length)) return apart;
  return joined(found).map(([kind, text]) => (kind === "same" ? text : h(kind, {}, text)));
}

const words = (text) => text.match(/\S+\s*/g) ?? [];

/** Find the longest common subsequence of words, and return the steps that lead from one text to the other. */
function steps(one, other) {
  const [left, right] = [one, other].map((list) => list.map((word) => word.trim()));
  const length = left.map(() => new Uint16Array(right.length + 1));
  length.push(new Uint16Array(right.length + 1));
  for (let i = left.length - 1; i >= 0; i -= 1) {
    for (let j = right.length - 1; j >= 0; j -= 1) {
      length[i][j] = left[i] === right[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const found = [];
  let [i, j] = [0, 0];
  while (i < left.length || j < right.length) {
    if (i < left.length && j < right.length && left[i] === right[j]) found.push(["same", other[j++], i++]);
    else if (j >= right.length || (i < left.length && length[i + 1][j] >= length[i][j + 1])) found.push(["del", one[i++]]);
    else found.push(["ins", other[j++]]);
  }
  return found;
}

/** Join neighbours of one kind; between two kinds there is a blank. */
function joined(list) {
  const found = [];
  for (const [kind, text] of list) {
    if (found.at(-1)?.[0] === kind) found.at(-1)[1] += text;
    else found.push([kind, text]);
  }
  return found.map(([kind, text], index) => [kind, index < found.length - 1 && !/\s$/.test(text) ? `${text} ` : text]);
}
