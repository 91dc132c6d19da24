/** The live version and everything that happens, from `GET /v1/events`, for all pages. */

import { events, get } from "./api.js";

/**
 * Dispatches `edit`, `proposal`, `version` and `head` with the event's data, `state` when the connection changes, and `again`
 * when events may have been missed: what a page read before is to be read again.
 */
class Live extends EventTarget {
  head = null;
  isConnected = false;
  recent = []; // The last events, newest first.
  #stop = null;
  #moves = 0;

  /** Listen until `stop`; a stream that ends is opened again, at most once in two seconds. */
  start() {
    this.stop();
    this.#stop = new AbortController();
    this.#listen(this.#stop.signal);
  }

  stop() {
    this.#stop?.abort();
    this.#stop = null;
  }

  /** Add a listener that ends with a page. */
  on(name, listener, signal) {
    this.addEventListener(name, (event) => listener(event.detail), { signal });
  }

  async #listen(signal) {
    while (!signal.aborted) {
      try {
        await this.look();
        for await (const { event, data } of events("v1/events", { signal })) this.#heard(event, JSON.parse(data));
      } catch (fault) {
        if (signal.aborted) return;
        if (fault.status === 401) return this.#connected(false);
      }
      this.#connected(false);
      await new Promise((resolve) => setTimeout(resolve, 2_000));
    }
  }

  /** Ask for the live version. */
  async look() {
    const before = this.#moves;
    const { head } = await get("v1/versions?limit=1");
    if (before === this.#moves) this.#moved(head); // An event that came meanwhile is newer than the answer.
  }

  #heard(kind, data) {
    if (kind === "listening") return this.#listening(data.head);
    this.recent = [{ kind, data, time: Date.now() }, ...this.recent].slice(0, 100);
    if (kind === "head") this.#moved(data.head);
    this.#tell(kind, data);
  }

  /** From now on no event is missed; what happened since the pages were read is. */
  #listening(head) {
    this.#moved(head);
    this.#connected(true);
    this.#tell("again", {});
  }

  #moved(head) {
    this.#moves += 1;
    this.head = head;
    this.#tell("state", {});
  }

  #connected(is) {
    this.isConnected = is;
    this.#tell("state", {});
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

export const live = new Live();
