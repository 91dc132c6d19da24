/** Elements without HTML: every text becomes a text node, so that no text of a user is ever interpreted. */

const SVG = "http://www.w3.org/2000/svg";

/** Make an element; properties that begin with `on` are listeners, `null` and `false` leave an attribute or a child out. */
export function h(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** Make an element of SVG. */
export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...listed(children));
  return element;
}

function listed(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false && child !== "");
}

/** Replace the children of an element. */
export function fill(element, ...children) {
  element.replaceChildren(...listed(children));
  return element;
}

let lastId = 0;

/** Make a name that no other element has. */
export function uniqueId(prefix) {
  lastId += 1;
  return `${prefix}-${lastId}`;
}

/** Make a labelled control; `hint` says below it what belongs there. */
export function field(label, control, hint = "") {
  control.id ||= uniqueId("field");
  const note = hint && h("p", { class: "hint", id: `${control.id}-hint` }, hint);
  if (note) control.setAttribute("aria-describedby", note.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, note);
}

/** Make a button; `kind` is primary, danger or quiet. */
export function button(text, onclick, kind = "", properties = {}) {
  return h("button", { type: "button", class: kind, onclick, ...properties }, text);
}

/** Make a text area that grows with its text. */
export function area(value = "", properties = {}) {
  const control = h("textarea", { rows: 1, ...properties, value });
  const grow = () => {
    control.style.height = "auto";
    control.style.height = `${control.scrollHeight + 2}px`;
  };
  control.addEventListener("input", grow);
  requestAnimationFrame(grow);
  return control;
}

/** Make a list of (name, value) pairs; pairs without a value are left out. */
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== false && value !== "");
  return h("dl", { class: "facts" }, shown.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** Make a table; a cell is a text, an element, or {text, class}. The first cell of a row names it. */
export function table(caption, columns, rows, numberColumns = []) {
  const side = (index) => (numberColumns.includes(index) ? "number" : null);
  const heads = columns.map((name, index) => h("th", { scope: "col", class: side(index) }, name));
  const lines = rows.map((row) => h("tr", {}, row.map((cell, index) => tableCell(cell, index, side(index)))));
  const body = h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, heads)), h("tbody", {}, lines));
  return h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": caption }, body);
}

function tableCell(cell, index, side) {
  const isRich = cell !== null && typeof cell === "object" && !(cell instanceof Node) && !Array.isArray(cell);
  const { text, class: tone = "" } = isRich ? cell : { text: cell };
  const classes = [side, tone].filter(Boolean).join(" ") || null;
  return index === 0 ? h("th", { scope: "row", class: classes }, text ?? "") : h("td", { class: classes }, text ?? "");
}

/** Show a message at the edge of the window for some seconds; `tone` is ok, warn or bad. */
export function notify(text, tone = "ok") {
  const note = h("p", { class: `note ${tone}` }, text);
  document.getElementById("notes").append(note);
  setTimeout(() => note.remove(), tone === "bad" ? 12_000 : 6_000);
}

/** Open a modal dialog with a title; it resolves when it closes. `build` gets its body and a function that closes it. */
export function dialog(title, build) {
  const heading = h("h2", { id: uniqueId("title"), tabindex: -1 }, title);
  const body = h("div", { class: "dialog-body" });
  const box = h("dialog", { "aria-labelledby": heading.id }, heading, body);
  const before = document.activeElement;
  document.body.append(box);
  build(body, () => box.close());
  box.showModal();
  heading.focus();
  return new Promise((resolve) => {
    box.addEventListener("close", () => {
      box.remove();
      before?.isConnected && before.focus();
      resolve();
    });
  });
}

/** Save a text as a file on the user's machine. */
export function saveFile(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
