// The figures above the tables: how much is reused, how fast, and what the pool holds.

import { HourChart, firstTokenPlot } from "./charts.js";
import { SOURCES, bar, byId, bytes, clock, count, h, percent, plural, reused, seconds, total } from "./dom.js";

const LEGEND = {
  prefix: "same tokens, same place: exact",
  span: "same tokens, elsewhere",
  fuzzy: "similar tokens",
  fresh: "computed",
};

const HOLDERS = {
  donors: "donors",
  prefixes: "cached prefixes",
  running: "running requests",
  free: "free",
};

const TIERS = { pool: "pool", host: "host memory", disk: "disk", redis: "Redis" };

export class Overview {
  constructor() {
    byId("legend").append(...SOURCES.map((source) =>
      h("li", {}, h("b", { class: `swatch ${source}` }), h("span", {}, source), ` ${LEGEND[source]}`)));
    this.hour = new HourChart(byId("hour"), (minute) => {
      byId("hour-reading").textContent = reading(minute);
    });
  }

  // stats: of GET /v1/stats; recent: requests, for the plot of first tokens.
  show(stats, recent) {
    showTiles(stats);
    this.hour.show(stats.series);
    showFirstTokens(stats.ttft, recent);
    showMemory(stats);
  }
}

function reading(minute) {
  if (minute === null) return "Point at a minute, or tab to the chart and use the arrow keys.";
  const tokens = total(minute.tokens);
  if (tokens === 0) return `${clock(minute.start, false)}: no requests`;
  const shares = SOURCES.map((source) => `${source} ${percent(minute.tokens[source] / tokens)}`);
  return `${clock(minute.start, false)}: ${plural(minute.requests, "request")}, ` +
    `${plural(tokens, "token")}: ${shares.join(", ")}`;
}

function showTiles({ windows, donors, evictions, fallbacks }) {
  const tile = (value, name, note) =>
    h("div", { class: "tile" }, h("strong", {}, value), h("span", {}, name), h("small", {}, note));
  const hits = (window, name) =>
    tile(percent(reused(window.tokens)), `reused, ${name}`, plural(window.requests, "request"));
  const broken = Object.values(fallbacks).reduce((sum, number) => sum + number, 0);
  const reasons = Object.entries(fallbacks).map(([reason, number]) => `${reason} (${number})`);
  byId("tiles").replaceChildren(
    hits(windows["1m"], "last minute"),
    hits(windows["10m"], "last 10 minutes"),
    hits(windows.all, "since the start"),
    tile(donors === null ? "–" : count(donors), "donors",
      evictions === null ? "" : `${count(evictions)} evicted`),
    tile(count(broken), "computed in full after all", reasons.join(", ") || "no fallbacks"),
  );
}

function showFirstTokens({ reused: withReuse, computed }, recent) {
  const row = (mark, name, found) => h("tr", {},
    h("th", { scope: "row" }, h("b", { class: `mark ${mark}` }), name),
    h("td", {}, seconds(found.p50_s)),
    h("td", {}, seconds(found.p95_s)),
    h("td", {}, found.prompt_tokens_p50 === null ? "–" : count(found.prompt_tokens_p50)),
    h("td", {}, count(found.requests)));
  const head = ["", "p50", "p95", "median prompt", "requests"];
  byId("ttft").replaceChildren(
    h("thead", {}, h("tr", {}, ...head.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {},
      row("with-reuse", "with reuse", withReuse),
      row("without", "without", computed)));
  byId("ttft-plot").replaceChildren(firstTokenPlot(recent, byId("ttft-plot").clientWidth));
  byId("ttft-note").textContent = recent.length === 0 ? "No requests yet." :
    `Table: last hour, without queueing. Plot: ${plural(recent.length, "recent request")}, by length of the prompt.`;
}

function showMemory({ pool, storage }) {
  if (pool === null) {
    byId("memory").replaceChildren(h("p", { class: "note" }, "The model has not told yet."));
    return;
  }
  const holders = Object.entries(HOLDERS).filter(([holder]) => pool[holder] !== null);
  const all = holders.reduce((sum, [holder]) => sum + pool[holder], 0);
  const label = holders.map(([holder, name]) => `${name} ${bytes(pool[holder])}`).join(", ");
  byId("memory").replaceChildren(
    bar(holders.map(([holder]) => [holder, pool[holder]]), label),
    h("dl", {}, ...holders.flatMap(([holder, name]) => [
      h("dt", {}, h("b", { class: `swatch ${holder}` }), name),
      h("dd", {}, bytes(pool[holder])),
      h("dd", { class: "share" }, percent(pool[holder] / all)),
    ])),
    h("p", { class: "note" }, pool.free === null ? "Of this key's tenant. " : "KV of the whole pool. ",
      pool.age_s < 1 ? "Counted just now." : `Counted ${seconds(pool.age_s)} ago: the model is busy.`),
    ...(storage === null ? [] : tiers(storage, pool.free === null ? null : [all - pool.free, all])),
  );
}

// The pool, as bytes used and its budget where they are told, and what lies below it.
function tiers(storage, pool) {
  const below = storage.tiers.map((tier) => [tier.name, tier.used_bytes, tier.budget_bytes]);
  return [
    h("h4", {}, "By tier, used of the budget"),
    h("ul", { class: "tiers" }, ...[...(pool ? [["pool", ...pool]] : []), ...below].map(([tier, used, budget]) => {
      const [name, figures] = [TIERS[tier] ?? tier, `${bytes(used)} of ${bytes(budget)}`];
      return h("li", {},
        h("span", {}, name),
        bar([["stored", used ?? 0], ["free", Math.max(budget - (used ?? 0), 0)]], `${name}: ${figures}`),
        h("span", { class: "share" }, figures));
    })),
    h("p", { class: "note" }, storage.waiting === 0 ? "All donors are written." :
      `${plural(storage.waiting, "write")} not done yet.`),
  ];
}
