"use strict";
// What a reader has chosen, and the page that comes of it.

let study = null;
let found = null; // rows that satisfy the filter, those on their front, and the fronts of proxies
const view = {
  x: null, y: null, filter: { costs: {}, metrics: {}, family: null, type: null }, selected: null, heat: "rank_share", over: "number", proxy: null,
  shown: new Set(["measured", "front", "dense", "narrower"]), allRows: false,
};

// Show a study; what was chosen before stays where it still makes sense.
function display(data) {
  const [kept, first] = [study === null || view.selected === null ? null : study.networks.id[view.selected], study === null];
  study = loaded(data);
  if (first) {
    view.x = study.objectives.find((o) => study.costByName.get(o.name)?.dense)?.name ?? study.costs.find((cost) => cost.dense)?.name ?? study.costs[0].name;
    view.y = study.objectives.find((o) => !study.costByName.has(o.name))?.name ?? study.metrics[0].name;
  }
  if (view.proxy === null && study.proxies.rows.length) {
    view.proxy = study.proxies.rows[0].proxy;
    view.shown.add(`proxy ${view.proxy}`);
  }
  frame(first);
  compute();
  view.selected = kept !== null && study.rowOf.has(kept) ? study.rowOf.get(kept) : favourite();
  everything();
}

function metricOf(name) {
  return study.metrics.find((metric) => metric.name === name);
}

function compute() {
  const rows = admissible(study, view.filter);
  const front = cheapestFirst(study, nonDominated(study, rows, study.objectives.map((o) => o.name)), [view.x]);
  const allowed = new Set(rows);
  const proxyFronts = Object.keys(study.proxies.scores).map((name) => ({ name, rows: proxyFront(study, name, view.x, view.y, allowed) }));
  found = { rows, front, proxyFronts };
}

// Whether a metric is at most so much worse than the dense network's, relatively.
function close(row, tolerance) {
  if (study.denseRow === null) return false;
  const [now, dense] = [value(study, view.y, row), value(study, view.y, study.denseRow)];
  const loss = study.directions.get(view.y) === "max" ? dense - now : now - dense;
  return now !== null && loss <= tolerance * Math.abs(dense);
}

// The network that is shown first: the cheapest within 1 % of the dense one, else one in the middle of the front.
function favourite() {
  const front = found.front.filter((row) => row !== study.denseRow);
  return front.find((row) => close(row, 0.01)) ?? front[Math.floor(front.length / 2)] ?? study.denseRow;
}

// The front at once, what is further down as soon as the browser has time for it; on paper all at once.
function everything() {
  summary();
  controls();
  inTurn([frontSection, failureSection, searchSection, heatSection, typesSection, proxySection]);
}

let waiting = [];

function inTurn(parts) {
  const [first, ...others] = parts;
  const busy = document.querySelector("main");
  waiting = others;
  busy.setAttribute("aria-busy", "true");
  first();
  const next = () => {
    if (waiting !== others) return; // something else was asked for meanwhile
    const part = others.shift();
    if (part === undefined) return busy.setAttribute("aria-busy", String(typeof Plotly === "undefined"));
    part();
    soon(next);
  };
  soon(next);
}

// After what is drawn now has been painted; on paper there is no later.
function soon(work) {
  if (window.matchMedia("print").matches) work();
  else if (document.hidden) setTimeout(work);
  else requestAnimationFrame(() => setTimeout(work));
}

function select(row) {
  if (row === null || row === undefined) return;
  view.selected = row;
  configurationPanel(study, row);
  markRow(study, view);
  markSelected(study, view);
}

function filterChanged() {
  compute();
  if (!found.rows.includes(view.selected)) view.selected = favourite();
  inTurn([frontSection, searchSection, heatSection, typesSection, proxySection]);
}

// -- parts of the page ------------------------------------------------------------------------------------------------

// What does not depend on choices.
function frame(first) {
  show("name", study.study);
  byId("name").classList.toggle("long", study.study.length > 60);
  byId("name").title = study.study.length > 60 ? study.study : "";
  const arrows = study.objectives.map((o) => `${study.costByName.get(o.name)?.label ?? o.name} ${o.direction === "max" ? "↑" : "↓"}`);
  show("objectives", arrows.join(", "));
  show("pattern", study.build.join("ID"));
  if (first) {
    show("heat-value", ...Object.entries(study.cells).map(([key, label]) => element("option", { value: key, selected: key === view.heat }, label)));
    byId("history-over").onchange = (event) => { view.over = event.target.value; searchSection(); };
    byId("heat-value").onchange = (event) => { view.heat = event.target.value; heatSection(); };
  }
  show("made", `${study.made}. Store: ${study.store}. Fidelity: ${study.fidelity}.`);
  document.querySelector("main").hidden = false;
}

function summary() {
  const { evaluations, failed, all } = study.counts;
  const others = all > evaluations ? `, ${plural(all - evaluations, "evaluation")} at other fidelities` : "";
  show("summary", `${plural(evaluations, "evaluation")} at ${study.fidelity}${failed ? `, ${whole(failed)} of them failed` : ""}${others}`);
  const front = cheapestFirst(study, nonDominated(study, study.networks.id.map((_, row) => row), study.objectives.map((o) => o.name)), [view.x]);
  const label = study.costByName.get(view.x).label;
  const cheapest = front.find((row) => row !== study.denseRow && close(row, 0.01));
  const half = bestOf(front.filter((row) => share(study, view.x, row) <= 0.5));
  const figures = [
    [`Cheapest within 1${NARROW}% of dense`, cheapest === undefined ? "none yet" : `${percent(share(study, view.x, cheapest))} ${label}`,
      cheapest === undefined ? `in ${view.y}` : `${view.y} ${number(value(study, view.y, cheapest))} (${signed(change(study, view.y, cheapest))})`],
    [`Best at half the ${label}`, half === null ? "none yet" : number(value(study, view.y, half)), half === null ? view.y : `${view.y}, ${signed(change(study, view.y, half))} at ${percent(share(study, view.x, half))}`],
    ["Dense network", study.denseRow === null ? "not measured" : number(value(study, view.y, study.denseRow)), `${view.y} at ${amount(study.costByName.get(view.x).dense)} ${label}`],
    ["On the front", whole(front.length), `of ${plural(study.count, "network")}`],
  ];
  show("figures", ...figures.map(([name, text, note]) => element("div", {}, element("dt", {}, name), element("dd", {}, text, element("small", {}, note)))));
}

function bestOf(rows) {
  const sign = study.directions.get(view.y) === "max" ? -1 : 1;
  const known = rows.filter((row) => value(study, view.y, row) !== null && row !== study.denseRow);
  return known.length ? known.reduce((a, b) => (sign * value(study, view.y, b) < sign * value(study, view.y, a) ? b : a)) : null;
}

function choice(id, label, entries, chosen, change) {
  const options = entries.map(([key, text]) => element("option", { value: key, selected: key === chosen }, text));
  return element("label", {}, label, element("select", { id, onchange: (event) => change(event.target.value) }, ...options));
}

function bound(id, label, table, name, scale, hint) {
  const change = (event) => {
    const given = event.target.valueAsNumber;
    if (Number.isNaN(given)) delete table[name];
    else table[name] = given / scale;
    filterChanged();
  };
  const known = table[name] === undefined ? "" : String(Number((table[name] * scale).toPrecision(12)));
  return element("label", {}, label, element("input", { id, type: "number", step: "any", placeholder: hint, value: known, oninput: change }));
}

function controls() {
  if (byId("filters").contains(document.activeElement)) return; // somebody is typing
  const { filter } = view;
  const types = typesOf(study, found.rows.length > 2000 ? found.front : found.rows);
  const bounded = study.costs.filter((cost) => cost.dense);
  const families = [["", "any"], ...study.families.map((name, at) => [String(at), middle(name, 40)])];
  show("filters",
    choice("axis-x", "Across", study.costs.map((cost) => [cost.name, cost.label]), view.x, (name) => { view.x = name; compute(); everything(); }),
    choice("axis-y", "Up", study.metrics.map((metric) => [metric.name, metric.name]), view.y, (name) => { view.y = name; compute(); everything(); }),
    ...bounded.map((cost) => bound(`most-${cost.name}`, `${cost.label} at most, %`, filter.costs, cost.name, 100, "100")),
    ...study.metrics.map((metric) => bound(`bound-${metric.name}`, `${metric.name} at ${metric.direction === "max" ? "least" : "most"}`, filter.metrics, metric.name, 1, "any")),
    choice("family", "Found by", families, filter.family === null ? "" : String(filter.family), (at) => { filter.family = at === "" ? null : Number(at); filterChanged(); }),
    choice("type", "Having type", [["", "any"], ...types.map((type) => [type, type])], filter.type ?? "", (type) => { filter.type = type || null; filterChanged(); }),
    element("button", { type: "reset", id: "reset" }, "Reset"));
  byId("filters").onsubmit = (event) => event.preventDefault();
  byId("filters").onreset = (event) => {
    event.preventDefault();
    Object.assign(view.filter, { costs: {}, metrics: {}, family: null, type: null });
    document.activeElement.blur();
    filterChanged();
    controls();
    byId("reset").focus();
  };
}

function frontSection() {
  const figure = frontFigure(study, view, found);
  const outside = figure.outside ? `; ${whole(figure.outside)} of them beyond the scale: double-click the figure to see all` : "";
  show("matching", `${whole(found.front.length)} on the front of ${plural(found.rows.length, "network")}${found.rows.length < study.count ? ` that satisfy the filter (of ${whole(study.count)})` : ""}${outside}.`);
  frontLegend();
  draw("front-chart", figure, select);
  configurationPanel(study, view.selected);
  frontTable(study, view, found.front, select);
  byId("narrower").hidden = !study.narrower.length;
  if (!study.narrower.length) return;
  const trained = study.narrower.filter((row) => study.metrics.some((metric) => row.values[metric.name] !== null)).length;
  show("narrower-lead", `The same architecture with fewer channels in every layer, measured beside the dense network; ${trained ? `${whole(trained)} of them trained` : "none of them trained, so nothing is said of how good they are"}.`);
  narrowerTable(study);
}

function frontLegend() {
  const colour = colours();
  const entries = [["front", "front", colour.accent, ""], ["measured", "measured", colour.cloud, ""], ["dense", "dense network", colour.ink, "diamond"]];
  if (narrowerPlaces(study, view).length) entries.push(["narrower", "narrower dense networks", colour.ink, "triangle"]);
  for (const [at, line] of found.proxyFronts.entries()) entries.push([`proxy ${line.name}`, `chosen by ${line.name}`, PALETTE[(at + 1) % PALETTE.length], "line"]);
  if (byId("front-legend").contains(document.activeElement)) return;
  show("front-legend", ...entries.map(([key, label, fill, shape]) => {
    const toggle = (event) => {
      if (event.target.checked) view.shown.add(key);
      else view.shown.delete(key);
      draw("front-chart", frontFigure(study, view, found), select);
    };
    return element("label", {}, element("input", { type: "checkbox", checked: view.shown.has(key), onchange: toggle }), mark(fill, shape), label);
  }));
}

function mark(fill, shape) {
  const made = element("i", { class: shape || null, "aria-hidden": true });
  made.style.background = fill;
  return made;
}

// The networks whose layers are shown side by side.
function columns() {
  return spread(found.front.filter((row) => row !== study.denseRow), MOST_COLUMNS);
}

function heatSection() {
  const rows = columns();
  const all = found.front.filter((row) => row !== study.denseRow).length;
  const note = rows.length < all ? `${whole(rows.length)} of the ${whole(all)} networks are shown, evenly spread.` : "";
  show("layers-note", rows.length ? note : "There is no network on the front but the dense one.");
  for (const id of ["heat-chart", "heat-legend"]) byId(id).hidden = !rows.length;
  if (!rows.length) return;
  const figure = heatFigure(study, view, rows);
  byId("heat-chart").style.height = `${figure.layout.height}px`;
  draw("heat-chart", figure, select);
}

function typesSection() {
  const rows = columns();
  for (const id of ["types-chart", "types-legend"]) byId(id).hidden = !rows.length;
  if (!rows.length) return;
  show("types-legend", ...[...typeColours(study, rows)].map(([type, fill]) => element("span", { class: "key" }, mark(fill, "square"), type)));
  draw("types-chart", typesFigure(study, view, rows), select);
}

function searchSection() {
  const { history } = study;
  const seed = history.seeds > 1 ? ` Evaluations are those with seed ${history.seed}.` : "";
  show("search-lead", `The hypervolume is the share that all networks so far dominate of the box between no cost at no loss and the dense network. Every point is a network that added to it, in the colour of who proposed it.${seed}`);
  originTable(study, found.front);
  const known = history.hypervolume.some((volume) => volume !== null);
  for (const id of ["history-chart", "history-legend", "history-controls"]) byId(id).hidden = !known;
  if (!known) return;
  const finders = study.families.map((name, at) => ({ name, at, gain: gainOf(study, at) })).filter((finder) => finder.gain > 0);
  show("history-legend", ...finders.toSorted((a, b) => b.gain - a.gain).map((finder) => element("span", { class: "key" }, mark(familyColour(finder.at), ""), middle(finder.name, 40))));
  draw("history-chart", historyFigure(study, view), select);
}

// What those of a family added to the hypervolume.
function gainOf(study, family) {
  return study.history.gain.reduce((sum, gain, at) => sum + (study.history.family[at] === family ? gain ?? 0 : 0), 0);
}

function proxySection() {
  const { proxies } = study;
  byId("proxies-body").hidden = view.proxy === null;
  show("left-out", ...proxies.left_out.map((row) => element("p", {}, `Left out: ${row.proxies.join(", ")}: ${row.reason}.`)));
  if (view.proxy === null) return show("proxies-lead", `Nothing is said of proxies: ${proxies.reason ?? "too little was measured"}.`);
  show("proxies-lead", `How well cheap scores ordered what was measured of ${proxies.metric}: τ is 1 for a perfect order and 0 for chance; regret is what trusting the score loses of ${proxies.metric} at a budget.`);
  const choose = (name) => {
    view.proxy = name;
    proxySection();
  };
  proxyTable(study, view, choose);
  show("proxy-title", `Measured ${proxies.metric} over the score of ${view.proxy}`);
  show("proxy-legend", element("span", { class: "key" }, mark(colours().accent, ""), "on the front"), element("span", { class: "key" }, mark(colours().cloud, ""), "measured"));
  draw("proxy-chart", proxyFigure(study, view, found.front), select);
}

function failureSection() {
  const count = study.failures.reduce((sum, row) => sum + row.count, 0);
  show("failures-lead", count ? `${plural(count, "evaluation")} failed. The fault of a configuration stays; that of the machine or of code may be tried again: search with --retry-failed.` : "No evaluation failed.");
  byId("failure-table").hidden = !count;
  failureTable(study);
}
