"use strict";
// Sorts a table by the column whose head is pressed. The base model's rows are a body of their own and stay on top.
(() => {
  const said = document.getElementById("announcer");

  const key = (row, index) => {
    const value = row.cells[index].dataset.value ?? "";
    if (value === "" || value === "nan") return null;
    const number = value === "inf" ? Infinity : value === "-inf" ? -Infinity : Number(value);
    return Number.isNaN(number) ? value : number;
  };

  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a < b ? -1 : a > b ? 1 : 0;
    return String(a).localeCompare(String(b), "en", { numeric: true, sensitivity: "base" });
  };

  const sort = (button) => {
    const head = button.closest("th");
    const table = head.closest("table");
    const was = head.getAttribute("aria-sort");
    const turned = was === "ascending" ? "descending" : "ascending";
    const order = was === "none" ? button.dataset.first : turned;
    for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const body = table.tBodies[table.tBodies.length - 1];
    const rows = [...body.rows].map((row) => ({ row, key: key(row, head.cellIndex) }));
    rows.sort((a, b) => {
      // What was not measured stands last, whichever way the rest goes.
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      return sign * compare(a.key, b.key);
    });
    body.append(...rows.map(({ row }) => row));
    said.textContent = `Sorted by ${button.textContent}, ${order}`;
  };

  for (const button of document.querySelectorAll(".sortable thead button")) {
    button.addEventListener("click", () => sort(button));
  }
})();
