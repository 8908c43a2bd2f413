/* What charts are made of: numbers as text, axes, lines as uPlot has them. */
const PREFIXES = ["p", "n", "µ", "m", "", "k", "M", "G", "T", "P"];

const shade = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const make = (tag, attributes = {}, ...inside) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...inside);
  return made;
};
const plain = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const slug = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");

// --- numbers as text -----------------------------------------------------------------------------------------------

function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e6 || size < 1e-4 ? value.toExponential(3) : String(Number(value.toPrecision(4)));
}

/** A value with its unit: 1500000 with the unit B is 1.5 MB; without a unit (null) it is a plain number. */
function measured(value, unit) {
  if (unit === null || value === 0) return number(value);
  const power = Math.max(-4, Math.min(5, Math.floor(Math.log10(Math.abs(value)) / 3 + 1e-9)));
  return `${Number((value / 1000 ** power).toPrecision(4))} ${PREFIXES[power + 4]}${unit}`.trim();
}

// --- axes ----------------------------------------------------------------------------------------------------------

/** Round numbers between two ends, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((k) => k * power >= rough) || 10);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) {
    found.push(Number((k * step).toPrecision(12)));
  }
  return found;
}

/** Ticks of a logarithmic axis: powers of ten, numbers between them where these are few. */
function powers(low, high, count) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const span = Math.log10(high / low);
  if (span < 1) return ticks(low, high, count);
  const between = span < 3 ? [1, 2, 5] : [1], step = Math.max(1, Math.ceil(span / count));
  const found = [];
  for (let e = first; e <= last; e += step) {
    found.push(...between.map((k) => Number((k * 10 ** e).toPrecision(3))));
  }
  return found.filter((v) => v >= low && v <= high);
}

function range(low, high, log, room) {
  if (low === null || low === undefined) return log ? [1, 10] : [0, 1];
  if (log) return [low / (1 + 4 * room), high * (1 + 4 * room)];
  const space = high > low ? room * (high - low) : room && Math.max(Math.abs(high) * 0.1, 0.1);
  return high > low || room ? [low - space, high + space] : [low - 0.5, high + 0.5];
}

function axis(log, unit, most, more) {
  return {
    stroke: () => shade("--text"), font: "12px system-ui, sans-serif", labelFont: "13px system-ui, sans-serif",
    grid: { stroke: () => shade("--line"), width: 1 }, ticks: { stroke: () => shade("--line"), width: 1, size: 5 },
    splits: (u, _axis, low, high) => (log ? powers : ticks)(low, high, most(u)),
    filter: (_u, found) => found,
    values: (_u, found) => found.map((v) => measured(v, unit)),
    ...more,
  };
}

// --- data ----------------------------------------------------------------------------------------------------------

/** One view's lines as uPlot has them: all over one x, `undefined` where a line has no point. */
function columns(chart, view) {
  const read = (k) => (k === null ? null : chart.pool[k]);
  const lines = view.lines.map((line) => (
    { ...line, x: read(line.x), y: read(line.y), low: read(line.low), high: read(line.high) }
  ));
  if (lines.some((line) => line.cloud)) { // points may share their x, so each has a row of its own
    const rows = lines.flatMap((line, i) => line.x.map((x, k) => [x, i, line.y[k]])).sort((a, b) => a[0] - b[0]);
    const y = lines.map((_, i) => rows.map((row) => (row[1] === i ? row[2] : undefined)));
    return { lines, data: [rows.map((row) => row[0]), ...y], of: lines.map((_, i) => i + 1) };
  }
  const x = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const row = new Map(x.map((value, k) => [value, k]));
  const data = [x], of = [];
  for (const line of lines) {
    of.push(data.length);
    for (const values of [line.y, line.high, line.low]) {
      if (values === null) continue;
      const column = new Array(x.length);
      line.x.forEach((value, k) => { column[row.get(value)] = values[k]; });
      data.push(column);
    }
  }
  return { lines, data, of };
}
