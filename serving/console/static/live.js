/** The live version and everything that happens, from `GET /v1/events`, for all pages. */

import { events, get } from "./api.js";

/** Dispatches `edit`, `version` and `head` with the event's data, `state` when the connection changes, `again` after a gap. */
class Live extends EventTarget {
  head = null;
  newest = null;
  isConnected = false;
  recent = []; // The last events, newest first.
  #stop = null;

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
    let isFirst = true;
    while (!signal.aborted) {
      try {
        await this.look();
        this.#connected(true);
        if (!isFirst) this.#tell("again", {});
        for await (const { event, data } of events("v1/events", { signal })) this.#heard(event, JSON.parse(data));
      } catch (fault) {
        if (signal.aborted) return;
        if (fault.status === 401) return this.#connected(false);
      }
      isFirst = false;
      this.#connected(false);
      await new Promise((resolve) => setTimeout(resolve, 2_000));
    }
  }

  /** Ask for the live version. */
  async look() {
    const { head, newest } = await get("v1/versions?limit=1");
    this.#moved(head, Math.max(newest, this.newest ?? 0));
  }

  #heard(kind, data) {
    this.recent = [{ kind, data, time: Date.now() }, ...this.recent].slice(0, 100);
    if (kind === "head") this.#moved(data.head, Math.max(this.newest ?? 0, data.head));
    if (kind === "version") this.newest = Math.max(this.newest ?? 0, data.version);
    this.#tell(kind, data);
  }

  #moved(head, newest) {
    [this.head, this.newest] = [head, newest];
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
