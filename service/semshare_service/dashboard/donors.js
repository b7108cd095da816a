// The table of donors: a namespace's, page by page, filtered by id.

import { call, get } from "./api.js";
import { byId, bytes, count, h, moment } from "./dom.js";

const PAGE = 20;
const FETCHED = 200; // donors a request
const TYPING_MS = 250;

export class Donors {
  // report: told what went wrong.
  constructor(report) {
    this.report = report;
    this.turn = 0;
    this.first = 0;
    this.known = null;
    byId("donor-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.load();
    });
    byId("donor-search").addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.load(), TYPING_MS);
    });
    byId("donors-back").addEventListener("click", () => this.turnTo(this.first - PAGE));
    byId("donors-on").addEventListener("click", () => this.turnTo(this.first + PAGE));
  }

  // The service has so many donors now. The table follows, unless somebody is using it.
  counted(donors) {
    if (donors === this.known) return;
    const inUse = byId("donors").contains(document.activeElement) || this.first > 0;
    if (this.known !== null && inUse) return;
    this.known = donors;
    this.load();
  }

  async load() {
    this.namespace = byId("donor-namespace").value;
    this.search = byId("donor-search").value.trim();
    this.found = [];
    this.coming = matching(this.namespace, this.search);
    this.all = false;
    await this.turnTo(0);
  }

  // Show the page that begins with donor number `first` of those that match.
  async turnTo(first) {
    const turn = ++this.turn;
    const { found, coming } = this;
    try {
      while (!this.all && found.length <= first + PAGE) { // one more, to know whether there is one
        const next = await coming.next();
        if (!next.done) found.push(next.value);
        else if (coming === this.coming) this.all = true;
        if (turn !== this.turn) return; // another page was asked for meanwhile
      }
      this.first = Math.max(first, 0);
      this.render();
    } catch (problem) {
      this.report(problem);
    }
  }

  render() {
    const shown = this.found.slice(this.first, this.first + PAGE);
    byId("donor-rows").replaceChildren(...shown.map((donor) => this.row(donor)));
    byId("donors-back").disabled = this.first === 0;
    byId("donors-on").disabled = this.found.length <= this.first + PAGE;
    const last = this.first + shown.length;
    const of = this.all ? ` of ${count(this.found.length)}` : "";
    const none = this.search ? "no donor's id has that in it" : "no donors in this namespace";
    byId("donors-where").textContent = shown.length ? `${this.first + 1} to ${last}${of}` : none;
  }

  row(donor) {
    const pin = h("button", {
      type: "button",
      class: donor.pinned ? "pin pinned" : "pin",
      "aria-label": `${donor.pinned ? "Unpin" : "Pin"} ${donor.id}`,
      onclick: () => this.change(donor, pin, () =>
        call("PATCH", this.path(donor), { pinned: !donor.pinned })),
    }, donor.pinned ? "Unpin" : "Pin");
    const drop = h("button", {
      type: "button",
      class: "drop",
      "aria-label": `Delete ${donor.id}`,
      onblur: () => ask(false),
      onclick: () => {
        if (drop.dataset.sure === undefined) return ask(true);
        return this.change(donor, drop, () => call("DELETE", this.path(donor)));
      },
    });
    const ask = (sure) => {
      if (sure) drop.dataset.sure = "";
      else delete drop.dataset.sure;
      drop.textContent = sure ? "Really?" : "Delete";
    };
    ask(false);
    return h("tr", {},
      h("td", { class: "id", title: donor.id }, donor.id),
      h("td", {}, count(donor.tokens)),
      h("td", {}, bytes(donor.bytes)),
      h("td", {}, moment(donor.created)),
      h("td", {}, moment(donor.last_used)),
      h("td", {}, moment(donor.expires)),
      h("td", {}, pin),
      h("td", {},
        h("button", {
          type: "button",
          "aria-label": `Text of ${donor.id}`,
          onclick: () => this.showText(donor),
        }, "Text"),
        drop),
    );
  }

  path(donor) {
    return `v1/donors/${encodeURIComponent(donor.id)}?${new URLSearchParams({ namespace: this.namespace })}`;
  }

  // Ask for a change; the answer is the donor as it is now, or tells that it is gone.
  async change(donor, button, asking) {
    button.disabled = true;
    try {
      const now = await asking();
      const at = this.found.indexOf(donor);
      if (at >= 0) this.found.splice(at, 1, ...(now.deleted ? [] : [{ ...donor, ...now }]));
      this.report(null);
      await this.turnTo(this.first);
      const place = button.matches(".drop") ? ".drop" : ".pin";
      const row = byId("donor-rows").children[at - this.first];
      (row?.querySelector(place) ?? byId("donor-search")).focus(); // the button is a new one
    } catch (problem) {
      button.disabled = false;
      this.report(problem);
    }
  }

  async showText(donor) {
    try {
      const { text } = await get(this.path(donor));
      byId("donor-text-title").textContent = donor.id;
      byId("donor-text-body").textContent = text;
      byId("donor-text").showModal();
    } catch (problem) {
      this.report(problem);
    }
  }
}

// A namespace's donors whose ids hold `search`, fetched as they are asked for.
async function* matching(namespace, search) {
  const query = new URLSearchParams({ namespace, limit: FETCHED });
  for (;;) {
    const { data, has_more: more } = await get(`v1/donors?${query}`);
    yield* data.filter((donor) => donor.id.includes(search));
    if (!more) return;
    query.set("after", data.at(-1).id);
  }
}
