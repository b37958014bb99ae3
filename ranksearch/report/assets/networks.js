"use strict";
// The networks of a study: what each has, which satisfy a filter, and which of those no other one beats.

// The study's data with what is looked up often.
function loaded(data) {
  const networks = data.networks;
  const costs = new Map(data.costs.map((cost) => [cost.name, cost]));
  const directions = new Map([...data.costs.map((cost) => [cost.name, "min"]), ...data.metrics.map((m) => [m.name, m.direction])]);
  const dense = networks.dense.length ? networks.dense[0] : null;
  const row = new Map(networks.id.map((id, at) => [id, at]));
  return { ...data, count: networks.id.length, costByName: costs, directions, denseRow: dense, rowOf: row };
}

function value(study, name, row) {
  return study.networks.values[name][row];
}

// A cost as a share of the dense network's; null where that has none.
function share(study, name, row) {
  const cost = study.costByName.get(name);
  return cost && cost.dense ? value(study, name, row) / cost.dense : null;
}

// A metric minus the dense network's.
function change(study, name, row) {
  if (study.denseRow === null) return null;
  const [now, before] = [value(study, name, row), value(study, name, study.denseRow)];
  return now === null || before === null ? null : now - before;
}

// The rows that satisfy a filter: bounds on shares of costs, bounds on metrics, who found them, and a type that they have.
function admissible(study, filter) {
  const rows = [];
  const typed = filter.type === null ? null : sitesOfType(study, filter.type);
  for (let row = 0; row < study.count; row++) {
    if (filter.family !== null && study.networks.family[row] !== filter.family) continue;
    if (typed !== null && !hasType(study, typed, row)) continue;
    if (within(study, filter, row)) rows.push(row);
  }
  return rows;
}

function within(study, filter, row) {
  for (const [name, most] of Object.entries(filter.costs)) {
    const found = share(study, name, row);
    if (!(found !== null && found <= most)) return false;
  }
  for (const [name, bound] of Object.entries(filter.metrics)) {
    const found = value(study, name, row);
    if (found === null || !(study.directions.get(name) === "max" ? found >= bound : found <= bound)) return false;
  }
  return true;
}

// For every site, which of its options are of a type.
function sitesOfType(study, type) {
  return study.options.map((options) => new Set(options.type.flatMap((name, at) => (name === type ? [at + 1] : []))));
}

function hasType(study, typed, row) {
  return typed.some((numbers, site) => numbers.has(study.choices[site][row]));
}

// The rows that no other one of them beats, cheapest first; equal ones do not beat each other, one that lacks a value is never among them.
function nonDominated(study, rows, names) {
  const signs = names.map((name) => (study.directions.get(name) === "max" ? -1 : 1));
  const columns = names.map((name) => study.networks.values[name]);
  const point = (row) => columns.map((column, at) => (column[row] === null ? NaN : signs[at] * column[row]));
  const points = rows.map((row) => ({ row, at: point(row) })).filter((p) => !p.at.some(Number.isNaN));
  points.sort((a, b) => lexicographic(a.at, b.at)); // what comes later beats nothing that comes before
  const front = [];
  for (const p of points) {
    let beaten = false;
    for (let i = front.length - 1; i >= 0 && !beaten; i--) beaten = dominates(front[i].at, p.at);
    if (!beaten) front.push(p);
  }
  return front.map((p) => p.row);
}

function lexicographic(a, b) {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return a[i] - b[i];
  return 0;
}

function dominates(a, b) {
  let better = false;
  for (let i = 0; i < a.length; i++) {
    if (a[i] > b[i]) return false;
    better ||= a[i] < b[i];
  }
  return better;
}

function cheapestFirst(study, rows, names) {
  return rows.toSorted((a, b) => {
    for (const name of names) {
      const difference = value(study, name, a) - value(study, name, b);
      if (difference) return difference;
    }
    return study.networks.id[a] < study.networks.id[b] ? -1 : 1;
  });
}

// At most so many of the rows, evenly spread, both ends among them.
function spread(rows, most) {
  if (rows.length <= most) return rows;
  return Array.from({ length: most }, (_, i) => rows[Math.round((i * (rows.length - 1)) / (most - 1))]);
}

// The layers of a network, in its order.
function layersOf(study, row) {
  return study.sites.map((site, at) => ({ site, option: optionOf(study, at, row) }));
}

// What a network has at a site: type, rank in words and the cells that are known; null where it is dense.
function optionOf(study, site, row) {
  const at = study.choices[site][row] - 1;
  return at < 0 ? null : Object.fromEntries(Object.entries(study.options[site]).map(([name, values]) => [name, values[at]]));
}

// The type of a layer alone, which is asked for often.
function typeOf(study, site, row) {
  const at = study.choices[site][row] - 1;
  return at < 0 ? null : study.options[site].type[at];
}
