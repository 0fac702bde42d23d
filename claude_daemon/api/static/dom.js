// Elements and words. Text goes in as text nodes only; there is no way here from a string to markup.

/** h("p", {class: "note", on: {click}}, "text", element, null) → an element. Null and false children are left out. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "class") element.className = value;
    else if (value === true) element.setAttribute(name, "");
    else element.setAttribute(name, String(value));
  }
  add(element, ...children);
  return element;
}

export function add(element, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

export function fill(element, ...children) {
  element.replaceChildren();
  return add(element, ...children);
}

export const byId = (id) => document.getElementById(id);

/** Puts what `make` builds into `element`, unless what it is made from is what it was made from before: so focus,
 * scrolling and open details stay where nothing has changed. */
export function render(element, from, make) {
  const seen = JSON.stringify(from) ?? "";
  if (element.madeFrom === seen) return;
  element.madeFrom = seen;
  fill(element, make());
}

const COUNT = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const DATE = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

export const count = (number) => COUNT.format(number);
export const short = (number) => SHORT.format(number);
/** Seconds since the epoch → a time of day, or a date with it. */
export const clock = (at) => CLOCK.format(at * 1000);
export const date = (at) => DATE.format(at * 1000);
export const now = () => Date.now() / 1000;

export function usd(amount) {
  if (amount === null || amount === undefined) return "–";
  if (amount === 0) return "$0";
  return `$${amount < 0.01 ? amount.toPrecision(2) : amount.toFixed(2)}`;
}

export function span(seconds) {
  if (seconds < 0) return "0 s";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

export const ago = (at) => (now() - at < 10 ? "just now" : `${span(now() - at)} ago`);

/** The first line of a text, at most so long. */
export function line(text, length = 140) {
  const first = text.trimStart().split("\n", 1)[0];
  return first.length > length ? `${first.slice(0, length)}…` : first;
}

export const words = (name) => name.replaceAll("_", " ");

/** A unified diff, a line to a row. */
export function diff(text) {
  const kind = (row) =>
    row.startsWith("+++") || row.startsWith("---") ? "file" : row.startsWith("@@") ? "hunk"
    : row.startsWith("+") ? "added" : row.startsWith("-") ? "removed" : "same";
  const rows = text.replace(/\n$/, "").split("\n");
  return h("pre", { class: "diff", tabindex: 0, "aria-label": "Changes" },
    rows.map((row) => h("span", { class: kind(row) }, row || " ")));
}
