// Elements and the way numbers are written. Text goes in as text nodes only, so that a prompt that
// holds markup shows as it is.

const SVG = "http://www.w3.org/2000/svg";

export const SOURCES = ["prefix", "span", "fuzzy", "fresh"];

export const byId = (id) => document.getElementById(id);

// An element. Attributes: functions are listeners ("onclick"), `style` is a map of properties,
// false and null are left out.
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (value !== false && value !== null && value !== undefined)
      element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

export const count = (number) => whole.format(number);

export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

// A share from 0 to 1. Only all is 100 %, and only none is 0 %.
export function percent(share) {
  if (share === null || Number.isNaN(share)) return "–";
  const value = share * 100;
  if (value > 0 && value < 0.5) return "< 1 %";
  if (value < 100 && value > 99.5) return "> 99 %";
  return `${Math.round(value)} %`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.0095) return `${(value * 1000).toFixed(1)} ms`;
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  return `${value.toFixed(value < 9.995 ? 2 : 1)} s`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && value < 99.95 ? value.toFixed(1) : whole.format(value)} ${units[unit]}`;
}

const pad = (number) => String(number).padStart(2, "0");

// Seconds since the epoch as the reader's clock shows them.
export function clock(epoch, withSeconds = true) {
  const date = new Date(epoch * 1000);
  const minutes = `${pad(date.getHours())}:${pad(date.getMinutes())}`;
  return withSeconds ? `${minutes}:${pad(date.getSeconds())}` : minutes;
}

// With the day, where it is not today.
export function moment(epoch) {
  if (epoch === null || epoch === undefined) return "–";
  const date = new Date(epoch * 1000);
  if (date.toDateString() === new Date().toDateString()) return clock(epoch);
  return `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())} ${clock(epoch, false)}`;
}

export const total = (tokens) => SOURCES.reduce((sum, source) => sum + tokens[source], 0);

// Share of the tokens that were not computed; NaN where there are none.
export const reused = (tokens) => 1 - tokens.fresh / total(tokens);

// One line, as wide as its container, that shows how a whole divides: [class, amount] pairs.
export function bar(parts, label) {
  const pieces = parts
    .filter(([, amount]) => amount > 0)
    .map(([name, amount]) => h("i", { class: name, style: { flexGrow: amount } }));
  return h("span", { class: "bar", role: "img", "aria-label": label }, ...pieces);
}

export function sourcesBar(tokens) {
  const named = SOURCES.filter((source) => tokens[source] > 0);
  const label = named.map((source) => `${source} ${percent(tokens[source] / total(tokens))}`).join(", ");
  return bar(SOURCES.map((source) => [source, tokens[source]]), label || "no tokens");
}
