"use strict";
const at = (id) => document.getElementById(id);
const rows = [...document.querySelectorAll("section tbody tr")];

function filter() {
  const wanted = at("text").value.trim().toLowerCase();
  for (const part of document.querySelectorAll("section"))
    part.hidden = at("board").value !== "" && part.dataset.board !== at("board").value;
  for (const row of rows)
    row.hidden = !row.dataset.name.toLowerCase().includes(wanted) ||
      (row.dataset.kind === "baseline" && !at("baselines").checked);
  const shown = rows.filter((row) => !row.hidden && !row.closest("section").hidden).length;
  at("count").textContent = `${shown} of ${rows.length} rows`;
}

function sort(head) {
  const heads = [...head.parentNode.children], column = heads.indexOf(head);
  const up = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
  const key = (row) => {
    const cell = row.children[column];
    if (column === 1) return cell.textContent;
    return cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
  };
  const body = head.closest("table").tBodies[0];
  // Without a value last, whichever way it is sorted.
  const compare = (a, b) => {
    const x = key(a), y = key(b);
    if (typeof x === "string") return up * x.localeCompare(y);
    return isNaN(x) - isNaN(y) || (isNaN(x) ? 0 : up * (x - y));
  };
  body.append(...[...body.rows].sort(compare));
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up === 1 ? "ascending" : "descending");
}

for (const head of document.querySelectorAll("section thead th"))
  head.firstElementChild.addEventListener("click", () => sort(head));
at("filters").addEventListener("input", filter);
at("filters").addEventListener("submit", (event) => event.preventDefault());
filter();
