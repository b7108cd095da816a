// Two small charts in SVG, drawn at the width they have.

import { SOURCES, clock, count, plural, reused, seconds, svg, total } from "./dom.js";

const HOUR = { left: 44, right: 12, top: 8, areas: 150, gap: 14, volume: 34, below: 20 };
const PLOT = { left: 52, right: 12, top: 8, height: 130, below: 32 };

// Shares of the sources, minute by minute, stacked from the bottom; under them the tokens in all.
export class HourChart {
  // read: called with the minute that is looked at, or null.
  constructor(container, read) {
    this.container = container;
    this.read = read;
    this.looked = null; // start of a minute, so that it stays the same one as time goes on
    this.series = [];
    container.className = "hour";
    container.tabIndex = 0;
    container.setAttribute("role", "slider");
    container.setAttribute("aria-label", "Minute of the last hour");
    container.addEventListener("pointermove", (event) => this.lookAt(this.minuteUnder(event)));
    container.addEventListener("pointerleave", () => this.lookAt(null));
    container.addEventListener("keydown", (event) => this.move(event));
    new ResizeObserver(() => this.draw()).observe(container);
  }

  show(series) {
    this.series = series;
    this.draw();
  }

  minuteUnder(event) {
    const x = event.clientX - this.container.getBoundingClientRect().left - HOUR.left;
    const at = Math.floor((x / this.plotWidth()) * this.series.length);
    return this.series[at] ? at : null;
  }

  move(event) {
    const last = this.series.length - 1;
    const now = this.index() ?? last + 1;
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.lookAt(null);
    if (to === undefined) return;
    event.preventDefault();
    this.lookAt(Math.min(Math.max(to, 0), last));
  }

  lookAt(at) {
    this.looked = at === null ? null : this.series[at].start;
    this.draw();
  }

  index() {
    const at = this.series.findIndex((minute) => minute.start === this.looked);
    return at < 0 ? null : at;
  }

  plotWidth() {
    return Math.max(this.container.clientWidth - HOUR.left - HOUR.right, 60);
  }

  draw() {
    const { series, container } = this;
    if (series.length === 0) return;
    const width = this.plotWidth();
    const edge = (at) => HOUR.left + Math.round((at / series.length) * width);
    const bottom = HOUR.top + HOUR.areas;
    const base = bottom + HOUR.gap + HOUR.volume;
    const height = base + HOUR.below;
    const most = Math.max(...series.map((minute) => total(minute.tokens)));
    const at = this.index();
    container.replaceChildren(svg("svg", { width: width + HOUR.left + HOUR.right, height, "aria-hidden": "true" },
      patterns(),
      svg("g", { class: "grid" }, ...[0, 0.5, 1].flatMap((share) => {
        const y = bottom - share * HOUR.areas;
        return [
          svg("line", { x1: HOUR.left, x2: HOUR.left + width, y1: y, y2: y }),
          svg("text", { x: HOUR.left - 6, y: y + 4, "text-anchor": "end" }, `${share * 100} %`),
        ];
      })),
      ...SOURCES.map((source) => svg("path", { class: `area ${source}`, d: area(series, source, edge, bottom) })),
      svg("path", { class: "volume", d: volume(series, most, edge, base) }),
      svg("g", { class: "grid" },
        svg("line", { x1: HOUR.left, x2: HOUR.left + width, y1: base, y2: base }),
        svg("text", { x: HOUR.left - 6, y: base - HOUR.volume + 9, "text-anchor": "end" }, compact(most)),
        ...series.flatMap((minute, number) => (minute.start % 900 === 0
          ? [svg("text", { x: edge(number), y: base + 15, "text-anchor": anchor(number) }, clock(minute.start, false))]
          : []))),
      at === null ? null : svg("rect", {
        class: "looked", x: edge(at), y: HOUR.top, width: edge(at + 1) - edge(at), height: base - HOUR.top,
      }),
    ));
    this.tell(at);
  }

  tell(at) {
    const minute = at === null ? null : this.series[at];
    const { container } = this;
    container.setAttribute("aria-valuemin", 0);
    container.setAttribute("aria-valuemax", this.series.length - 1);
    container.setAttribute("aria-valuenow", at ?? this.series.length - 1);
    const tokens = minute && total(minute.tokens);
    container.setAttribute("aria-valuetext", minute === null ? "none" :
      `${clock(minute.start, false)}, ${plural(tokens, "token")}` +
      (tokens ? `, ${Math.round(reused(minute.tokens) * 100)} % reused` : ""));
    this.read(minute);
  }
}

// One box a minute that had requests, on top of the sources below it.
function area(series, source, edge, bottom) {
  const below = SOURCES.slice(0, SOURCES.indexOf(source));
  return series.map(({ tokens }, at) => {
    const all = total(tokens);
    if (all === 0 || tokens[source] === 0) return "";
    const under = below.reduce((sum, other) => sum + tokens[other], 0);
    const y = (part) => bottom - Math.round((part / all) * HOUR.areas);
    return box(edge(at), edge(at + 1), y(under + tokens[source]), y(under));
  }).join("");
}

function volume(series, most, edge, base) {
  if (most === 0) return "";
  const y = ({ tokens }) => base - Math.round((total(tokens) / most) * HOUR.volume);
  return series.map((minute, at) => box(edge(at), edge(at + 1) - 1, y(minute), base)).join("");
}

const box = (left, right, top, bottom) => (top < bottom ? `M${left} ${top}H${right}V${bottom}H${left}z` : "");

const anchor = (at) => (at < 3 ? "start" : at > 56 ? "end" : "middle");

const compact = (number) => new Intl.NumberFormat("en-US", { notation: "compact" }).format(number);

// The second cue beside the colour: span is hatched, fuzzy is dotted.
function patterns() {
  const tile = (id, ...marks) =>
    svg("pattern", { id, width: 6, height: 6, patternUnits: "userSpaceOnUse" }, ...marks);
  return svg("defs", {},
    tile("hatched",
      svg("rect", { class: "ground", width: 6, height: 6 }),
      svg("path", { class: "stroke", d: "M-1 7L7 -1M-1 1L1 -1M5 7L7 5" })),
    tile("dotted",
      svg("rect", { class: "ground", width: 6, height: 6 }),
      svg("circle", { class: "dot", cx: 1.5, cy: 1.5, r: 1 }),
      svg("circle", { class: "dot", cx: 4.5, cy: 4.5, r: 1 })));
}

// Seconds to the first token against the prompt's tokens: a disc with reuse, a triangle without.
export function firstTokenPlot(requests, wide) {
  const width = Math.max(wide - PLOT.left - PLOT.right, 60);
  const bottom = PLOT.top + PLOT.height;
  const across = ticks(Math.max(1, ...requests.map((request) => request.prompt_tokens)));
  const up = ticks(Math.max(0.001, ...requests.map((request) => request.ttft_s)));
  const x = (tokens) => PLOT.left + (tokens / across.at(-1)) * width;
  const y = (time) => bottom - (time / up.at(-1)) * PLOT.height;
  const faster = requests.filter(({ tokens }) => total(tokens) > tokens.fresh);
  const label = `Time to first token by prompt length: ${plural(faster.length, "request")} with reuse, ` +
    `${count(requests.length - faster.length)} without`;
  return svg("svg", { width: width + PLOT.left + PLOT.right, height: bottom + PLOT.below, role: "img", "aria-label": label },
    svg("g", { class: "grid" },
      ...up.flatMap((time) => [
        svg("line", { x1: PLOT.left, x2: PLOT.left + width, y1: y(time), y2: y(time) }),
        svg("text", { x: PLOT.left - 6, y: y(time) + 4, "text-anchor": "end" }, time === 0 ? "0" : seconds(time)),
      ]),
      ...across.map((tokens) =>
        svg("text", { x: x(tokens), y: bottom + 14, "text-anchor": tokens === 0 ? "start" : "middle" }, compact(tokens))),
      svg("text", { x: PLOT.left + width, y: bottom + 28, "text-anchor": "end" }, "prompt tokens")),
    ...requests.map((request) => mark(request, x(request.prompt_tokens), y(request.ttft_s))));
}

function mark({ tokens }, x, y) {
  if (total(tokens) > tokens.fresh) return svg("circle", { class: "with-reuse", cx: x, cy: y, r: 3.5 });
  return svg("path", { class: "without", d: `M${x} ${y - 4.5}L${x + 4} ${y + 3}H${x - 4}z` });
}

// Round numbers from 0 to at least `most`, four steps or fewer.
function ticks(most) {
  const size = 10 ** Math.floor(Math.log10(most / 4));
  const step = [1, 2, 5, 10].map((factor) => factor * size).find((wide) => most / wide <= 4);
  return Array.from({ length: Math.ceil(most / step) + 1 }, (_, number) => number * step);
}
