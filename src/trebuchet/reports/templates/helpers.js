// What every part of the page uses.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const LOOK = read("look");
const PHASES = Object.keys(LOOK); // in the order of keys and legends
const CAUTIOUS = read("cautious"); // what claims least first, which ties go by
const SYMBOLS = {
  lazy: "circle", catapult: "triangle-up", divergent: "x-thin-open", collapsed: "square",
  periodic: "diamond", chaotic: "asterisk-open", unsettled: "circle-cross-open",
  dropped: "circle-open",
};
const root = document.documentElement;
const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
const narrow = window.matchMedia("(max-width: 40rem)");

// small helpers
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const number = (value) => {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-4 || size >= 1e5)) {
    return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  }
  return String(Number(value.toPrecision(3)));
};
// a few round numbers along a logarithmic axis, written as everywhere else here
const ticks = (low, high) => {
  const decades = Math.log10(high / low);
  const room = narrow.matches ? 0.5 : 1;
  const every = Math.ceil(decades / (8 * room));
  const found = [];
  for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k++) {
    for (const m of decades < 1.2 * room ? [1, 2, 3, 5, 7] : decades < 3 * room ? [1, 2, 5] : [1]) {
      if (k % every === 0) found.push(Number(`${m}e${k}`));
    }
  }
  return { tickmode: "array", tickvals: found, ticktext: found.map(number) };
};
// Plotly reads some markup in what it shows; somebody's words are not meant as any.
const plain = (text) =>
  String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text) => plain(text.length > 24 ? `${text.slice(0, 23)}…` : text);
const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const isDark = () =>
  root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches;
const onDark = (hex) => {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b < 120;
};
const marked = (phase) => `${LOOK[phase] ? LOOK[phase].mark : "·"} ${phase || "not run"}`;
