// The page: asks for figures every other second while it is seen, and hands them to its parts.

import { Refused, forgetKey, get, hasKey, useKey } from "./api.js";
import { byId, h, plural } from "./dom.js";
import { Donors } from "./donors.js";
import { Inspector } from "./inspector.js";
import { Overview } from "./overview.js";
import { RecentRequests } from "./requests.js";

const EVERY_MS = 2000;
const LISTED = 100;

const inspector = new Inspector(report);
const overview = new Overview();
const requests = new RecentRequests((id) => inspector.showRequest(id));
const donors = new Donors(report);
let timer = null;

// What became of something that was asked for: a problem, or null.
function report(problem) {
  if (problem !== null && !(problem instanceof Refused)) throw problem;
  if (problem?.status === 401 && byId("key-form").hidden) {
    byId("key-form").hidden = false;
    byId("key").focus();
  }
  byId("problem").hidden = problem === null;
  byId("problem").textContent = problem?.message ?? "";
}

async function update() {
  clearTimeout(timer);
  byId("forget-key").hidden = !hasKey();
  try {
    const [stats, recent] = await Promise.all([
      get("v1/stats"),
      get(`v1/requests?limit=${LISTED}`),
    ]);
    showState(stats);
    overview.show(stats, recent.data);
    requests.show(recent.data);
    donors.counted(stats.donors);
  } catch (problem) {
    const wantsKey = problem.status === 401;
    if (wantsKey || !(problem instanceof Refused)) report(problem);
    byId("state").replaceChildren(h("i", { class: "off" }), wantsKey ? "no key" : problem.message);
    if (wantsKey) return; // until there is one
  }
  if (!document.hidden) timer = setTimeout(update, EVERY_MS);
}

function showState({ model, queue }) {
  const what = model === null ? "loading" : queue.running ? "running" : "idle";
  const words = [model ?? "no model yet", what];
  if (queue.waiting > 0) words.push(`${plural(queue.waiting, "request")} waiting`);
  byId("state").replaceChildren(h("i", { class: what }), words.join(" · "));
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  byId("key").value = "";
  byId("key-form").hidden = true;
  report(null);
  update();
});
byId("forget-key").addEventListener("click", () => {
  forgetKey();
  location.reload(); // what was shown was for the one who had the key
});
document.addEventListener("visibilitychange", () => document.hidden || update());
update();
