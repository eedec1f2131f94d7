// What is seen. Data enters the page as text nodes only, never as HTML.

export const TOP = 10;
const CHIPS = 6;
const SOURCES = {
  query: { sign: "", said: "from the query" },
  expansion: { sign: "+", said: "from the expansion" },
  both: { sign: "◐", said: "from both" },
};

export const byId = (id) => document.getElementById(id);

/** An element; children are nodes or text, and what is empty is left out. */
export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child || child === 0));
  return element;
}

const count = (number) => number.toLocaleString("en");
const rankOf = (rank) => (rank === null ? "not found" : count(rank));
const places = (number) => `${count(number)} ${number === 1 ? "place" : "places"}`;

function duration(milliseconds) {
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toFixed(2)} s`;
  return `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
}

/** A sign that is only seen, beside words that are also read aloud. */
const sign = (glyph) => {
  const element = make("span", "sign", glyph);
  element.ariaHidden = "true";
  return element;
};

export function showModel(model) {
  byId("served").replaceChildren(`Model ${model.id}, engine ${model.engine}`);
  const notices = [];
  if (!model.aligned) {
    notices.push(make("p", "notice", "This is the base model: nobody has taught it to expand. Run ",
      make("code", "", "make quickstart"), " to align one."));
  }
  if (!model.search) {
    notices.push(make("p", "notice", "No index is mounted: you see the expansion, but no passages."));
  }
  byId("notices").replaceChildren(...notices);
}

export function showExamples(examples, choose) {
  byId("examples").hidden = examples.length === 0;
  byId("examples").querySelector("ul").replaceChildren(...examples.map(({ query }) => {
    const button = make("button", "example", query);
    button.type = "button";
    button.dir = "auto";
    button.addEventListener("click", () => choose(query));
    return make("li", "", button);
  }));
}

/** Empties all that belongs to one query. */
export function clear() {
  byId("expansion").hidden = true;
  byId("results").replaceChildren();
  byId("times").replaceChildren();
}

export function showQuery(query) {
  byId("expansion").hidden = false;
  byId("expansion").classList.add("writing");
  byId("asked").textContent = query;
  byId("added").textContent = "";
  byId("made").textContent = "";
  byId("sent").hidden = true;
}

export function showText(text) {
  byId("added").textContent = text.trimStart();
}

export function showExpanded(expanded) {
  byId("expansion").classList.remove("writing");
  byId("added").textContent = expanded.expansion;
  byId("made").textContent = remark(expanded);
  byId("sent").hidden = !expanded.expansion;
  byId("sent").querySelector("p").textContent = expanded.composed;
}

function remark({ expansion, finish_reason: reason, num_tokens: tokens, cached }) {
  if (reason === "skip") return "Not expanded: a rule of this service leaves such queries as they are.";
  if (!expansion) return "The model added nothing.";
  const parts = [`${count(tokens)} ${tokens === 1 ? "token" : "tokens"}`];
  if (reason === "length") parts.push("ended at the length limit");
  if (cached) parts.push("kept from an earlier request");
  return parts.join(", ");
}

export function showResults(searched) {
  const { plain_hits: plain, expanded_hits: expanded, gold } = searched;
  const sources = new Set([...plain, ...expanded].flatMap((hit) => hit.terms.map((term) => term.source)));
  const left = ({ rank, rank_other: other }) => other === null
    ? make("span", "move down", sign("▼ "), "not found with the expansion")
    : moved(rank - other, `to ${count(other)}`, other > TOP && ", out of the top ten");
  const came = ({ rank, rank_other: other }) => other === null
    ? make("span", "move up", sign("▲ "), "not found by the query alone")
    : moved(other - rank, `from ${count(other)}`, other > TOP && ", new in the top ten");
  const lists = searched.expanded.expansion
    ? [list("BM25 with the query alone", plain, left), list("BM25 with the expansion", expanded, came)]
    : [list("BM25 with the query alone", plain, () => "", "Without an expansion both searches are the same.")];
  byId("results").replaceChildren(
    ...(gold.length ? [make("ul", "golds", ...gold.map(goldLine))] : []),
    ...(sources.size ? [legend(sources)] : []),
    make("div", "lists", ...lists),
  );
  for (const hit of byId("results").querySelectorAll(".hit")) addMore(hit);
}

function goldLine({ docid, title, plain_rank: before, expanded_rank: after }) {
  // Places to or from a passage that is not found would be no number.
  const change = before === after ? "unchanged" : before === null ? "found with the expansion"
    : after === null ? "lost with the expansion" : `${places(Math.abs(before - after))} ${after < before ? "up" : "down"}`;
  return make("li", "", make("span", "gold", sign("★ "), "gold"), " passage ", bold(title || docid), ": rank ",
    bold(rankOf(before)), " → ", bold(rankOf(after)), make("span", "quiet", ` (${change})`));
}

function bold(text) {
  const element = make("b", "", text);
  element.dir = "auto";
  return element;
}

function legend(sources) {
  const shown = Object.keys(SOURCES).filter((source) => sources.has(source));
  return make("p", "legend quiet", "Words that brought a passage up, with what they add to its score: ",
    ...shown.map((source) => make("span", `chip ${source}`, SOURCES[source].sign && sign(SOURCES[source].sign), SOURCES[source].said)));
}

function list(title, hits, change, note) {
  const heading = make("h2", "", title);
  heading.id = title.replaceAll(" ", "-");
  const section = make("section", "", heading, note && make("p", "quiet", note),
    hits.length ? make("ol", "", ...hits.map((hit) => row(hit, change(hit))))
      : make("p", "none", "No passage holds any of these words."));
  section.setAttribute("aria-labelledby", heading.id);
  return section;
}

function row(hit, change) {
  const title = make("h3", "", hit.title || hit.docid);
  const text = make("p", "text", hit.text);
  title.dir = text.dir = "auto";
  return make("li", hit.gold ? "hit is-gold" : "hit",
    make("span", "rank", make("span", "unseen", "Rank "), count(hit.rank)),
    make("div", "head", title, hit.gold && make("span", "gold", sign("★ "), "gold"), change),
    hit.text && text,
    hit.terms.length && make("ul", "chips", ...hit.terms.map(chip)),
    make("p", "facts quiet", `score ${hit.score.toFixed(2)}`, hit.title && ` · ${hit.docid}`));
}

/** How a passage moved by the expansion: `rise` places up, and where it is or was in the other list. */
function moved(rise, other, edge) {
  if (rise === 0) return make("span", "move", sign("= "), "same rank");
  const [glyph, way] = rise > 0 ? ["▲ ", "up"] : ["▼ ", "down"];
  return make("span", `move ${way}`, sign(glyph), `${way} ${other}`, edge);
}

function chip({ term, words, source, score }, index) {
  const label = make("span", "", words.join(" / ") || term);
  label.dir = "auto";
  const { sign: glyph, said } = SOURCES[source];
  const element = make("li", `chip ${source}`, glyph && sign(glyph), label, make("span", "unseen", ` ${said},`),
    make("span", "points", ` ${score.toFixed(1)}`));
  element.title = `${said}; indexed as “${term}”; adds ${score.toFixed(2)}`;
  if (index >= CHIPS) element.classList.add("spare");
  return element;
}

/** A button, but only where something is hidden: else twenty more stops of the Tab key would lead to nothing. */
function addMore(hit) {
  const text = hit.querySelector(".text");
  const cut = text && text.scrollHeight > text.clientHeight + 1;
  if (!cut && !hit.querySelector(".spare")) return;
  const button = make("button", "more", "more", make("span", "unseen", ` of ${hit.querySelector("h3").textContent}`));
  button.type = "button";
  button.ariaExpanded = "false";
  button.addEventListener("click", () => {
    const open = hit.classList.toggle("open");
    button.ariaExpanded = String(open);
    button.firstChild.data = open ? "less" : "more";
  });
  hit.querySelector(".facts").append(" ", button);
}

export function showTimes(times) {
  const known = times.filter(([, milliseconds]) => milliseconds != null);
  byId("times").replaceChildren(...known.map(([label, milliseconds]) =>
    make("div", "", make("dt", "", label), " ", make("dd", "", duration(milliseconds)))));
}
