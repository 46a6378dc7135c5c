// What is looked at, and the controls that say so: the phase bar, axes, buttons.
class View extends Charts {
  constructor(home, runs) {
    super();
    this.home = home;
    this.runs = runs;
    this.slice = runs.axes.map(() => 0);
    this.picked = null;
    this.quantity = Object.keys(runs.traces)[0];
    const longest = runs.step.length ? runs.step[runs.step.length - 1] : 0;
    this.scale = { y: "log", x: longest > 150 ? "log" : "linear", loss: "log" };
    this.logs = {};
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
    this.logs[place + title] = all.find((one) => one.textContent === "log");
    group.append(...all);
    this.part(place).append(group);
  }

  // a logarithm has no place for numbers below zero
  allow(place, title, possible, wanted) {
    const log = this.logs[place + title];
    const chosen = possible && wanted;
    log.disabled = !possible;
    log.title = possible ? "" : "there are numbers below zero";
    log.setAttribute("aria-pressed", String(chosen));
    log.nextElementSibling.setAttribute("aria-pressed", String(!chosen));
    return chosen;
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
    if (runs.use) bar.append(make("span", { className: "use", textContent: `▼ ${this.advice()} ${number(runs.use.rate)}` }));
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
}
