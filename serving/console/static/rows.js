/** A long list of which only the rows in sight are elements. */

import { fill, h } from "./dom.js";

const BESIDE = 8; // Rows kept above and below those in sight.

/**
 * A table whose rows have one height. `columns` are {name, title, class}; `row(item)` returns the contents of its cells, the
 * first of which is a link that names the row. `onEnd` is called when the end comes near, to load more.
 */
export class Rows {
  items = [];
  #first = -1;
  #last = -1;

  constructor({ label, columns, row, height, narrowHeight, onEnd = () => {}, isChosen = () => false, key }) {
    Object.assign(this, { columns, row, onEnd, isChosen, key });
    this.heights = [height, narrowHeight ?? height];
    this.inner = h("div", { class: "rows-inner", role: "rowgroup" });
    const heads = columns.map(({ title, class: kind }) => h("div", { role: "columnheader", class: `cell ${kind ?? ""}` }, title));
    const head = h("div", { role: "rowgroup", class: "rows-head" }, h("div", { role: "row", class: "row" }, heads));
    this.element = h("div", { class: "rows", role: "table", "aria-label": label, tabindex: 0 }, head, this.inner);
    this.element.addEventListener("scroll", () => this.#draw(), { passive: true });
    this.element.addEventListener("keydown", (event) => this.#move(event));
    this.observer = new ResizeObserver(() => this.#draw(true));
    this.observer.observe(this.element);
  }

  /** Stop watching the size. */
  end() {
    this.observer.disconnect();
  }

  get #height() {
    return this.heights[matchMedia("(max-width: 40rem)").matches ? 1 : 0];
  }

  /** Show these items. */
  set(items) {
    this.items = items;
    this.element.setAttribute("aria-rowcount", String(items.length + 1));
    this.#draw(true);
  }

  /** Draw all rows in sight again. */
  refresh() {
    this.#draw(true);
  }

  #draw(isForced = false) {
    const height = this.#height;
    const first = Math.max(0, Math.floor(this.element.scrollTop / height) - BESIDE);
    const last = Math.min(this.items.length, Math.ceil((this.element.scrollTop + this.element.clientHeight) / height) + BESIDE);
    if (this.items.length - last < 40) this.onEnd();
    if (!isForced && first === this.#first && last === this.#last) return;
    [this.#first, this.#last] = [first, last];
    const active = this.inner.contains(document.activeElement) ? document.activeElement.closest("[data-key]")?.dataset.key : null;
    this.inner.style.height = `${this.items.length * height}px`;
    fill(this.inner, this.items.slice(first, last).map((item, index) => this.#line(item, first + index, height)));
    if (active !== null) this.inner.querySelector(`[data-key="${CSS.escape(active)}"] a`)?.focus({ preventScroll: true });
  }

  #line(item, index, height) {
    const cells = this.row(item).map((content, column) => {
      return h("div", { role: "cell", class: `cell ${this.columns[column].class ?? ""}` }, content);
    });
    const chosen = this.isChosen(item);
    const properties = { role: "row", class: `row${chosen ? " chosen" : ""}`, "aria-rowindex": index + 2, "data-key": this.key(item) };
    const line = h("div", properties, cells);
    line.style.transform = `translateY(${index * height}px)`;
    line.style.height = `${height}px`;
    line.addEventListener("click", (event) => {
      if (!event.target.closest("a, button, input") && !getSelection().toString()) line.querySelector("a")?.click();
    });
    return line;
  }

  /** Move the focus from row to row with the arrow keys. */
  #move(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const here = event.target.closest("[data-key]");
    const index = here ? Number(here.getAttribute("aria-rowindex")) - 2 + step : this.#first + BESIDE * (this.#first > 0);
    if (index < 0 || index >= this.items.length) return;
    const [top, height, frame] = [index * this.#height, this.#height, this.element];
    const seen = frame.clientHeight - 2 * height; // Below the head, which stays in sight.
    if (top < frame.scrollTop) frame.scrollTop = top;
    if (top > frame.scrollTop + seen) frame.scrollTop = top - seen;
    this.#draw();
    this.inner.querySelector(`[aria-rowindex="${index + 2}"] a`)?.focus({ preventScroll: true });
  }
}
