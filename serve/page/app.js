// One query at a time: expand it, then search with and without the expansion.

import { expand, getExamples, getModel, key, search, ServiceError } from "./api.js";
import * as view from "./view.js";

const { byId, make } = view;
const field = byId("query");
const TITLE = document.title;

let model;
let golds = new Map(); // a known query -> docids of its relevant passages
let running = null; // the AbortController of what is in work
let again = () => {};
let countdown;

/** Does `work`, in place of whatever is in work; what goes wrong is shown, with a way to try again. */
async function attempt(work) {
  running?.abort();
  const mine = (running = new AbortController());
  again = () => attempt(work);
  clearInterval(countdown);
  byId("trouble").replaceChildren();
  byId("key").hidden = true;
  try {
    await work(mine.signal);
  } catch (error) {
    if (!mine.signal.aborted) showTrouble(error);
  } finally {
    if (running === mine) finish();
  }
}

function finish() {
  running = null;
  byId("running").hidden = true;
  byId("expansion").classList.remove("writing");
}

function stop() {
  if (!running) return;
  running.abort();
  finish();
  byId("made").append(" Stopped.");
  say("Stopped.");
}

function stage(text) {
  byId("stage").textContent = text;
  byId("running").hidden = false;
  say(text);
}

/** For screen readers; the expansion is read out when it is complete, not word by word. */
function say(text) {
  byId("live").textContent = text;
}

async function load(signal) {
  if (model) return;
  const [first, examples] = await Promise.all([getModel(signal), getExamples(signal)]);
  model = first;
  golds = new Map(examples.map(({ query, gold }) => [query.trim(), gold]));
  view.showModel(model);
  view.showExamples(examples, (query) => {
    go(query);
    byId("examples").querySelector("summary").focus(); // the button is folded away
  });
}

async function answer(query, signal) {
  const started = performance.now();
  const since = () => performance.now() - started;
  view.clear();
  view.showQuery(query);
  stage("Expanding the query …");
  await load(signal);
  let text = "";
  let first = null;
  const expanded = await expand(query, (piece) => {
    first ??= since();
    view.showText((text += piece));
  }, signal);
  view.showExpanded(expanded);
  const spoken = expanded.expansion ? `The model added: ${expanded.expansion}.` : byId("made").textContent;
  const times = [["first token", first], ["expansion", expanded.milliseconds]];
  if (model.search) {
    stage("Searching …");
    // Gold belongs to a known query as it stands: edited, it is another query.
    const searched = await search(query, golds.get(query) ?? [], view.TOP, signal);
    // Without a cache the service writes it anew, and the lists are what this one finds.
    if (searched.expanded.expansion !== expanded.expansion) view.showExpanded(searched.expanded);
    view.showResults(searched);
    const { search_plain: plain, search_expanded: both, explain } = searched.milliseconds;
    times.push(["search with the query", plain], ["search with the expansion", both], ["explanation", explain]);
    say(`${spoken} Passages found: ${searched.plain_hits.length} and ${searched.expanded_hits.length}.`);
  } else {
    say(spoken);
  }
  view.showTimes([...times, ["in all, as seen here", since()]]);
}

function showTrouble(error) {
  byId("live").textContent = ""; // the alert is read out instead
  if (error.status === 401) {
    byId("why-key").textContent = key.get()
      ? "This key was not accepted. Try another."
      : "This service needs a key. It is kept until you close this tab.";
    byId("key").hidden = false;
    byId("secret").focus();
    return;
  }
  const known = error instanceof ServiceError;
  if (!known) console.error(error);
  const button = make("button", "", "Try again");
  button.type = "button";
  button.addEventListener("click", () => again());
  const wait = make("span", "");
  byId("trouble").replaceChildren(make("div", "box trouble",
    make("p", "", known ? error.message : `Something went wrong in this page: ${error.message}`, " ", wait), button));
  if (error.retryAfter) count(wait, error.retryAfter);
}

function count(wait, seconds) {
  const until = Date.now() + seconds * 1000;
  wait.ariaLive = "off"; // a number each second is no news
  const show = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    wait.textContent = left > 0 ? `Try again in ${left} ${left === 1 ? "second" : "seconds"}.` : "You can try again now.";
    if (left <= 0) clearInterval(countdown);
  };
  show();
  countdown = setInterval(show, 1000);
}

const asked = () => new URLSearchParams(location.search).get("q")?.trim() ?? "";

/** Runs a query that is typed or chosen, and keeps it in the address, to be shared and come back to. */
function go(query) {
  if (query !== asked()) history.pushState(null, "", `?${new URLSearchParams({ q: query })}`);
  show();
}

/** Shows what the address says. */
function show() {
  const query = asked();
  field.value = query;
  document.title = query ? `${query} – ${TITLE}` : TITLE;
  byId("examples").open = !query;
  if (query) {
    attempt((signal) => answer(query, signal));
  } else {
    view.clear();
    attempt(load);
  }
}

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  if (field.value.trim()) go(field.value.trim());
});

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(byId("secret").value.trim());
  byId("secret").value = "";
  field.focus();
  again();
});

byId("cancel").addEventListener("click", () => {
  stop();
  field.focus();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  const writing = event.target.closest("input, textarea, select, [contenteditable]");
  if (event.key !== "/" || writing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault(); // Firefox would open its quick find
  field.select();
  field.focus();
});

window.addEventListener("popstate", show);

if (!asked()) field.focus();
show();
