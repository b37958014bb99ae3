"use strict";
// The tables, and the selected network in words.

const MOST_ROWS = 100;

function head(...columns) {
  return element("thead", {}, element("tr", {}, ...columns.map(([title, text]) => element("th", { scope: "col", class: text ? "text" : null }, title))));
}

function cell(text, kind) {
  return element("td", { class: kind ?? null }, text);
}

function buildCommand(study, row) {
  return study.build.join(study.networks.id[row]);
}

function copyButton(text, label) {
  const button = element("button", { type: "button", class: "copy", "data-key": text, title: text, "aria-label": label, onclick: copy }, "Copy");
  async function copy(event) {
    event.stopPropagation();
    let told = "Copied";
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      told = "Not allowed"; // by the browser: the command stands beside the selected network
    }
    button.textContent = told;
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }
  return button;
}

function frontTable(study, view, front, select) {
  const metrics = study.metrics.flatMap((metric) => [[metric.name], ["change"]]);
  const costs = study.costs.toReversed();
  const header = head(["network", true], ...metrics, ...costs.map((cost) => [`${cost.label}, %`]), ...costs.map((cost) => [cost.label]), ["found by", true], ["rebuild"]);
  const rows = front.slice(0, view.allRows ? undefined : MOST_ROWS).map((row) => {
    const id = study.networks.id[row];
    const chosen = row === view.selected;
    const pick = element("button", { type: "button", class: "link id", "data-key": id, "aria-pressed": String(chosen), onclick: () => select(row) }, id);
    return element("tr", { class: chosen ? "choice selected" : "choice", "data-id": id, onclick: () => select(row) },
      element("td", { class: "text" }, pick, row === study.denseRow ? " dense" : ""),
      ...study.metrics.flatMap((metric) => [cell(number(value(study, metric.name, row))), cell(signed(change(study, metric.name, row)), "change")]),
      ...costs.map((cost) => cell(percent(share(study, cost.name, row)))),
      ...costs.map((cost) => cell(amount(value(study, cost.name, row)), "change")),
      element("td", { class: "text name", title: study.networks.origin[row] }, study.networks.origin[row]),
      element("td", {}, row === study.denseRow ? "" : copyButton(buildCommand(study, row), `Copy the command that rebuilds ${id}`)));
  });
  show("front-table", header, element("tbody", {}, ...rows));
  const more = front.length - rows.length;
  show("front-more", more > 0 ? `${whole(more)} more. ` : null,
    more > 0 ? element("button", { type: "button", class: "link", onclick: () => { view.allRows = true; frontTable(study, view, front, select); } }, "Show all") : null);
}

// Dense networks of the same architecture with fewer channels, measured beside the study's.
function narrowerTable(study) {
  const costs = study.costs.filter((cost) => cost.dense && study.narrower.some((row) => cost.name in row.values));
  const header = head(["channels"], ...costs.map((cost) => [`${cost.label}, %`]), ["latency between, %"], ...study.metrics.map((metric) => [metric.name]));
  const lines = study.narrower.map((row) => element("tr", {}, cell(percent(row.width, 0)), ...costs.map((cost) => cell(percent(row.values[cost.name] / cost.dense))),
    cell(`${percent(row.low)} – ${percent(row.high)}`, "change"), ...study.metrics.map((metric) => cell(number(row.values[metric.name])))));
  show("narrower-table", header, element("tbody", {}, ...lines));
}

// Mark the selected network in the table, which stays as it is, so that the focus stays where it is.
function markRow(study, view) {
  for (const line of document.querySelectorAll("#front-table tbody tr")) {
    const chosen = line.dataset.id === study.networks.id[view.selected];
    line.classList.toggle("selected", chosen);
    line.querySelector("button").setAttribute("aria-pressed", String(chosen));
  }
}

function configurationPanel(study, row) {
  if (row === null) return show("configuration", element("p", { class: "muted" }, "No network is selected."));
  const facts = [];
  for (const metric of study.metrics) facts.push([metric.name, `${number(value(study, metric.name, row))} (${signed(change(study, metric.name, row))})`]);
  for (const cost of study.costs) {
    const part = share(study, cost.name, row);
    facts.push([cost.label, `${amount(value(study, cost.name, row))}${part === null ? "" : ` (${percent(part)} of dense)`}`]);
  }
  const { seeds, seconds, origin } = study.networks;
  facts.push(["found by", origin[row]]);
  if (seeds[row] !== 1) facts.push(["seeds", seeds[row] ? String(seeds[row]) : "not evaluated"]);
  if (seconds[row] !== null) facts.push(["took", `${number(seconds[row], 1)} s`]);
  const command = row === study.denseRow ? null : element("div", { class: "command" }, element("code", {}, buildCommand(study, row)),
    copyButton(buildCommand(study, row), "Copy the command that rebuilds this network"));
  const layers = layersOf(study, row).map(({ site, option }) => element("tr", {},
    element("td", { class: "text name", title: site }, site), cell(option ? option.type : "dense", "text"), cell(option ? option.words : "", "text"),
    element("td", {}, ...shareCells(option))));
  const panel = element("div", {}, element("h3", {}, study.networks.id[row], row === study.denseRow ? " (dense)" : ""),
    element("dl", { class: "facts" }, ...facts.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)])),
    command,
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Layers of the selected network" },
      element("table", { id: "layer-table" }, head(["layer", true], ["type", true], ["rank", true], ["params"]), element("tbody", {}, ...layers))));
  if (byId("configuration").textContent !== panel.textContent) show("configuration", ...panel.childNodes); // it is read aloud when it changes
}

function shareCells(option) {
  if (option === null) return [percent(1, 0), bar(1)];
  return typeof option.params_rel === "number" ? [percent(option.params_rel, 0), bar(option.params_rel)] : ["–"];
}

function bar(part) {
  const fill = element("span");
  fill.style.width = `${Math.min(100 * part, 100)}%`;
  return element("span", { class: "bar", "aria-hidden": true }, fill);
}

// Who found what: evaluations, how many of them failed and are on the front that is shown, and what they added to the hypervolume.
function originTable(study, front) {
  const { history } = study;
  const rows = study.families.map((name) => ({ name, all: 0, failed: 0, front: 0, gain: 0 }));
  history.family.forEach((family, at) => {
    rows[family].all += 1;
    rows[family].failed += history.failed[at];
    rows[family].gain += history.gain[at] ?? 0;
  });
  for (const row of front) rows[study.networks.family[row]].front += 1;
  const total = rows.reduce((sum, row) => sum + row.gain, 0);
  const lines = rows.toSorted((a, b) => b.gain - a.gain || b.all - a.all).map((row) => element("tr", {},
    element("td", { class: "text name", title: row.name }, row.name), cell(whole(row.all)), cell(whole(row.failed), row.failed ? null : "change"),
    cell(whole(row.front)), cell(row.gain > 0 && row.gain < 5e-5 ? "< 0.0001" : number(row.gain)), cell(percent(total ? row.gain / total : null), "change")));
  show("origin-table", head(["rule or sampler", true], ["evaluations"], ["failed"], ["on the front"], ["hypervolume added"], ["of all"]), element("tbody", {}, ...lines));
}

function proxyTable(study, view, choose) {
  const costs = study.costs;
  const header = head(["proxy", true], ["Kendall τ"], ["Spearman"], ["top-k recall"], ...costs.map((cost) => [`τ at like ${cost.label}`]), ...costs.map((cost) => [`regret, ${cost.label}`]), ["networks"]);
  const rows = study.proxies.rows.map((row) => element("tr", { class: row.proxy === view.proxy ? "choice selected" : "choice", onclick: () => choose(row.proxy) },
    element("td", { class: "text", title: row.uncovered || null }, element("button", { type: "button", class: "link", "data-key": row.proxy, "aria-pressed": String(row.proxy === view.proxy), onclick: () => choose(row.proxy) }, row.proxy)),
    cell(number(row.kendall, 2)), cell(number(row.spearman, 2)), cell(number(row.recall, 2)),
    ...costs.map((cost) => cell(number(row[`kendall_${cost.name}`], 2))), ...costs.map((cost) => cell(number(row[`regret_${cost.name}`], 4))), cell(whole(row.count), "change")));
  show("proxy-table", header, element("tbody", {}, ...rows));
}

function failureTable(study) {
  const rows = study.failures.map((row) => element("tr", {}, cell(whole(row.count)), cell(row.kind, "text"), cell(row.error, "text wrap"),
    element("td", { class: "text name", title: row.finders.join(", ") }, row.finders.join(", ")), element("td", { class: "text" }, element("code", {}, row.such_as)),
    element("td", { class: "text name", title: row.fidelity }, row.fidelity)));
  show("failure-table", head(["times"], ["whose fault", true], ["why", true], ["proposed by", true], ["such as", true], ["fidelity", true]), element("tbody", {}, ...rows));
}
