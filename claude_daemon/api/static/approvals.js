// Calls that wait for somebody's word, of every task that is followed.

import { Refused, ask } from "./client.js";
import { add, clock, diff, h, now, span } from "./dom.js";
import { input } from "./tools.js";

const waiting = new Map(); // approval → {task, data}
let changed = () => {};
const cards = new Set();

export function onApprovals(listener) {
  changed = listener;
}

export const approvals = () => [...waiting.values()];

export function forgetApprovals() {
  waiting.clear();
  changed();
}

/** What an event says of approvals. */
export function takeApproval(event) {
  if (event.type === "approval.requested") waiting.set(event.data.approval, { task: event.task, data: event.data });
  else if (event.type === "approval.resolved") waiting.delete(event.data.approval);
  else if (/^task\.(succeeded|failed|cancelled|requeued)$/.test(event.type))
    for (const [id, one] of waiting) if (one.task === event.task) waiting.delete(id);
  else return;
  changed();
}

/** A call that waits, with what it would do and the two answers. */
export function approvalCard(task, asked, { linked = false } = {}) {
  const left = h("span", { class: "left" });
  const note = h("p", { class: "notice", role: "alert", hidden: true });
  const message = h("input", {
    type: "text", maxlength: 1000, placeholder: "A word with a denial, for the model (optional)", "aria-label": "Message",
    autocomplete: "off",
  });
  const buttons = [
    h("button", { type: "button", class: "allow", on: { click: () => answer(true) } }, "Allow"),
    h("button", { type: "button", class: "deny", on: { click: () => answer(false) } }, "Deny"),
  ];
  const card = h("article", { class: "approval", "data-approval": asked.approval, "aria-label": `Approval of ${asked.tool}` },
    h("header", {},
      h("h3", {}, "May it run ", h("code", {}, asked.tool), "?"),
      linked && h("a", { href: `#/task/${task}` }, "Open the task"), left),
    asked.cwd && h("p", { class: "where" }, "in ", h("code", {}, asked.cwd)),
    asked.diff ? diff(asked.diff) : input(asked.tool, asked.input),
    asked.diff && h("details", {}, h("summary", {}, "The call as it is"), input(asked.tool, asked.input, true)),
    h("div", { class: "answers" }, buttons, message), note);

  async function answer(allow) {
    for (const button of buttons) button.disabled = true;
    note.hidden = true;
    const body = { allow, message: allow ? "" : message.value };
    try {
      await ask(`v1/tasks/${task}/approvals/${asked.approval}`, { method: "POST", body });
    } catch (refused) {
      if (!(refused instanceof Refused)) throw refused;
      for (const button of buttons) button.disabled = false;
      note.textContent = refused.message;
      note.hidden = false;
    }
  }
  card.resolve = (told) => {
    cards.delete(card);
    const how = told.allow ? "Allowed" : "Denied";
    const by = { timeout: "nobody answered", ended: "the attempt ended" }[told.by] ?? `by ${told.by}`;
    card.querySelector(".answers").replaceWith(h("p", { class: told.allow ? "said yes" : "said no" }, `${how}, ${by}.`));
    card.classList.add("over");
    left.textContent = "";
  };
  card.tick = () => {
    const seconds = asked.expires_at - now();
    left.textContent = seconds > 0 ? `${span(seconds)} left` : "";
    left.title = `Denied at ${clock(asked.expires_at)} if nobody answers`;
    if (!card.isConnected && card.seen) cards.delete(card);
    card.seen ||= card.isConnected;
  };
  cards.add(card);
  card.tick();
  return card;
}

setInterval(() => cards.forEach((card) => card.tick()), 1000);

/** All that wait in one strip, but for those of one task; how many that are. */
export function approvalStrip(element, except) {
  const those = [...waiting.values()].filter(({ task }) => task !== except);
  const shown = new Map([...element.querySelectorAll(".approval")].map((card) => [card.dataset.approval, card]));
  for (const [id, card] of shown) if (!those.some(({ data }) => data.approval === id)) card.remove();
  for (const { task, data } of those)
    if (!shown.has(data.approval)) add(element, approvalCard(task, data, { linked: true }));
  return those.length;
}
