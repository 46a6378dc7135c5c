// The pictures that Plotly draws of one result's runs.
class Charts {
  advice() { return this.runs.use.sure ? "use" : "least bad:"; }

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
    const positive = alive.filter((v) => v > 0);
    const possible = start > 0 && alive.every((v) => v >= 0);
    const log = this.allow("against-buttons", "loss", possible, this.scale.loss === "log");
    // Losses far above the start are cut off: what matters is below it.
    const lowest = Math.min(...alive, start);
    const highest = Math.max(...alive, start);
    const floor = log ? Math.max(Math.min(...positive, start), 1e-10 * start) : Math.min(lowest, 0);
    // Where nothing fell below the start, there is nothing else to see than how far above it is.
    const fell = lowest < start - 0.05 * Math.abs(start);
    const cap = log ? start * Math.sqrt(start / floor) : start + 1.5 * (start - floor);
    let top = fell ? Math.min(highest, cap) : highest;
    if (!(top > floor)) top = log ? 2 * floor : floor + Math.max(1e-3, Math.abs(floor) / 2);
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
          line: { color: good, width: 3 }, showlegend: true, name: `${this.advice()} ${number(runs.use.rate)}` });
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
    const possible = low < Infinity && lowest >= 0;
    const log = this.allow("steps-buttons", "values", possible, this.scale.y === "log");
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
