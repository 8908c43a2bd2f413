/* What a chart shows, as an SVG file. */
const TEXT = "#33383e", SOFT = "#c9ced4"; // of SVG files, which stand on white paper

/** What is seen, as a file for papers: the chosen x, the zoom, the groups that are not hidden. */
function svgOf(chart) {
  const { u } = chart, ratio = uPlot.pxRatio, top = 24;
  const [left, up, width, height] = [u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height].map((v) => v / ratio);
  const round = (v) => Number(v.toFixed(2));
  const X = (v) => round(left + u.valToPos(v, "x")), Y = (v) => round(top + up + u.valToPos(v, "y"));
  const low = round(top + up + height), parts = [], drawn = [];
  const text = (x, y, what, anchor, more = "") => parts.push(
    `<text x="${round(x)}" y="${round(y)}" text-anchor="${anchor}"${more}>${plain(what)}</text>`,
  );
  const [across, upright] = u.axes;
  across._splits.forEach((v, k) => {
    parts.push(`<path d="M${X(v)} ${round(top + up)}V${low}" stroke="${SOFT}"/>`);
    text(X(v), low + 18, across._values[k], "middle");
  });
  upright._splits.forEach((v, k) => {
    parts.push(`<path d="M${round(left)} ${Y(v)}h${round(width)}" stroke="${SOFT}"/>`);
    text(left - 8, Y(v) + 4, upright._values[k], "end");
  });
  text(left, 18, chart.chart.y, "start", ' font-weight="bold"');
  text(left + width / 2, low + 38, chart.view.x, "middle");
  const path = (x, y) => {
    let pen = "M";
    return x.map((v, k) => {
      if (y[k] === null) { pen = "M"; return ""; }
      const step = `${pen}${X(v)} ${Y(y[k])}`;
      pen = "L";
      return step;
    }).join("");
  };
  for (const line of chart.lines.filter((one) => !chart.hidden.has(one.group))) {
    const { colour, dash } = chart.style.get(line.group);
    if (line.cloud) {
      line.x.forEach((x, k) => line.y[k] !== null && drawn.push(
        `<circle cx="${X(x)}" cy="${Y(line.y[k])}" r="3" fill="${colour}" fill-opacity="0.7"/>`,
      ));
      continue;
    }
    if (line.low !== null) {
      const keep = line.x.map((_, k) => k).filter((k) => line.low[k] !== null && line.high[k] !== null);
      const there = keep.map((k) => `${X(line.x[k])} ${Y(line.high[k])}`);
      const back = keep.reverse().map((k) => `${X(line.x[k])} ${Y(line.low[k])}`);
      drawn.push(`<polygon points="${[...there, ...back].join(" ")}" fill="${colour}" fill-opacity="0.18"/>`);
    }
    const pattern = (line.open ? [2, 3] : dash).join(" ");
    drawn.push(
      `<path d="${path(line.x, line.y)}" fill="none" stroke="${colour}" stroke-width="2"`
      + `${pattern && ` stroke-dasharray="${pattern}"`}/>`,
    );
  }
  const named = chart.chart.groups.filter((group) => !chart.hidden.has(group.id));
  named.forEach((group, k) => {
    const y = low + 62 + 20 * k, pattern = group.dash.join(" ");
    parts.push(
      `<path d="M${round(left)} ${y - 4}h26" stroke="${group.colour}" stroke-width="2.5"`
      + `${pattern && ` stroke-dasharray="${pattern}"`}/>`,
    );
    text(left + 34, y, group.label, "start");
  });
  const total = Math.ceil(low + 56 + 20 * named.length);
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${u.width}" height="${total}" `
    + `viewBox="0 0 ${u.width} ${total}" font-family="sans-serif" font-size="12" fill="${TEXT}">`
    + `<title>${plain(`${chart.chart.y} against ${chart.view.x}`)}</title>`
    + `<clipPath id="area"><rect x="${round(left)}" y="${round(top + up)}" width="${round(width)}" `
    + `height="${round(height)}"/></clipPath>${parts.join("")}<g clip-path="url(#area)">${drawn.join("")}</g></svg>\n`;
}
