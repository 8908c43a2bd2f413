/* Charts of a page. uPlot draws them; here are the choice of the x axis, the values under the pointer, the downloads.
   What a chart shows is the JSON in its figure, as `charts.py` makes it. Without this script the figure's SVG stays. */
const NEAR = 24; // pixels from the pointer to a point of a cloud
const charts = [];

class Chart {
  constructor(figure) {
    this.figure = figure;
    this.chart = JSON.parse(figure.querySelector("script").textContent);
    this.style = new Map(this.chart.groups.map((group) => [group.id, group]));
    this.hidden = new Set();
    this.plot = figure.querySelector(".plot");
    this.canvas = make("div", { className: "drawn", tabIndex: 0, title: "drag to zoom, double click for all" });
    this.canvas.setAttribute("role", "application");
    this.plot.append(this.canvas);
    figure.classList.add("live");
    this.tools();
    this.table();
    this.show(0);
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.u.setSize(this.size())).observe(this.plot);
  }

  size() {
    const width = Math.max(200, this.plot.clientWidth);
    return { width, height: Math.round(Math.min(400, Math.max(240, width * 0.42))) };
  }

  tools() {
    const bar = this.figure.querySelector(".tools");
    if (this.chart.views.length > 1) {
      const choice = make("fieldset", { className: "axes" }, make("legend", {}, "against"));
      this.chart.views.forEach((view, i) => {
        const input = make("input", { type: "radio", name: `x-of-${this.chart.name}`, checked: i === 0 });
        input.addEventListener("change", () => this.show(i));
        choice.append(make("label", {}, input, make("span", {}, view.x)));
      });
      bar.append(choice);
    }
    const save = make("div", { className: "save" });
    for (const [kind, text] of [["SVG", () => svgOf(this)], ["CSV", () => this.csv()]]) {
      const button = make("button", { type: "button", title: `Download as ${kind}` }, kind);
      button.addEventListener("click", () => this.download(kind.toLowerCase(), text()));
      save.append(button);
    }
    bar.append(save);
  }

  table() {
    const table = this.figure.querySelector(".values");
    this.head = table.querySelectorAll("thead th");
    this.rows = new Map();
    for (const row of table.tBodies[0].rows) {
      const group = Number(row.dataset.group), first = row.cells[0];
      this.rows.set(group, row);
      if (this.chart.groups.length < 2) continue;
      const button = make("button", { type: "button", title: "show or hide" }, ...first.childNodes);
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => this.toggle(group, button));
      first.replaceChildren(button);
    }
  }

  toggle(group, button) {
    if (!this.hidden.delete(group)) this.hidden.add(group);
    button.setAttribute("aria-pressed", String(!this.hidden.has(group)));
    this.u.batch(() => this.owner.forEach((of, s) => of === group && this.u.setSeries(s, this.shown(group))));
  }

  shown(group) {
    return { show: !this.hidden.has(group) };
  }

  /** Draw against another x. */
  show(which) {
    this.view = this.chart.views[which];
    Object.assign(this, columns(this.chart, this.view));
    this.cloud = this.lines.some((line) => line.cloud);
    const series = [{}], bands = [];
    this.owner = [null];
    for (const line of this.lines) {
      const { colour, dash } = this.style.get(line.group);
      const common = { ...this.shown(line.group), scale: "y" };
      const ground = () => shade("--ground");
      const points = this.cloud ? { show: true, size: 6, width: 0, fill: `${colour}b0` } : { fill: ground };
      series.push({
        ...common, stroke: colour, width: line.open ? 1.6 : 2, dash: line.open ? [2, 3] : dash, points,
        ...(this.cloud ? { paths: () => null } : {}),
      });
      this.owner.push(line.group);
      if (line.low !== null) {
        const edge = { ...common, stroke: "transparent", points: { show: false } };
        bands.push({ series: [series.length, series.length + 1], fill: `${colour}2e` });
        series.push({ ...edge }, { ...edge });
        this.owner.push(line.group, line.group);
      }
    }
    const { xlog, unit, whole } = this.view, log = this.chart.log, room = this.cloud ? 0.04 : 0;
    const across = (u) => Math.max(2, Math.min(8, u.width / 90));
    const options = {
      ...this.size(), series, bands, padding: [10, 18, 0, 0], legend: { show: false },
      scales: {
        x: { time: false, distr: xlog ? 3 : 1, range: (_u, low, high) => range(low, high, xlog, room) },
        y: { distr: log ? 3 : 1, range: (_u, low, high) => range(low, high, log, 0.05) },
      },
      axes: [
        axis(xlog, unit, across, { label: this.view.x, labelSize: 20, size: 32 }),
        axis(log, null, (u) => u.height / 45, {
          size: (_u, values) => 18 + 7 * Math.max(3, ...(values || []).map((v) => v.length)),
        }),
      ],
      cursor: { drag: { x: true, y: false }, points: { show: !this.cloud, size: 8 }, y: false },
      hooks: { setCursor: [() => this.values()], draw: [(u) => this.ends(u)] },
    };
    if (whole) options.axes[0].values = (_u, found) => found.map((v) => (Number.isInteger(v) ? number(v) : ""));
    if (this.u) this.u.destroy();
    this.u = null;
    this.u = new uPlot(options, this.data, this.canvas);
    this.canvas.setAttribute("aria-label", `${this.chart.y} against ${this.view.x}`);
    this.values();
  }

  /** A cross where a run stopped too early. */
  ends(u) {
    const { ctx } = u, r = 4 * uPlot.pxRatio;
    this.lines.forEach((line) => {
      if (!line.open || this.hidden.has(line.group)) return;
      const last = line.y.findLastIndex((v) => v !== null);
      if (last < 0) return;
      const x = u.valToPos(line.x[last], "x", true), y = u.valToPos(line.y[last], "y", true);
      ctx.beginPath();
      ctx.strokeStyle = this.style.get(line.group).colour;
      ctx.lineWidth = 2 * uPlot.pxRatio;
      for (const d of [-1, 1]) { ctx.moveTo(x - r, y - d * r); ctx.lineTo(x + r, y + d * r); }
      ctx.stroke();
    });
  }

  // --- values under the pointer ----------------------------------------------------------------------------------

  values() {
    const over = this.u && this.u.cursor.left >= 0 && this.u.cursor.idx !== null;
    const at = over ? this.data[0][this.u.cursor.idx] : null;
    const near = over && this.cloud ? this.nearest() : null;
    const where = near === null ? at : near.x;
    const still = this.cloud ? "points" : "at the end";
    const nowhere = where === null || (this.cloud && near === null);
    this.head[1].textContent = nowhere ? still : `${this.view.x} ${measured(where, this.view.unit)}`;
    const texts = new Map([...this.rows.keys()].map((group) => [group, { value: [], ends: [] }]));
    this.lines.forEach((line, i) => {
      const text = texts.get(line.group);
      if (!text) return;
      if (this.cloud) {
        if (near !== null && near.line === i) text.value.push(number(near.y));
        else if (near === null) text.value.push(line.x.length.toLocaleString("en"));
        return;
      }
      const column = this.data[this.of[i]], last = line.x.length - 1;
      let k = over ? this.u.cursor.idxs[this.of[i]] : this.data[0].indexOf(line.x[last]);
      if (over && (at < line.x[0] || at > line.x[last])) k = null;
      const value = k === null || k === undefined ? null : column[k];
      text.value.push(number(value));
      if (line.low !== null && value !== null && value !== undefined) {
        text.ends.push(`${number(this.data[this.of[i] + 2][k])} to ${number(this.data[this.of[i] + 1][k])}`);
      }
    });
    for (const [group, { value, ends }] of texts) {
      const cells = this.rows.get(group).cells;
      cells[1].textContent = value.join(", ");
      if (cells[2]) cells[2].textContent = ends.join(", ");
    }
  }

  /** The point of a cloud under the pointer; null where none is near. */
  nearest() {
    const { left, top } = this.u.cursor;
    let found = null, best = NEAR ** 2;
    this.lines.forEach((line, i) => {
      if (this.hidden.has(line.group)) return;
      line.x.forEach((x, k) => {
        if (line.y[k] === null) return;
        const away = (this.u.valToPos(x, "x") - left) ** 2 + (this.u.valToPos(line.y[k], "y") - top) ** 2;
        if (away < best) [best, found] = [away, { line: i, x, y: line.y[k] }];
      });
    });
    return found;
  }

  /** Arrow keys move from point to point. */
  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const x = this.data[0], now = this.u.cursor.idx;
    const next = now === null || now === undefined ? (step > 0 ? 0 : x.length - 1) : now + step;
    const left = this.u.valToPos(x[Math.max(0, Math.min(x.length - 1, next))], "x");
    this.u.setCursor({ left, top: this.u.over.clientHeight / 2 });
  }

  // --- downloads -------------------------------------------------------------------------------------------------

  download(kind, text) {
    const type = { svg: "image/svg+xml", csv: "text/csv" }[kind];
    const address = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
    make("a", { href: address, download: `${slug(this.chart.name)}-${slug(this.view.x)}.${kind}` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  csv() {
    const quoted = (v) => (/[",\n]/.test(v) ? `"${v.replace(/"/g, '""')}"` : v);
    const cell = (v) => (v === null || v === undefined ? "" : quoted(String(v)));
    const lines = [["group", this.view.x, this.chart.y, "lowest", "highest", "finished"].map(cell).join(",")];
    for (const line of this.lines) {
      const label = this.style.get(line.group).label, state = line.open ? "no" : "yes";
      line.x.forEach((x, k) => {
        const ends = line.low === null ? [null, null] : [line.low[k], line.high[k]];
        lines.push([label, x, line.y[k], ...ends, state].map(cell).join(","));
      });
    }
    return lines.join("\n") + "\n";
  }
}

for (const figure of document.querySelectorAll("figure.chart")) {
  try {
    charts.push(new Chart(figure));
  } catch (error) { // its SVG is still there
    figure.classList.remove("live");
    console.error(error);
  }
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  charts.forEach((chart) => chart.u.redraw(false, true));
});
