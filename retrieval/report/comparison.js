// Sorts a table by the column whose heading is pressed; without it the best stands first.
"use strict";
for (const table of document.querySelectorAll("table.ranked")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const numbers = heading.classList.contains("figure");
      const before = heading.getAttribute("aria-sort");
      const up = before ? before === "descending" : !numbers;
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => numbers ? Number(row.cells[column].dataset.value)
        : row.cells[column].textContent;
      const order = (a, b) => numbers ? key(a) - key(b) : key(a).localeCompare(key(b));
      body.append(...[...body.rows].sort((a, b) => up ? order(a, b) : order(b, a)));
    });
  });
}
