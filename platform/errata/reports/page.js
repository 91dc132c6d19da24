"use strict";
{
  // Highlighting: elements of series that are not chosen become fainter.
  const chosen = new Set();
  const show = () => {
    document.body.classList.toggle("singled", chosen.size > 0);
    for (const one of document.querySelectorAll("[data-series]")) {
      const lit = chosen.has(one.dataset.series);
      one.classList.toggle("lit", lit);
      if (one.matches("button")) one.setAttribute("aria-pressed", String(lit));
    }
  };
  const toggle = (series) => {
    if (!chosen.delete(series)) chosen.add(series);
    show();
  };
  for (const key of document.querySelectorAll("button.key")) {
    key.disabled = false;
    key.addEventListener("click", () => toggle(key.dataset.series));
  }
  for (const hint of document.querySelectorAll(".hint")) hint.hidden = false;

  // Searching: hides rows without the words, except rows that belong to a series, and opens folded tables with matches.
  for (const label of document.querySelectorAll(".search")) {
    label.hidden = false;
    label.querySelector("input").addEventListener("input", (event) => {
      const words = event.target.value.toLowerCase().trim();
      for (const table of label.parentElement.querySelectorAll("table")) {
        let found = 0;
        for (const row of table.tBodies[0].rows) {
          row.hidden = words !== "" && !row.dataset.series && !row.textContent.toLowerCase().includes(words);
          found += row.hidden ? 0 : 1;
        }
        const fold = table.closest("details");
        if (fold && words !== "") fold.open = found > 0;
      }
    });
  }
}
