// The table of recent requests. A request never changes, so rows are only added and dropped: the
// keyboard's place in the table stays.

import { byId, clock, count, h, percent, seconds, sourcesBar } from "./dom.js";

export class RecentRequests {
  // inspect: called with a request's id.
  constructor(inspect) {
    this.inspect = inspect;
    this.rows = new Map(); // by id and time: a client may name two requests alike
  }

  show(recent) {
    const body = byId("request-rows");
    const names = recent.map((request) => `${request.id} ${request.ended}`);
    const listed = new Set(names);
    for (const [name, row] of this.rows) {
      if (listed.has(name)) continue;
      row.remove();
      this.rows.delete(name);
    }
    for (const [at, request] of recent.entries()) {
      if (this.rows.has(names[at])) continue;
      const row = this.row(request);
      body.insertBefore(row, body.children[at] ?? null);
      this.rows.set(names[at], row);
    }
    byId("no-requests").hidden = recent.length > 0;
  }

  row(request) {
    const { id, tokens, fallback } = request;
    return h("tr", {},
      h("td", {}, h("button", {
        type: "button",
        "aria-label": `Inspect request ${id}`,
        onclick: () => this.inspect(id),
      }, "Inspect")),
      h("td", {}, clock(request.ended)),
      h("td", {}, sourcesBar(tokens)),
      h("td", {}, count(request.prompt_tokens)),
      h("td", {}, percent(request.compute_fraction)),
      h("td", {}, seconds(request.ttft_s)),
      h("td", {}, seconds(request.queue_s)),
      h("td", {}, count(request.completion_tokens)),
      h("td", { class: "word" }, request.mode, fallback && h("small", {}, `in full: ${fallback}`)),
      h("td", { class: "word" }, request.namespace),
      h("td", { class: "word" }, request.route),
      h("td", { class: "id", title: id }, id),
    );
  }
}
