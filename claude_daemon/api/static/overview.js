// How the daemon is: its state, its load, its checks.

import { clock, count, date, h, render, span, usd, words } from "./dom.js";

const MAX_CHANGES = 12; // of those that are told; the log has them all

const STATES = {
  starting: ["warn", "Starting"], ready: ["pass", "Ready"], degraded: ["warn", "Degraded"],
  draining: ["warn", "Draining"], drained: ["warn", "Drained"], stopping: ["fail", "Stopping"],
};

/** The pill at the top. `health` null: it does not answer. */
export function stateOf(health) {
  if (health === null) return ["fail", "Does not answer"];
  const [kind, word] = STATES[health.state] ?? ["warn", health.state];
  return [health.status === "fail" ? "fail" : kind, word];
}

export function pill(element, health) {
  const [kind, word] = stateOf(health);
  render(element, [kind, word], () => [h("span", { class: `dot ${kind}` }), word]);
  element.className = `pill ${kind}`;
}

function tile(name, value, of, note, share) {
  const bar = h("div", { class: "bar", "aria-hidden": "true" }, h("i", {}));
  if (share !== undefined) bar.firstChild.style.setProperty("width", `${Math.min(100, Math.round(share * 100))}%`);
  return h("div", { class: "tile" },
    h("h3", {}, name), h("p", { class: "figure" }, value, of && h("small", {}, ` ${of}`)),
    share !== undefined && bar, h("p", { class: "note" }, note || "\u00a0"));
}

const plus = (number, more) => count(number) + (more ? "+" : "");

/** `seen`: {health, tasks: {running, queued}, usage}; what a key may not see is null. */
export function tiles(element, { health, tasks, usage }) {
  const pool = health?.checks?.worker_pool ?? {};
  const agents = health?.checks?.agents ?? {};
  const sessions = health?.checks?.sessions ?? {};
  const known = typeof pool.limit === "number";
  const busy = (pool.busy ?? 0) + (agents.running ?? 0) + (sessions.running ?? 0);
  const warm = [[pool.idle, "idle"], [pool.starting, "starting"], [agents.spares, "agents ahead"], [sessions.kept, "kept"]];
  const all = typeof pool.queued === "number" ? pool.queued + (pool.waiting ?? 0) : undefined;
  const today = usage?.data?.find((row) => row.day === usage.until);
  const budget = usage?.budgets?.find((one) => one.purse === "key" && one.day.limit_usd)?.day;
  const seen = [known, busy, pool.limit, pool.live, warm, all, pool.held, Math.round(pool.oldest_seconds ?? 0), tasks?.running, tasks?.queued, today?.charged_usd, today?.tasks, budget];
  render(element, seen, () => [
    known
      ? tile("Turns now", count(busy), `of ${count(pool.limit)}`,
        busy ? `${agents.running ?? 0} of agents, ${sessions.running ?? 0} of sessions` : "nothing runs", busy / pool.limit)
      : tile("Turns now", "–", "", "shown to a key"),
    known
      ? tile("Workers", count(pool.live ?? 0), "warm",
        warm.filter(([number]) => number).map(([number, what]) => `${number} ${what}`).join(", ") || "none idle")
      : tile("Workers", "–", "", "shown to a key"),
    tile("Queue", all !== undefined ? count(all) : tasks ? plus(tasks.queued, tasks.moreQueued) : "–",
      pool.held ? "waiting, held" : pool.oldest_seconds ? `waiting, ${span(pool.oldest_seconds)}` : all !== undefined || tasks ? "waiting" : "",
      tasks ? `yours: ${plus(tasks.running, tasks.more)} running, ${plus(tasks.queued, tasks.moreQueued)} queued` : "not this key's to see"),
    tile("Today", usage ? usd(today?.charged_usd ?? 0) : "–", budget ? `of ${usd(budget.limit_usd)}` : usage ? "charged" : "",
      usage ? `${count(today?.tasks ?? 0)} chats and tasks of this key` : "not this key's to see",
      budget ? budget.spent_usd / budget.limit_usd : undefined),
  ]);
}

function value(given) {
  if (given === null) return "–";
  if (Array.isArray(given)) return given.length ? given.map(value).join(", ") : "none";
  if (typeof given === "object") return Object.entries(given).map(([name, one]) => `${words(name)} ${value(one)}`).join(", ");
  if (typeof given === "number" && !Number.isInteger(given)) return String(Math.round(given * 1000) / 1000);
  return String(given);
}

const WORDS = { pass: "passes", warn: "warns", fail: "fails" };

/** Every check with its reason; what more there is opens. */
export function checks(element, health) {
  const list = Object.entries(health?.checks ?? {});
  const open = new Set([...element.querySelectorAll("details[open]")].map((one) => one.dataset.name));
  render(element, list, () => list.map(([name, { status, reason, ...details }]) => {
    const more = Object.entries(details);
    const top = [
      h("span", { class: `dot ${status}` }), h("b", {}, words(name)), h("span", { class: "sr" }, ` ${WORDS[status] ?? status} `),
      h("span", { class: "reason" }, reason || (status === "pass" ? "" : WORDS[status] ?? status)),
    ];
    if (!more.length) return h("li", {}, h("div", { class: "check" }, top));
    return h("li", {}, h("details", { "data-name": name, open: open.has(name) }, h("summary", { class: "check" }, top),
      h("dl", {}, more.map(([key, one]) => [h("dt", {}, words(key)), h("dd", {}, value(one))]))));
  }));
}

/** The last changes, newest first, where the daemon tells them. */
export function changes(element, health) {
  const list = (health?.changes ?? []).slice(-MAX_CHANGES).reverse();
  element.hidden = !list.length;
  render(element.querySelector("ul"), list, () => list.map((one) => h("li", {}, h("time", { title: date(one.at) }, clock(one.at)),
    h("b", {}, one.what === "state" ? "" : `${words(one.what)} `), `${one.from ?? "new"} → ${one.to}`, one.reason && h("span", { class: "reason" }, one.reason))));
}

export function about(element, health) {
  if (health !== null) element.textContent = `${health.version} · up ${span(health.uptime_seconds)}`;
}
