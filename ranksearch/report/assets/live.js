"use strict";
// The dashboard: the same page, with data from the server that it came from, as they change.

let every = 2000; // milliseconds between two questions, until the server says how often it looks
let known = 0;
let state = null; // of the search, as last heard

async function ask() {
  try {
    const answer = await fetch(`data.json?after=${known}`, { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status === 403 ? "the token is no longer that of the dashboard" : `it answers ${answer.status}`);
    if (answer.status === 200) {
      const news = await answer.json();
      [known, every] = [news.number, Math.max(news.every, 50)];
      trouble(news.problem && `The store cannot be read: ${news.problem}`);
      if (news.study) {
        state = news.study.live;
        const first = study === null;
        display(news.study);
        if (first) watch();
      }
    } else trouble(null);
    if (state) showState();
  } catch (error) {
    trouble(`The dashboard does not answer: ${error.message}. What is shown is what it said last.`);
  }
  setTimeout(ask, document.hidden ? 5 * every : every);
}

function trouble(text) {
  byId("problem").hidden = !text;
  if (byId("problem").textContent !== (text ?? "")) show("problem", text ?? "");
}

// The search in one line, and how far it has come.
function showState() {
  const parts = [state.writers.length ? `Searching (${state.writers.join("; ")})` : "No search is running", plural(state.evaluations, "evaluation") + (state.planned ? ` of ${whole(state.planned)}` : "")];
  if (state.writers.length) {
    if (state.per_minute !== null) parts.push(`${short(state.per_minute)} per minute`);
    if (state.at_a_time) parts.push(`${state.at_a_time} at a time`);
    if (state.left !== null) parts.push(`${duration(state.left)} left`);
  }
  if (state.failed) parts.push(`${whole(state.failed)} failed`);
  if (state.last !== null) parts.push(`last result ${duration(Date.now() / 1000 - state.last)} ago`);
  const line = element("p", {}, element("span", { class: state.writers.length ? "dot" : "dot off", "aria-hidden": true }), parts.join(" · "));
  const bar = state.planned ? element("progress", { max: state.planned, value: Math.min(state.evaluations, state.planned), "aria-label": "Evaluations" }) : null;
  show("live", line, bar);
  byId("live").hidden = false;
}

// Seconds as people say them.
function duration(seconds) {
  const left = Math.max(Math.round(seconds), 0);
  if (left < 60) return `${left} s`;
  if (left < 3600) return `${Math.floor(left / 60)} min`;
  return `${Math.floor(left / 3600)} h ${Math.floor((left % 3600) / 60)} min`;
}
