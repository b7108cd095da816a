// A prompt's pieces, coloured by source, with the donor's text beside the one that is looked at.

import { call, get } from "./api.js";
import { byId, clock, count, h, percent, plural, seconds, sourcesBar } from "./dom.js";

const REASONS = {
  unmatched: "no donor has it",
  fact: "a fact that differs, or whose neighbours do",
  edge: "at the beginning, or in the question at the end",
  selected: "chosen to be computed again",
  head: "the beginning of a long reused run, where the old context still shows",
  stored: "a donor has it below the pool, from which it was not loaded",
};

const MEANINGS = {
  fresh: "computed for this prompt",
  prefix: "the same tokens at the same place from the start: exact",
  span: "the same tokens after another context, or elsewhere",
  fuzzy: "other tokens with a similar meaning",
};

export class Inspector {
  // report: told what went wrong.
  constructor(report) {
    this.report = report;
    this.asked = 0;
    this.elements = [];
    byId("inspect-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.showPasted();
    });
    byId("pieces").addEventListener("keydown", (event) => this.move(event));
  }

  showRequest(id) {
    return this.ask(get(`v1/requests/${encodeURIComponent(id)}`), (found) => [
      `Request ${found.id}, ${clock(found.ended)}: ${plural(found.prompt_tokens, "prompt token")}`,
      `${percent(found.compute_fraction)} computed`,
      `mode ${found.mode}`,
      found.exact ? "exact" : "approximate",
      `first token after ${seconds(found.ttft_s)}`,
    ]);
  }

  showPasted() {
    const mode = byId("inspect-mode").value;
    const semshare = { namespace: byId("inspect-namespace").value, ...(mode && { mode }) };
    const asked = call("POST", "v1/inspect", { text: byId("prompt").value, semshare });
    return this.ask(asked, (plan) => [
      `Dry run: ${plural(plan.prompt_tokens, "prompt token")}`,
      `${percent(plan.compute_fraction)} would be computed`,
      plan.exact ? "exact" : "approximate",
    ]);
  }

  async ask(answer, describe) {
    const turn = ++this.asked;
    try {
      const found = await answer;
      if (turn !== this.asked) return; // another was asked for meanwhile
      this.report(null);
      byId("inspected-what").textContent = describe(found).join(" · ");
      byId("inspected-sources").replaceChildren(sourcesBar(found.tokens));
      this.fill(found.pieces);
    } catch (problem) {
      this.report(problem);
    }
  }

  fill(pieces) {
    this.elements = pieces.map((piece, at) => h("span", {
      class: `run ${piece.source}`,
      role: "option",
      "aria-selected": "false",
      tabindex: at === 0 ? 0 : -1,
      onfocus: () => this.look(piece, at),
      onpointerenter: () => this.look(piece, at),
    }, piece.text));
    byId("pieces").replaceChildren(...this.elements);
    byId("inspected").hidden = false;
    this.selected = 0;
    this.elements[0]?.focus({ preventScroll: true });
    byId("inspected").scrollIntoView({ block: "nearest" });
  }

  look(piece, at) {
    this.elements[this.selected].setAttribute("aria-selected", "false");
    this.elements[this.selected].tabIndex = -1;
    this.selected = at;
    this.elements[at].setAttribute("aria-selected", "true");
    this.elements[at].tabIndex = 0;
    byId("piece").replaceChildren(...describe(piece));
  }

  // The prompt is one stop of the tab key; inside, arrows go from piece to piece.
  move(event) {
    const last = this.elements.length - 1;
    const to = {
      ArrowRight: this.selected + 1,
      ArrowDown: this.selected + 1,
      ArrowLeft: this.selected - 1,
      ArrowUp: this.selected - 1,
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.elements[Math.min(Math.max(to, 0), last)].focus();
  }
}

function describe(piece) {
  const [first, last] = [count(piece.start), count(piece.end - 1)];
  const tokens = first === last ? `token ${first}` : `tokens ${first} to ${last}`;
  const reason = piece.reason && REASONS[piece.reason];
  const said = [
    h("h3", {}, h("b", { class: `swatch ${piece.source}` }), piece.source),
    h("p", { class: "note" }, MEANINGS[piece.source], reason ? `: ${reason}` : ""),
    h("p", { class: "note" }, tokens),
    h("h4", {}, "This prompt"),
    h("pre", {}, piece.text),
  ];
  if (piece.source === "fresh") return said;
  const from = piece.donor_start;
  const where = from === null ? "" : `, from token ${count(from)}`;
  said.push(h("h4", {}, "Donor"));
  if (piece.donor === null) {
    said.push(h("p", { class: "note" }, "A cached prefix that belongs to no donor."));
  } else {
    said.push(h("p", { class: "note" }, h("code", {}, piece.donor), where));
    said.push(piece.donor_text === null
      ? h("p", { class: "note" }, "It is no longer kept, so its text is not known.")
      : h("pre", { id: "donor-side" }, piece.donor_text));
  }
  return said;
}
