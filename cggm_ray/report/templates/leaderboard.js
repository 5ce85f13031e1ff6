for (const head of document.querySelectorAll("thead th")) {
  head.tabIndex = 0;
  head.setAttribute("role", "button");
  const sort = () => {
    const body = head.closest("table").tBodies[0], place = head.cellIndex, down = head.dataset.sorted === "up";
    const value = (row) => {
      const text = row.cells[place].textContent, number = parseFloat(text.replace("< ", ""));
      return Number.isNaN(number) ? text : number;
    };
    const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
    body.append(...[...body.rows].sort((a, b) => order(value(a), value(b)) * (down ? -1 : 1)));
    for (const other of head.parentNode.cells) delete other.dataset.sorted;
    head.dataset.sorted = down ? "down" : "up";
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
}
