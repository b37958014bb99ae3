"use strict";
// How the page begins: data from within it, or from a server; keys, and the change of light, paper and width.

async function inflated(id) {
  const letters = atob(byId(id).textContent);
  const packed = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) packed[i] = letters.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function run(source) {
  const script = element("script");
  script.textContent = source;
  document.head.append(script);
}

// Keys on figures: along the front, cheapest first.
function keys(event) {
  const front = found.front;
  const at = front.indexOf(view.selected);
  const next = { ArrowRight: Math.min(at + 1, front.length - 1), ArrowLeft: Math.max(at - 1, 0), Home: 0, End: front.length - 1 }[event.key];
  if (next === undefined || !front.length) return;
  event.preventDefault();
  select(front[next]);
}

function watch() {
  for (const id of ["front-chart", "heat-chart"]) byId(id).addEventListener("keydown", keys);
  for (const query of ["(prefers-color-scheme: dark)", "print", "(max-width: 860px)"]) {
    window.matchMedia(query).addEventListener("change", () => study !== null && everything());
  }
}

// Plotly takes a second to begin; what can be read without it is on the screen by then.
async function draws() {
  run(await inflated("plotly"));
  everything();
}

async function start() {
  show("kind", "report");
  try {
    if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old to unpack the data; use one of 2023 or later");
    display(JSON.parse(await inflated("data")));
    watch();
    soon(draws);
  } catch (error) {
    show("problem", `The report could not be shown: ${error.message}`);
    byId("problem").hidden = false;
    throw error;
  }
}

if (byId("data")) start();
else {
  show("kind", "dashboard");
  byId("elsewhere").hidden = false;
  ask();
}
