// An interval in a table, such as [-.003, +.012], stays on one line.
document$.subscribe(() => {
  for (const cell of document.querySelectorAll("td"))
    cell.innerHTML = cell.innerHTML.replace(/\[[-+.\d]+, [-+.\d]+\]|[-+.\d]+ ± [.\d]+/g, (x) => `<span class="together">${x}</span>`);
});
