"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const isNumber = text => text !== "" && !Number.isNaN(Number(text));
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (isNumber(x) !== isNumber(y)) return isNumber(x) ? -1 : 1;            // cells without a number go last
      const difference = isNumber(x) ? Number(x) - Number(y) : x.localeCompare(y, undefined, {numeric: true});
      return ascending ? difference : -difference;
    };
    headings.forEach(other => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}
const dialog = document.querySelector("dialog"), large = dialog.querySelector("img");
for (const button of document.querySelectorAll("figure button")) {
  button.addEventListener("click", () => {
    const image = button.querySelector("img");
    large.src = image.src; large.alt = image.alt; dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());
