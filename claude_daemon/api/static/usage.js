// What this key has used, day by day, and what is left of its budgets.

import { count, h, render, short, usd } from "./dom.js";

export const DAYS = 30;

const tokens = (row) =>
  row.input_tokens + row.output_tokens + row.cache_creation_input_tokens + row.cache_read_input_tokens;
const MEASURES = {
  cost: ["Cost", (row) => row.charged_usd, usd],
  tokens: ["Tokens", tokens, short],
  tasks: ["Turns", (row) => row.tasks, count],
};
let chosen = "cost";

/** Every day of the report, those without use too. */
function daily(usage) {
  const known = new Map(usage.data.map((row) => [row.day, row]));
  const none = Object.fromEntries(Object.keys(usage.total).map((name) => [name, 0]));
  const days = [];
  for (let at = Date.parse(`${usage.since}T00:00:00Z`); at <= Date.parse(`${usage.until}T00:00:00Z`); at += 86400000) {
    const day = new Date(at).toISOString().slice(0, 10);
    days.push(known.get(day) ?? { day, ...none });
  }
  return days;
}

function chart(days, [name, measure, told]) {
  const most = Math.max(...days.map(measure), 0);
  const bars = days.map((row) => {
    const bar = h("i", { title: `${row.day}: ${told(measure(row))}` });
    bar.style.setProperty("height", `${most ? Math.max(measure(row) ? 2 : 0, (100 * measure(row)) / most) : 0}%`);
    return h("span", { class: measure(row) ? "" : "none" }, bar);
  });
  return [
    h("div", { class: "chart", role: "img", "aria-label": `${name} by day, at most ${told(most)}` }, bars),
    h("div", { class: "axis", "aria-hidden": "true" }, h("span", {}, days[0].day), h("span", {}, `most: ${told(most)}`), h("span", {}, days.at(-1).day)),
  ];
}

function table(days) {
  const used = days.filter((row) => row.tasks).reverse();
  if (!used.length) return null;
  return h("details", { class: "table" }, h("summary", {}, "As a table"),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Usage by day" }, h("table", {},
      h("thead", {}, h("tr", {}, ["Day", "Turns", "In", "Out", "Cached", "Charged"].map((one) => h("th", { scope: "col" }, one)))),
      h("tbody", {}, used.map((row) => h("tr", {}, h("th", { scope: "row" }, row.day), [count(row.tasks), short(row.input_tokens),
        short(row.output_tokens), short(row.cache_read_input_tokens), usd(row.charged_usd)].map((one) => h("td", {}, one))))))));
}

function budgets(usage) {
  const of = { all: "of all keys", domain: "of the domain", key: "of this key" };
  return usage.budgets.flatMap((one) => ["day", "month"].filter((span) => one[span].limit_usd !== null).map((span) => {
    const { limit_usd: limit, spent_usd: spent } = one[span];
    const share = limit ? Math.min(1, spent / limit) : 1;
    const bar = h("div", { class: share >= 1 ? "bar fail" : share >= 0.8 ? "bar warn" : "bar", "aria-hidden": "true" }, h("i", {}));
    bar.firstChild.style.setProperty("width", `${Math.round(share * 100)}%`);
    return h("div", { class: "budget" }, h("p", {}, h("b", {}, `This ${span}`), ` ${of[one.purse] ?? one.purse}`,
      h("span", { class: "sum" }, `${usd(spent)} of ${usd(limit)}`)), bar);
  }));
}

export function usagePanel(element, usage) {
  render(element, [usage, chosen], () => {
    const days = daily(usage);
    const picks = Object.entries(MEASURES).map(([name, [word]]) => h("button", {
      type: "button", "aria-pressed": String(name === chosen),
      on: { click: () => { chosen = name; usagePanel(element, usage); element.querySelector("[aria-pressed=true]").focus(); } },
    }, word));
    return [
      h("div", { class: "row" }, h("div", { class: "picks", role: "group", "aria-label": "Measure" }, picks),
        h("p", { class: "sum" }, MEASURES[chosen][2](MEASURES[chosen][1](usage.total)), h("small", {}, ` in ${usage.days} days`))),
      chart(days, MEASURES[chosen]), budgets(usage), table(days),
      usage.total.unpriced ? h("p", { class: "muted" }, `${count(usage.total.unpriced)} without a known price`) : null,
    ];
  });
}
