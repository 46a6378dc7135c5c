"use strict";
(() => {
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

  // the pictures of one result's runs
  class View {
    constructor(home, runs) {
      this.home = home;
      this.runs = runs;
      this.slice = runs.axes.map(() => 0);
      this.picked = null;
      this.quantity = Object.keys(runs.traces)[0];
      const longest = runs.step.length ? runs.step[runs.step.length - 1] : 0;
      this.scale = { y: "log", x: longest > 150 ? "log" : "linear", loss: "log" };
      this.part = (name) => home.querySelector(`.${name}`);
      this.controls();
      this.bar();
    }

    // which runs are looked at
    shown() {
      const { at, rate } = this.runs;
      return rate.map((_, i) => i).filter((i) => at[i].every((v, k) => v === this.slice[k]));
    }

    pick(rate) {
      this.picked = rate === this.picked ? null : rate;
      this.mark();
      this.draw();
    }

    text(i) {
      const r = this.runs;
      const ratio = r.ratio[i] === null ? "" : `, ηλ₀ = ${number(r.ratio[i])}`;
      const axes = r.axes.map((axis, k) => `${axis.name} ${axis.values[r.at[i][k]]}, `).join("");
      return plain(
        `η = ${number(r.lr[i])}${ratio}\n${axes}seed ${r.seeds[r.seed[i]]}, ${marked(r.phase[i])}`,
      ).replace("\n", "<br>");
    }

    // the axes beside the rate
    controls() {
      const home = this.part("axes");
      this.selects = this.runs.axes.map((axis, k) => {
        const select = make("select");
        axis.values.forEach((value, i) => select.append(make("option", { value: i, textContent: value })));
        select.addEventListener("change", () => this.go(this.slice.with(k, Number(select.value))));
        home.append(make("label", {}, axis.name, select));
        return select;
      });
      home.hidden = !this.runs.axes.length;
      this.buttons("against-buttons", "loss", "loss", ["log", "linear"]);
      if (!this.part("steps-buttons")) return;
      const names = Object.keys(this.runs.traces);
      if (names.length > 1) {
        const labels = names.map((name) => this.runs.traces[name].label);
        this.group("steps-buttons", "show", names, labels, () => this.quantity, (name) => {
          this.quantity = name;
        });
      }
      this.buttons("steps-buttons", "values", "y", ["log", "linear"]);
      this.buttons("steps-buttons", "steps", "x", ["log", "linear"]);
    }

    buttons(place, title, key, names) {
      this.group(place, title, names, names, () => this.scale[key], (name) => {
        this.scale[key] = name;
      });
    }

    group(place, title, names, labels, get, set) {
      const group = make("span", {}, make("b", { textContent: title }));
      group.setAttribute("role", "group");
      group.setAttribute("aria-label", title);
      const all = names.map((name, i) => {
        const one = make("button", { type: "button", textContent: labels[i] });
        one.setAttribute("aria-pressed", String(name === get()));
        one.addEventListener("click", () => {
          set(name);
          all.forEach((other) => other.setAttribute("aria-pressed", String(other === one)));
          this.draw();
        });
        return one;
      });
      group.append(...all);
      this.part(place).append(group);
    }

    go(slice, rate = null) {
      this.slice = slice;
      this.picked = rate;
      this.selects.forEach((select, k) => { select.value = slice[k]; });
      this.bar();
      this.draw();
    }

    // a column a rate, which are buttons
    bar() {
      const { runs } = this;
      const bar = this.part("bar");
      const shown = this.shown();
      const nearest = runs.use
        ? runs.rates.reduce((best, rate, i) =>
            Math.abs(Math.log(rate / runs.use.rate)) < Math.abs(Math.log(runs.rates[best] / runs.use.rate)) ? i : best, 0)
        : -1;
      this.columns = runs.rates.map((rate, i) => {
        const phases = runs.seeds.map(() => "");
        for (const k of shown) if (runs.rate[k] === i) phases[runs.seed[k]] = runs.phase[k];
        const column = make("button", { type: "button" }, ...this.marks(phases));
        column.append(make("span", { className: "name", textContent: number(rate) }));
        const said = PHASES.filter((p) => phases.includes(p))
          .map((p) => `${phases.filter((q) => q === p).length} ${p}`).join(", ");
        column.dataset.said = `${runs.swept} = ${number(rate)}: ${said || "not run"}`;
        column.title = column.dataset.said;
        column.setAttribute("aria-label", column.dataset.said);
        column.addEventListener("click", () => this.pick(i));
        return column;
      });
      bar.replaceChildren(...this.columns);
      if (runs.use) bar.append(make("span", { className: "use", textContent: `▼ use ${number(runs.use.rate)}` }));
      bar.classList.toggle("many", runs.rates.length > 45);
      if (nearest >= 0) bar.scrollLeft = this.columns[nearest].offsetLeft - bar.clientWidth / 2;
      this.columns.forEach((column, i) => { column.tabIndex = i === Math.max(nearest, 0) ? 0 : -1; });
      bar.onkeydown = (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
        if (step === undefined) return;
        event.preventDefault();
        const from = this.columns.indexOf(document.activeElement);
        const to = Math.min(Math.max(from + step, 0), this.columns.length - 1);
        this.columns.forEach((column, i) => { column.tabIndex = i === to ? 0 : -1; });
        this.columns[to].focus();
      };
      const seen = PHASES.filter((p) => runs.phase.includes(p));
      this.part("key").replaceChildren(...seen.map((p) => {
        const span = make("span", { textContent: marked(p) });
        span.dataset.phase = p;
        return span;
      }));
      this.names();
      this.mark();
    }

    marks(phases) {
      const one = (phase, grow) => {
        const seed = make("span", { className: "seed", textContent: LOOK[phase] ? LOOK[phase].mark : "" });
        seed.dataset.phase = phase;
        if (!phase) seed.classList.add("none");
        else if (phase !== "dropped") {
          seed.style.background = LOOK[phase].fill;
          seed.style.color = onDark(LOOK[phase].fill) ? "#FFFFFF" : "#1A1A1A";
        }
        if (grow) {
          seed.style.height = `${grow}rem`;
          if (grow < 1) seed.textContent = "";
        }
        return seed;
      };
      if (phases.length <= 8) return phases.map((phase) => one(phase, 0));
      const counts = PHASES.map((p) => [p, phases.filter((q) => q === p).length]).filter(([, n]) => n);
      return counts.map(([phase, n]) => one(phase, (7 * n) / phases.length));
    }

    // as many names of rates as there is room for
    names() {
      const width = this.part("bar").scrollWidth / this.columns.length;
      const every = Math.max(1, Math.ceil(50 / width));
      this.columns.forEach((column, i) =>
        column.querySelector(".name").classList.toggle("quiet", i % every !== 0));
      this.pointer();
      this.part("wider").hidden = this.part("bar").scrollWidth <= this.part("bar").clientWidth + 1;
    }

    // the suggestion, which may lie between two rates that were tried
    pointer() {
      const { rates, use } = this.runs;
      const pointer = this.home.querySelector(".bar .use");
      if (!pointer) return;
      const centre = (i) => this.columns[i].offsetLeft + this.columns[i].offsetWidth / 2;
      const above = rates.findIndex((rate) => rate >= use.rate);
      const [i, j] = above === -1 ? [rates.length - 1, rates.length - 1] : [Math.max(above - 1, 0), above];
      const part = i === j ? 0 : Math.log(use.rate / rates[i]) / Math.log(rates[j] / rates[i]);
      pointer.style.left = `${centre(i) + part * (centre(j) - centre(i))}px`;
    }

    mark() {
      this.part("bar").classList.toggle("chosen", this.picked !== null);
      this.columns.forEach((column, i) =>
        column.setAttribute("aria-pressed", String(i === this.picked)));
      this.part("picked").textContent = this.picked === null
        ? "All runs are shown." : `Shown: ${this.columns[this.picked].dataset.said}`;
    }

    // what Plotly draws
    draw() {
      if (!window.Plotly) return;
      this.drawAgainst();
      if (this.part("steps")) this.drawTraces();
      if (this.part("diagram")) this.drawDiagram();
    }

    put(name, data, layout) {
      const ink = css("--ink");
      const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--soft"), automargin: true };
      const whole = {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: ink, size: 13, family: getComputedStyle(document.body).fontFamily },
        margin: { l: 10, r: 10, t: 10, b: 10 }, hovermode: "closest", hoverdistance: 30,
        hoverlabel: { bgcolor: css("--card"), bordercolor: css("--soft"), font: { color: ink }, align: "left" },
        legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, font: { size: 12 } },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: ink },
        dragmode: narrow.matches ? false : "zoom",
        ...layout,
        xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
      };
      const config = {
        responsive: true, displaylogo: false, scrollZoom: false,
        modeBarButtons: [["toImage", "resetScale2d"]],
      };
      const place = this.part(name);
      place.querySelector(".wait")?.remove();
      return window.Plotly.react(place, data, whole, config);
    }

    listen() {
      const to = (name, tell) => this.part(name)?.on("plotly_click", (event) => tell(event.points[0]));
      const run = (point) => point.customdata !== undefined && this.pick(this.runs.rate[point.customdata]);
      to("against", run);
      to("steps", run);
      to("diagram", (point) => this.go(this.slice.with(this.up(), point.y), point.x));
    }

    dim(i) { return this.picked !== null && this.runs.rate[i] !== this.picked; }

    drawAgainst() {
      const { runs } = this;
      const shown = this.shown();
      const lost = (i) => runs.phase[i] === "divergent" || runs.final[i] === null;
      const alive = shown.filter((i) => !lost(i)).map((i) => runs.final[i]);
      const start = runs.first ?? Math.max(...alive, 1);
      let log = this.scale.loss === "log";
      const positive = alive.filter((v) => v > 0);
      if (start <= 0 || alive.some((v) => v < 0)) log = false;
      // Losses far above the start are cut off: what matters is below it.
      const floor = log ? Math.max(Math.min(...positive, start), 1e-10 * start) : Math.min(...alive, 0);
      const highest = Math.max(...alive, start);
      const top = log ? Math.min(highest, start * Math.sqrt(start / floor)) : Math.min(highest, 2.5 * start);
      const room = log ? (v, part) => v * (top / floor) ** part : (v, part) => v + part * (top - floor);
      const rim = room(top, 0.13);
      const y = (i) => (lost(i) ? rim : Math.min(Math.max(runs.final[i], floor), top));
      const data = PHASES.map((phase) => {
        const mine = shown.filter((i) => (runs.phase[i] || "unsettled") === phase);
        const told = (i) => {
          const value = runs.final[i] === null ? "beyond all bounds" : number(runs.final[i]);
          return `${this.text(i)}<br>loss ${value} after ${runs.steps[i]} steps`;
        };
        return {
          type: "scatter", mode: "markers", name: phase, customdata: mine,
          x: mine.map((i) => runs.rates[runs.rate[i]]), y: mine.map(y), text: mine.map(told),
          hovertemplate: "%{text}<extra></extra>",
          marker: {
            symbol: SYMBOLS[phase], size: 10, color: phase === "dropped" ? css("--soft") : LOOK[phase].fill,
            opacity: mine.map((i) => (this.dim(i) ? 0.15 : 1)), line: { width: 2, color: phase === "dropped" ? css("--soft") : LOOK[phase].fill },
          },
        };
      }).filter((trace) => trace.x.length);
      const shapes = runs.lines.map(({ name, low, high }, k) => {
        const colour = [css("--ink"), LOOK.catapult.fill, LOOK.divergent.fill][
          name.includes("rises") ? 1 : name.includes("ends") ? 2 : 0];
        const band = low < high;
        return {
          type: band ? "rect" : "line", x0: low, x1: high, y0: 0, y1: 1, yref: "paper", layer: "below",
          line: { color: colour, width: band ? 0 : 1.5, dash: ["dash", "dot", "dashdot"][k % 3] },
          fillcolor: colour, opacity: band ? 0.22 : 1, showlegend: true,
          name: plain(band ? `${name}: ${number(low)} to ${number(high)}` : name),
        };
      });
      if (runs.use) {
        const good = css("--good");
        shapes.push(
          { type: "rect", x0: runs.use.low, x1: runs.use.high, y0: 0, y1: 1, yref: "paper", layer: "below",
            fillcolor: good, opacity: 0.12, line: { width: 0 } },
          { type: "line", x0: runs.use.rate, x1: runs.use.rate, y0: 0, y1: 1, yref: "paper", layer: "below",
            line: { color: good, width: 3 }, showlegend: true, name: `use ${number(runs.use.rate)}` });
      }
      if (runs.first !== null) {
        shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: start, y1: start, layer: "below",
          line: { color: css("--soft"), width: 1, dash: "dot" }, showlegend: true, name: "loss at the start" });
      }
      const range = [room(floor, -0.06), room(top, 0.2)];
      this.put("against", data, {
        shapes,
        xaxis: { title: { text: `learning rate ${runs.swept}` }, type: runs.log ? "log" : "linear",
          ...(runs.log ? ticks(runs.rates[0], runs.rates[runs.rates.length - 1]) : {}) },
        yaxis: { title: { text: "loss at the end" }, type: log ? "log" : "linear",
          range: log ? range.map(Math.log10) : range, ...(log ? ticks(...range) : {}) },
      });
    }

    drawTraces() {
      const { runs, quantity } = this;
      const held = runs.traces[quantity];
      const shown = this.shown().sort((a, b) => this.dim(b) - this.dim(a)); // picked ones on top
      const later = this.scale.x === "log" ? 1 : 0; // a logarithm has no place for step 0
      let [lowest, low, high, wild] = [Infinity, Infinity, -Infinity, -Infinity]; // low: above zero
      for (const i of shown) {
        for (const v of held.runs[i][1]) {
          if (v === null) continue;
          if (v < low && v > 0) low = v;
          lowest = Math.min(lowest, v);
          wild = Math.max(wild, v);
          if (runs.phase[i] !== "divergent") high = Math.max(high, v);
        }
      }
      if (high === -Infinity) high = wild;
      const log = this.scale.y === "log" && low < Infinity && lowest >= 0;
      const start = runs.first;
      const bottom = quantity === "loss" && start > 0 ? Math.max(low, 1e-10 * start) : low;
      const layers = new Map();
      const ends = new Map();
      for (const i of shown) {
        const phase = runs.phase[i] || "unsettled";
        const key = `${this.dim(i)} ${phase}`;
        if (!layers.has(key)) layers.set(key, { phase, dim: this.dim(i), x: [], y: [], text: [], runs: [] });
        const layer = layers.get(key);
        const about = this.text(i);
        const [at, values] = held.runs[i];
        at.forEach((position, k) => {
          const step = runs.step[position];
          layer.x.push(step + later);
          layer.y.push(log ? Math.max(values[k], bottom) : values[k]); // zero is at the rim
          layer.text.push(`${about}<br>step ${step}: ${plain(held.label)} ${number(values[k])}`);
          layer.runs.push(i);
        });
        for (const list of [layer.x, layer.y, layer.text, layer.runs]) list.push(null);
        if (at.length) {
          if (!ends.has(key)) ends.set(key, []);
          ends.get(key).push(layer.x.length - 2);
        }
      }
      const data = [];
      for (const [key, layer] of layers) {
        const { phase, dim } = layer;
        const colour = phase === "dropped" ? css("--soft") : LOOK[phase].fill;
        const common = { type: "scatter", legendgroup: phase, legendrank: PHASES.indexOf(phase), opacity: dim ? 0.1 : 1, showlegend: false,
          hovertemplate: "%{text}<extra></extra>", hoverinfo: dim ? "skip" : undefined };
        if (dim) delete common.hovertemplate;
        const first = !dim;
        data.push({ ...common, mode: "lines", x: layer.x, y: layer.y, text: layer.text, customdata: layer.runs,
          line: { color: colour, width: this.picked !== null && !dim ? 2.4 : 1.4 }, connectgaps: false,
          meta: { dim } });
        const last = ends.get(key) || [];
        const of = (list) => last.map((k) => list[k]);
        data.push({ ...common, mode: "markers", x: of(layer.x), y: of(layer.y), text: of(layer.text),
          customdata: of(layer.runs), name: phase, showlegend: first,
          marker: { symbol: SYMBOLS[phase], size: 9, color: colour, line: { width: 2, color: colour } }, meta: { dim } });
      }
      let range;
      if (log) {
        const up = Math.log10(Math.max(wild, bottom * 1.01));
        const down = Math.log10(bottom);
        range = [down - 0.05 * (up - down), up + 0.05 * (up - down)];
      } else {
        const least = Math.min(0, lowest);
        range = [least - 0.03 * (high - least), high + 0.06 * (high - least)];
      }
      const shapes = quantity === "top_eigenvalue"
        ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 2, y1: 2, line: { color: css("--soft"), width: 1.5, dash: "dot" },
            showlegend: true, name: "ηλ = 2" }] : [];
      this.put("steps", data, {
        shapes,
        xaxis: { title: { text: later ? "step + 1" : "step" }, type: this.scale.x,
          ...(later ? ticks(1, runs.step[runs.step.length - 1] + 1) : {}) },
        yaxis: { title: { text: plain(held.label) }, type: log ? "log" : "linear", range,
          ...(log ? ticks(10 ** range[0], 10 ** range[1]) : {}) },
      });
    }

    // the axis that the diagram goes up: the one with the most values
    up() {
      const sizes = this.runs.axes.map((axis) => axis.values.length);
      return sizes.indexOf(Math.max(...sizes));
    }

    drawDiagram() {
      const { runs } = this;
      const up = this.up();
      const axis = runs.axes[up];
      const votes = axis.values.map(() => runs.rates.map(() => ({})));
      runs.rate.forEach((rate, i) => {
        if (!runs.at[i].every((v, k) => k === up || v === this.slice[k])) return;
        const cell = votes[runs.at[i][up]][rate];
        cell[runs.phase[i]] = (cell[runs.phase[i]] || 0) + 1;
      });
      const won = (cell) => {
        const voting = CAUTIOUS.filter((p) => cell[p]);
        if (!voting.length) return cell.dropped ? "dropped" : null;
        return voting.reduce((best, p) => (cell[p] > cell[best] ? p : best));
      };
      const each = (tell) => votes.map((row, j) => row.map((cell, i) => tell(cell, i, j)));
      const n = PHASES.length;
      const scale = PHASES.flatMap((p, k) => [[k / n, LOOK[p].fill], [(k + 1) / n, LOOK[p].fill]]);
      const told = (cell, i, j) => plain(
        `${runs.swept} = ${number(runs.rates[i])}, ${axis.name} ${axis.values[j]}: ` +
        (PHASES.filter((p) => cell[p]).map((p) => `${cell[p]} ${p}`).join(", ") || "not run"));
      const position = { tickmode: "array", showgrid: false, zeroline: false };
      const every = Math.max(1, Math.ceil(runs.rates.length / (narrow.matches ? 6 : 16)));
      const ticks = runs.rates.map((_, i) => i).filter((i) => i % every === 0);
      this.put("diagram", [{
        type: "heatmap", z: each((cell) => { const p = won(cell); return p ? PHASES.indexOf(p) + 0.5 : null; }),
        zmin: 0, zmax: n, colorscale: scale, showscale: false, xgap: 1, ygap: 1, hoverongaps: false,
        text: each((cell) => { const p = won(cell); return p ? LOOK[p].mark : ""; }), texttemplate: narrow.matches && runs.rates.length > 12 ? "" : "%{text}",
        textfont: { color: "#1A1A1A" }, customdata: each(told), hovertemplate: "%{customdata}<extra></extra>",
      }], {
        xaxis: { ...position, tickvals: ticks, ticktext: ticks.map((i) => number(runs.rates[i])),
          title: { text: `learning rate ${runs.swept}` } },
        yaxis: { ...position, tickvals: axis.values.map((_, j) => j), ticktext: axis.values.map(short),
          title: { text: short(axis.name) } },
        shapes: this.picked === null ? [] : [{ type: "rect", x0: this.picked - 0.5, x1: this.picked + 0.5,
          y0: this.slice[up] - 0.5, y1: this.slice[up] + 0.5, line: { color: css("--ink"), width: 3 } }],
      });
    }
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
})();
