"use strict";
// How things are written: numbers as the command line writes them, names as text and never as HTML.

const NARROW = "\u202f";

function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const text = Math.abs(value) < 1000 ? Math.abs(value).toFixed(digits) : Math.abs(value).toPrecision(6);
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
}

function signed(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const text = number(Math.abs(value), digits);
  return Number(text) === 0 ? text : (value < 0 ? "−" : "+") + text;
}

function percent(share, digits = 1) {
  return share === null || share === undefined || !isFinite(share) ? "–" : `${(100 * share).toFixed(digits)}${NARROW}%`;
}

// A large number, short: 172k, 40.8M.
function amount(value) {
  if (value === null || value === undefined) return "–";
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    const part = Math.abs(value) / size;
    if (part >= 1) return (part < 999.5 ? short(value / size) : (value / size).toFixed(0)) + unit;
  }
  return Number.isInteger(value) ? String(value) : short(value);
}

function short(value) {
  return String(Number(value.toPrecision(3)));
}

function whole(value) {
  return value.toLocaleString("en-US");
}

function plural(count, noun) {
  return `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;
}

// A long name by its beginning and its end.
function middle(name, longest = 34) {
  const letters = Array.from(name);
  if (letters.length <= longest) return name;
  const half = Math.floor((longest - 1) / 2);
  return letters.slice(0, half).join("") + "…" + letters.slice(-half).join("");
}

// Text for plotly, which takes some tags in labels for markup.
function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

// An element; children are elements, or text, which stays text.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function byId(id) {
  return document.getElementById(id);
}

// Put elements in a place, instead of what is there; what had the focus there has it again if it is there again (`data-key`).
function show(id, ...children) {
  const place = byId(id);
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  place.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
  if (focused !== undefined) place.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}
