"use strict";
// The figures, drawn by plotly. Each function gives traces and a layout of what it is given; `draw` puts them on the page.

const PALETTE = ["#3f78bf", "#cf7f35", "#4b9a6a", "#a8629c", "#98912e", "#b5544d", "#4a9fae", "#8c6d4f", "#6f6ab8", "#c77b9b"];
const MOST_POINTS = 2500; // beyond, points that would lie on one another are drawn once
const DENSE = 1.4; // in the map of layers, where shares end at 1
const PAPER = 680; // pixels that a sheet is wide between its margins
const MOST_COLUMNS = 120; // networks side by side

function colours() {
  const style = getComputedStyle(document.documentElement);
  const found = {};
  for (const name of ["paper", "ink", "muted", "rule", "faint", "cloud", "accent", "sans"]) found[name] = style.getPropertyValue(`--${name}`).trim();
  return found;
}

function narrow() {
  return window.matchMedia("(max-width: 860px)").matches;
}

function axis(colour, title, more = {}) {
  return {
    title: { text: title, standoff: 10, font: { size: 12, color: colour.muted } }, gridcolor: colour.rule, zeroline: false, showline: false,
    automargin: true, tickfont: { size: 11.5, color: colour.muted }, ticks: "", fixedrange: coarse(), ...more,
  };
}

function coarse() {
  return window.matchMedia("(pointer: coarse)").matches;
}

function layout(colour, more) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: colour.sans, size: 12, color: colour.ink },
    margin: { l: 48, r: 14, t: 8, b: 40 }, showlegend: false, hovermode: "closest", dragmode: coarse() ? false : "zoom",
    hoverlabel: { bgcolor: colour.paper, bordercolor: colour.cloud, align: "left", font: { family: colour.sans, size: 12, color: colour.ink } },
    ...more,
  };
}

// Before plotly is there, text and tables are all that is shown.
function draw(id, figure, onRow) {
  if (typeof Plotly === "undefined") return;
  const place = byId(id);
  const printing = window.matchMedia("print").matches;
  const size = printing ? { width: PAPER, height: figure.layout.height ?? place.clientHeight, autosize: false } : { autosize: true };
  const config = { displayModeBar: false, responsive: !printing, showTips: false, doubleClick: "reset+autosize" };
  const before = place.on;
  Plotly.react(place, figure.traces, { ...figure.layout, ...size }, config);
  if (!before && onRow) place.on("plotly_click", (event) => onRow(rowOfPoint(event.points[0])));
}

function rowOfPoint(point) {
  const data = point.data.meta;
  if (Array.isArray(data)) return data[point.data.type === "heatmap" ? point.x : (point.pointIndex ?? point.pointNumber)];
  return null;
}

// -- the front ------------------------------------------------------------------------------------------------------

function along(study, name, row) {
  const part = share(study, name, row);
  return part === null ? value(study, name, row) : 100 * part;
}

function costTitle(study, name) {
  const cost = study.costByName.get(name);
  return cost.dense ? `${cost.label}, % of dense` : `${cost.label}, ${cost.unit}`;
}

function frontFigure(study, view, found) {
  const colour = colours();
  const points = (rows, more) => ({
    type: "scatter", mode: "markers", x: rows.map((row) => along(study, view.x, row)), y: rows.map((row) => value(study, view.y, row)),
    meta: rows, hoverinfo: "text", hovertext: rows.map((row) => hoverText(study, row)), ...more,
  });
  const onFront = new Set(found.front);
  const rest = found.rows.filter((row) => !onFront.has(row) && row !== study.denseRow && value(study, view.y, row) !== null);
  const drawn = thinned(rest, (row) => along(study, view.x, row), (row) => value(study, view.y, row));
  const traces = [];
  if (view.shown.has("measured")) traces.push(points(drawn, { marker: { size: 5, color: colour.cloud, opacity: 0.75 } }));
  for (const [at, line] of found.proxyFronts.entries()) {
    if (view.shown.has(`proxy ${line.name}`)) traces.push(points(line.rows, {
      mode: "lines+markers", line: { width: 1.5, color: PALETTE[(at + 1) % PALETTE.length], dash: "dot" },
      marker: { size: 5, color: PALETTE[(at + 1) % PALETTE.length] },
    }));
  }
  const front = found.front.filter((row) => value(study, view.y, row) !== null);
  if (view.shown.has("front")) {
    const line = nonDominated(study, front, [view.x, view.y]); // steps: between two networks nothing better is known than the cheaper one
    traces.push(points(line, { mode: "lines", line: { width: 1.5, color: colour.accent, shape: "hv" }, hoverinfo: "skip", hovertext: undefined }));
    traces.push(points(front.filter((row) => row !== study.denseRow), { marker: { size: 8, color: colour.accent, line: { width: 1, color: colour.paper } } }));
  }
  const shapes = [];
  if (study.denseRow !== null && view.shown.has("dense")) {
    traces.push(points([study.denseRow], { marker: { size: 11, symbol: "diamond", color: colour.ink, line: { width: 1, color: colour.paper } } }));
    const level = value(study, view.y, study.denseRow);
    shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: level, y1: level, line: { width: 1, dash: "dot", color: colour.muted }, layer: "below" });
  }
  const rivals = narrowerPlaces(study, view);
  if (rivals.length && view.shown.has("narrower")) traces.push({
    type: "scatter", mode: "markers", x: rivals.map((place) => place.x), y: rivals.map((place) => place.y), hoverinfo: "text",
    hovertext: rivals.map((place) => plain(`dense with ${percent(place.width, 0)} of the channels: ${view.y} ${number(place.y)}`)),
    marker: { size: 9, symbol: "triangle-up", color: colour.ink, line: { width: 1, color: colour.paper } },
  });
  traces.push(ring(colour, frontPlace(study, view)));
  const range = frontRange(study, view, front);
  const arrow = study.directions.get(view.y) === "max" ? "↑" : "↓";
  return {
    traces,
    layout: layout(colour, {
      xaxis: axis(colour, plain(costTitle(study, view.x)), { rangemode: "tozero" }), yaxis: axis(colour, plain(`${view.y} ${arrow}`), range ? { range } : {}),
      shapes, uirevision: `${view.x} ${view.y} ${JSON.stringify(view.filter)}`,
    }),
    outside: range ? rest.filter((row) => value(study, view.y, row) < range[0] || value(study, view.y, row) > range[1]).length : 0,
  };
}

// Where narrower dense networks are in the figure: those of which both values are known.
function narrowerPlaces(study, view) {
  const dense = study.costByName.get(view.x).dense;
  return study.narrower.map((row) => ({ width: row.width, x: row.values[view.x] ?? null, y: row.values[view.y] ?? null }))
    .filter((place) => place.x !== null && place.y !== null).map((place) => ({ ...place, x: dense ? (100 * place.x) / dense : place.x }));
}

// The last trace of a figure with points: a ring around the selected network, where that is drawn.
function ring(colour, place) {
  return { type: "scatter", mode: "markers", ...place, hoverinfo: "skip", marker: { size: 15, symbol: "circle-open", color: colour.ink, line: { width: 2 } } };
}

function frontPlace(study, view) {
  const at = view.selected === null ? null : value(study, view.y, view.selected);
  return at === null ? { x: [], y: [] } : { x: [along(study, view.x, view.selected)], y: [at] };
}

function proxyPlace(study, view) {
  const scores = study.proxies.scores[view.proxy];
  const at = scores.network.indexOf(view.selected);
  return at < 0 || scores.score[at] === null ? { x: [], y: [] } : { x: [scores.score[at]], y: [value(study, study.proxies.metric, view.selected)] };
}

// Move the marks of the selected network; the rest of the figures stays as it is.
function markSelected(study, view) {
  if (typeof Plotly === "undefined") return;
  const move = (id, place) => {
    const drawn = byId(id);
    if (drawn.data) Plotly.restyle(drawn, { x: [place.x], y: [place.y] }, [drawn.data.length - 1]);
  };
  move("front-chart", frontPlace(study, view));
  if (view.proxy !== null) move("proxy-chart", proxyPlace(study, view));
  for (const id of ["heat-chart", "types-chart"]) {
    const drawn = byId(id);
    if (drawn.data?.length && !drawn.hidden) Plotly.relayout(drawn, { shapes: selectedColumn(view, drawn.data[0].meta, colours()) });
  }
}

// The front and the dense network set the scale; what is far off it is told in words.
function frontRange(study, view, front) {
  const levels = [...front, ...(study.denseRow === null ? [] : [study.denseRow])].map((row) => value(study, view.y, row)).filter((v) => v !== null);
  if (!levels.length) return null;
  const [low, high] = [Math.min(...levels), Math.max(...levels)];
  const margin = 0.1 * (high - low) || 0.05;
  return [low - margin, high + margin];
}

// Rows of which no two are drawn at one place, where there are many.
function thinned(rows, x, y) {
  if (rows.length <= MOST_POINTS) return rows;
  const [xs, ys] = [rows.map(x), rows.map(y)];
  const cell = (values, steps) => {
    const sorted = values.toSorted((a, b) => a - b);
    const low = sorted[Math.floor(0.02 * sorted.length)];
    const size = (sorted[sorted.length - 1] - low) / steps || 1;
    return (v) => Math.max(Math.floor((v - low) / size), -1);
  };
  const [column, line] = [cell(xs, 100), cell(ys, 50)];
  const seen = new Set();
  return rows.filter((_, at) => {
    const key = column(xs[at]) * 1000 + line(ys[at]);
    return !seen.has(key) && seen.add(key);
  });
}

function hoverText(study, row) {
  const lines = [`<b>${plain(study.networks.id[row])}</b>${row === study.denseRow ? " dense network" : ""}`];
  for (const metric of study.metrics) lines.push(`${plain(metric.name)} ${number(value(study, metric.name, row))} (${signed(change(study, metric.name, row))})`);
  for (const cost of study.costs) {
    const part = share(study, cost.name, row);
    lines.push(`${plain(cost.label)} ${amount(value(study, cost.name, row))}${part === null ? "" : ` (${percent(part)})`}`);
  }
  lines.push(plain(middle(study.networks.origin[row], 48)));
  return lines.join("<br>");
}

// -- layers along the front -----------------------------------------------------------------------------------------

function columnsAxis(study, rows, cost, colour, more) {
  const at = spread(rows.map((_, i) => i), narrow() ? 5 : 14);
  const text = at.map((i) => (share(study, cost, rows[i]) === null ? amount(value(study, cost, rows[i])) : percent(share(study, cost, rows[i]), 0)));
  const title = `networks of the front by ${plain(study.costByName.get(cost).label)}`;
  return axis(colour, title, { tickvals: at, ticktext: text, showgrid: false, range: [-0.5, rows.length - 0.5], ...more });
}

function heatFigure(study, view, rows) {
  const colour = colours();
  const chosen = study.sites.map((_, site) => rows.map((row) => optionOf(study, site, row)));
  const part = (option) => (option ? (option[view.heat] ?? null) : null);
  const text = chosen.map((line, site) => line.map((option, at) =>
    `<b>${plain(middle(study.sites[site], 60))}</b><br>${optionText(option)}${part(option) === null ? "" : `, ${percent(part(option))}`}<br>in ${study.networks.id[rows[at]]}`));
  const step = Math.ceil(study.sites.length / 70);
  const ticks = study.sites.map((_, i) => i).filter((i) => i % step === 0);
  return {
    traces: [{
      type: "heatmap", meta: rows, hoverinfo: "text", hovertext: text, xgap: rows.length > 60 ? 0 : 1, ygap: 1,
      z: chosen.map((line) => line.map((option) => (option ? part(option) : DENSE))), zmin: 0, zmax: DENSE,
      colorscale: [[0, colour.faint], [1 / DENSE, colour.accent], [1 / DENSE, colour.cloud], [1, colour.cloud]],
      showscale: false,
    }],
    layout: layout(colour, {
      height: Math.round(64 + study.sites.length * Math.max(20 / step, 9)), margin: { l: 60, r: 14, t: 6, b: 40 },
      xaxis: columnsAxis(study, rows, view.x, colour), shapes: selectedColumn(view, rows, colour),
      yaxis: axis(colour, "", {
        autorange: "reversed", tickvals: ticks, ticktext: ticks.map((i) => plain(middle(study.sites[i], narrow() ? 14 : 34))), showgrid: false,
        tickfont: { size: 11, color: colour.muted },
      }),
    }),
  };
}

function optionText(option) {
  return option ? `${plain(option.type)} ${plain(option.words)}` : "dense";
}

function selectedColumn(view, rows, colour) {
  const at = rows.indexOf(view.selected);
  if (at < 0) return [];
  return [{ type: "rect", x0: at - 0.5, x1: at + 0.5, yref: "paper", y0: 0, y1: 1, line: { width: 1.5, color: colour.ink } }];
}

// How often each type stands in the networks, the most frequent first.
function typesOf(study, rows) {
  const total = new Map();
  for (let site = 0; site < study.sites.length; site++) {
    for (const row of rows) {
      const type = typeOf(study, site, row);
      if (type !== null) total.set(type, (total.get(type) ?? 0) + 1);
    }
  }
  return [...total.keys()].toSorted((a, b) => total.get(b) - total.get(a));
}

function typeColours(study, rows) {
  const colour = colours();
  const pairs = typesOf(study, rows).map((type, at) => [type, at < PALETTE.length ? PALETTE[at] : colour.muted]);
  return new Map([...pairs, ["dense", colour.cloud]]);
}

function typesFigure(study, view, rows) {
  const colour = colours();
  const kinds = typeColours(study, rows);
  const counts = rows.map((row) => {
    const found = new Map();
    for (let site = 0; site < study.sites.length; site++) {
      const type = typeOf(study, site, row) ?? "dense";
      found.set(type, (found.get(type) ?? 0) + 1);
    }
    return found;
  });
  const traces = [...kinds].map(([type, fill]) => ({
    type: "bar", x: rows.map((_, i) => i), y: counts.map((found) => found.get(type) ?? 0), marker: { color: fill, line: { width: 0 } }, meta: rows,
    hoverinfo: "text", hovertext: counts.map((found, i) => `${plain(type)}: ${found.get(type) ?? 0} of ${study.sites.length} layers<br>in ${study.networks.id[rows[i]]}`),
  }));
  return {
    traces,
    layout: layout(colour, {
      barmode: "stack", bargap: rows.length > 60 ? 0 : 0.12, xaxis: columnsAxis(study, rows, view.x, colour, { fixedrange: true }),
      yaxis: axis(colour, "layers", { fixedrange: true }), shapes: selectedColumn(view, rows, colour),
    }),
  };
}

// -- the search -----------------------------------------------------------------------------------------------------

function familyColour(at) {
  return at < PALETTE.length ? PALETTE[at] : colours().muted;
}

function historyFigure(study, view) {
  const colour = colours();
  const { history } = study;
  const last = history.number.length - 1;
  const unit = view.over === "number" ? 1 : history.elapsed[last] > 7200 ? 3600 : history.elapsed[last] > 120 ? 60 : 1;
  const x = (at) => history[view.over][at] / unit;
  const better = history.number.map((_, at) => at).filter((at) => history.gain[at] > 0);
  const known = history.hypervolume.findIndex((volume) => volume !== null);
  const steps = [...new Set([known, ...better, last])].filter((at) => at >= 0);
  const text = (at) => `evaluation ${whole(history.number[at])}, ${plain(middle(study.families[history.family[at]], 48))}<br>` +
    `hypervolume ${number(history.hypervolume[at])} (${signed(history.gain[at])})`;
  const title = view.over === "number" ? "evaluations" : `${{ 1: "seconds", 60: "minutes", 3600: "hours" }[unit]} since the first evaluation began`;
  return {
    traces: [
      {
        type: "scatter", mode: "lines", x: steps.map(x), y: steps.map((at) => history.hypervolume[at]), hoverinfo: "skip",
        line: { shape: "hv", width: 1.5, color: colour.muted },
      },
      {
        type: "scatter", mode: "markers", x: better.map(x), y: better.map((at) => history.hypervolume[at]), hoverinfo: "text",
        hovertext: better.map(text), meta: better.map((at) => history.network[at]),
        marker: { size: 7, color: better.map((at) => familyColour(history.family[at])), line: { width: 1, color: colour.paper } },
      },
    ],
    layout: layout(colour, { xaxis: axis(colour, title, { rangemode: "tozero" }), yaxis: axis(colour, "hypervolume"), uirevision: view.over }),
  };
}

// -- proxies --------------------------------------------------------------------------------------------------------

// What a proxy would have chosen: the networks that no other one beats in its score and the cost, as they were measured.
function proxyFront(study, name, cost, metric, allowed) {
  const scores = study.proxies.scores[name];
  const points = scores.network.map((row, at) => ({ row, at: [value(study, cost, row), scores.score[at]] }))
    .filter((p) => allowed.has(p.row) && p.at[1] !== null && value(study, metric, p.row) !== null);
  points.sort((a, b) => lexicographic(a.at, b.at));
  const rows = [];
  let best = Infinity;
  for (const p of points) if (p.at[1] < best) [best] = [p.at[1], rows.push(p.row)];
  return rows;
}

function proxyFigure(study, view, front) {
  const colour = colours();
  const scores = study.proxies.scores[view.proxy];
  const points = scores.network.map((row, at) => ({ row, x: scores.score[at], y: value(study, study.proxies.metric, row) })).filter((p) => p.x !== null && p.y !== null);
  const drawn = thinned(points, (p) => p.x, (p) => p.y);
  const xs = points.map((p) => p.x);
  const [least, most] = xs.reduce(([low, high], x) => [Math.min(low, x), Math.max(high, x)], [Infinity, -Infinity]);
  const onFront = new Set(front);
  return {
    traces: [{
      type: "scatter", mode: "markers", x: drawn.map((p) => p.x), y: drawn.map((p) => p.y), meta: drawn.map((p) => p.row), hoverinfo: "text",
      hovertext: drawn.map((p) => `${hoverText(study, p.row)}<br>score ${p.x}`),
      marker: { size: drawn.map((p) => (onFront.has(p.row) ? 7 : 5)), color: drawn.map((p) => (onFront.has(p.row) ? colour.accent : colour.cloud)), line: { width: 0 } },
    }, ring(colour, proxyPlace(study, view))],
    layout: layout(colour, {
      xaxis: axis(colour, "score, lower is better", least > 0 && most > 10 * least ? { type: "log", dtick: most > 100 * least ? 1 : "D2" } : {}),
      yaxis: axis(colour, plain(study.proxies.metric)),
    }),
  };
}
