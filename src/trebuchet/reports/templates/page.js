// The page as a whole: colours, tables, and the start.

// light and dark
const views = [];
const button = document.getElementById("theme");
const paint = () => {
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", `Change to ${isDark() ? "light" : "dark"} colours`);
  for (const span of document.querySelectorAll("span[data-phase]:not(.seed)")) {
    const look = LOOK[span.dataset.phase];
    if (look) span.style.color = isDark() && look.fill !== "#FFFFFF" ? look.fill : look.text;
  }
  for (const view of views) view.draw();
};
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  paint();
});
prefersDark.addEventListener("change", paint);

// tables
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) =>
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => {
        const text = row.cells[column].dataset.value;
        if (text === undefined) return null;
        return Number.isNaN(Number(text)) ? text : Number(text);
      };
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === null || y === null) return (x === null) - (y === null); // missing ones last
        const order = x < y ? -1 : x > y ? 1 : 0;
        return up ? order : -order;
      });
      body.append(...rows);
    }),
  );
}

const results = read("data");
for (const home of document.querySelectorAll(".runs")) {
  views.push(new View(home, results[Number(home.dataset.result)]));
}
paint();
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const view of views) if (view.picked !== null) view.pick(view.picked);
});
window.addEventListener("resize", () => views.forEach((view) => view.names()));

// Plotly comes compressed: as it is, it would be five megabytes.
const inflate = async (packed) => {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
};
const say = (words) => {
  for (const chart of document.querySelectorAll(".chart")) {
    chart.replaceChildren(make("p", { className: "wait", textContent: words }));
  }
};
const start = async () => {
  if (!views.length) return;
  if (!window.DecompressionStream) {
    say("This browser is too old for the interactive pictures (they need Chrome 80, Firefox 113 or Safari 16.4); all else on this page is complete.");
    return;
  }
  say("Drawing …");
  const source = await inflate(document.getElementById("plotly").textContent);
  document.head.append(make("script", { textContent: source }));
  for (const view of views) {
    view.draw();
    view.listen();
  }
  root.dataset.drawn = "yes";
};
start().catch((error) => {
  say(`The interactive pictures could not be drawn (${error.message}); all else on this page is complete.`);
  throw error;
});
