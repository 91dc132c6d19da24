/** Reading a page's list again after events. */

const PAUSE_MS = 500;

/** Calls `read` after events, at most every half second and never twice together; it ends with the page. */
export class Renewal {
  #timer = null;
  #isReading = false;
  #isOld = false; // An event came while `read` ran: its answer may be from before the event.

  constructor(read, signal) {
    Object.assign(this, { read, signal });
  }

  /** Ask for a reading that begins after this moment. */
  request() {
    if (this.#isReading) this.#isOld = true;
    else this.#timer ??= setTimeout(() => this.#run(), PAUSE_MS);
  }

  /** Ask for another reading if one is under way. */
  outdate() {
    if (this.#isReading) this.#isOld = true;
  }

  async #run() {
    this.#timer = null;
    if (this.signal.aborted) return;
    [this.#isReading, this.#isOld] = [true, false];
    await this.read().catch(() => {}); // The next event asks again, and a lost connection is shown in the bar.
    this.#isReading = false;
    if (this.#isOld) this.request();
  }
}
