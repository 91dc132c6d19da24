/** Line charts of shares, of which 1 is the best, and bars, in SVG. */

import { h, svg } from "./dom.js";

const WIDTH = 1000;
const HEIGHT = 100;

/**
 * Draw series over the same positions: `series` are {name, colour, values} with a number or null at each position, `labels`
 * name the positions, `marked` is the index of one that gets a line. `onPick` gets the index of a position that is clicked.
 */
export function lineChart({ title, series, labels, marked = -1, onPick = () => {} }) {
  const last = Math.max(1, labels.length - 1);
  const low = lowest(series);
  const y = (value) => HEIGHT - ((Math.min(1, Math.max(low, value)) - low) / (1 - low)) * (HEIGHT - 6) - 3;
  const at = (index) => (index / last) * WIDTH;
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const levels = [low, (1 + low) / 2, 1];
  for (const level of levels) drawing.append(svg("line", { x1: 0, x2: WIDTH, y1: y(level), y2: y(level), class: "grid-line" }));
  if (marked >= 0) drawing.append(svg("line", { x1: at(marked), x2: at(marked), y1: 0, y2: HEIGHT, class: "head-line" }));
  for (const one of series) drawing.append(curve(one, at, y));
  const cursor = svg("line", { y1: 0, y2: HEIGHT, class: "cursor-line", visibility: "hidden" });
  drawing.append(cursor);
  const read = h("span", { class: "reading" });
  const plot = h("div", { class: "plot", role: "img", "aria-label": summary(title, series, labels) }, drawing);
  const indexOf = (event) => Math.round(((event.clientX - plot.getBoundingClientRect().left) / plot.clientWidth) * last);
  const within = (index) => Math.min(labels.length - 1, Math.max(0, index));
  plot.addEventListener("pointermove", (event) => {
    const index = within(indexOf(event));
    for (const name of ["x1", "x2"]) cursor.setAttribute(name, at(index));
    cursor.setAttribute("visibility", "visible");
    read.textContent = reading(series, labels, index);
  });
  plot.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    read.textContent = "";
  });
  plot.addEventListener("click", (event) => onPick(within(indexOf(event))));
  const keys = series.map((one) => h("span", { class: `series-key ${one.colour}` }, one.name));
  const scale = h("div", { class: "scale", "aria-hidden": "true" }, levels.toReversed().map((level) => h("span", {}, String(Number(level.toFixed(2))))));
  const ends = h("div", { class: "ends", "aria-hidden": "true" }, h("span", {}, labels[0]), h("span", {}, labels.at(-1)));
  return h("figure", { class: "chart" }, h("figcaption", {}, keys, read), scale, plot, ends);
}

/** Return a round number below all values, at most 0.9, at which the scale begins. */
function lowest(series) {
  const values = series.flatMap((one) => one.values).filter((value) => typeof value === "number");
  return Math.max(0, Math.min(0.9, Math.floor(Math.min(1, ...values) * 10) / 10));
}

/** Draw the parts of a curve between the positions without a value; a part of one position is a short line. */
function curve({ values, colour }, at, y) {
  let path = "";
  let isOpen = false;
  values.forEach((value, index) => {
    if (typeof value !== "number") isOpen = false;
    else {
      path += `${isOpen ? "L" : "M"}${at(index).toFixed(1)} ${y(value).toFixed(1)}${isOpen ? "" : "h0.1"}`;
      isOpen = true;
    }
  });
  return svg("path", { d: path, class: `curve ${colour}` });
}

const reading = (series, labels, index) =>
  [labels[index], ...series.map((one) => `${one.name} ${one.values[index]?.toFixed(2) ?? "–"}`)].join(" · ");

function summary(title, series, labels) {
  const ends = series.map((one) => `${one.name} ${one.values.findLast((value) => typeof value === "number")?.toFixed(2) ?? "not measured"}`);
  return `${title}, ${labels[0]} to ${labels.at(-1)}; last: ${ends.join(", ")}. The table below has the numbers.`;
}

/** Draw bars of numbers, the last of which is on the right. */
export function bars(title, values) {
  const highest = Math.max(...values, 1e-9);
  const width = WIDTH / Math.max(values.length, 12);
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  values.forEach((value, index) => {
    const size = Math.max(2, (value / highest) * HEIGHT);
    drawing.append(svg("rect", { x: index * width + 3, y: HEIGHT - size, width: width - 6, height: size, class: "bar" }));
  });
  return h("div", { class: "bars", role: "img", "aria-label": title }, drawing);
}
