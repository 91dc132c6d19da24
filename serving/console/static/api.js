/** Requests to the public routes: JSON, pages, server-sent events and streamed answers. */

import { key } from "./session.js";

// The page lies at …/console/, and the routes beside it.
const ROOT = new URL("..", document.baseURI);

/** An error answer of the service, or none at all (status 0). */
export class Refused extends Error {
  constructor(status, body, retryAfter = null) {
    const error = body?.error ?? {};
    const plain = typeof body?.detail === "string" ? body.detail : "";
    super(error.message || body?.message || plain || (status ? `the service answers ${status}` : "the service cannot be reached"));
    this.status = status;
    this.code = error.code ?? null;
    this.faults = error.faults ?? [];
    this.body = body;
    this.retryAfter = retryAfter;
  }
}

/** Return an Idempotency-Key; `crypto.randomUUID` exists only on secure pages. */
export function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function answered(method, path, { body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (key()) sent.Authorization = `Bearer ${key()}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  const options = { method, headers: sent, signal, body: body === undefined ? undefined : JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(new URL(path, ROOT), { ...options, cache: "no-store", credentials: "omit" });
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new Refused(0, null);
  }
  if (!answer.ok) {
    const refused = new Refused(answer.status, await answer.json().catch(() => null), answer.headers.get("Retry-After"));
    if (answer.status === 401) window.dispatchEvent(new CustomEvent("errata:unauthorized"));
    throw refused;
  }
  return answer;
}

/** Ask for JSON. Throws `Refused`. */
export async function get(path, options = {}) {
  return (await answered("GET", path, options)).json();
}

/** Ask for a text. Throws `Refused`. */
export async function getText(path, options = {}) {
  return (await answered("GET", path, options)).text();
}

/** Post JSON. Throws `Refused`. */
export async function post(path, body, options = {}) {
  return (await answered("POST", path, { ...options, body })).json();
}

/** Yield {event, data} of a stream of server-sent events until it ends. Throws `Refused`. */
export async function* events(path, options = {}) {
  yield* parsedEvents(await answered(options.body === undefined ? "GET" : "POST", path, options));
}

async function* parsedEvents(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value.replaceAll("\r", "")).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const found = parsedEvent(block);
        if (found) yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsedEvent(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return data.length ? { event, data: data.join("\n") } : null;
}

/**
 * Ask the model, streaming: `asked` is {messages} or {prompt}. Yields {text, versions, edits} with all text so far.
 * `atLeast` is a version that the answer must follow. Throws `Refused`.
 */
export async function* ask(asked, { model, atLeast = 0, maxTokens = 256, signal } = {}) {
  const path = asked.messages ? "v1/chat/completions" : "v1/completions";
  const body = { ...asked, model, stream: true, temperature: 0, max_tokens: maxTokens };
  const headers = atLeast ? { "X-Errata-At-Least": String(atLeast) } : {};
  let text = "";
  let versions = null;
  let edits = [];
  for await (const { data } of events(path, { body, headers, signal })) {
    if (data === "[DONE]") break;
    const part = JSON.parse(data);
    if (part.error) throw new Refused(500, part);
    const choice = part.choices?.[0];
    text += choice?.delta?.content ?? choice?.text ?? "";
    if (part.errata) {
      versions = [part.errata.version_min, part.errata.version_max];
      edits = part.errata.edits ?? edits;
    }
    yield { text, versions, edits };
  }
  yield { text, versions, edits };
}
