// The list of a key's tasks, page by page, and the form for a new one.

import { approvals } from "./approvals.js";
import { Refused, ask } from "./client.js";
import { ago, byId, fill, h, line, render, span, usd } from "./dom.js";

const PAGE = 12;
const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const filter = { kind: "task", state: "" };
let pages = [""]; // cursors of the pages before this one, and its own

const KINDS = { queued: "queued", running: "running", succeeded: "pass", failed: "fail", cancelled: "warn" };

export function badge(state) {
  return h("span", { class: `badge ${KINDS[state] ?? ""}` }, state);
}

function told(task) {
  if (task.error) return `${task.error.code}: ${line(task.error.message)}`;
  if (task.result?.text) return line(task.result.text);
  if (task.kind === "chat") return "a chat keeps no words";
  if (approvals().some((one) => one.task === task.id)) return "waits for your word";
  return { queued: "waits for its turn", running: "under way" }[task.state] ?? "";
}

function row(task) {
  const took = task.finished_at && task.started_at ? span(task.finished_at - task.started_at) : "";
  return h("li", { class: "task" }, h("a", { href: `#/task/${task.id}` },
    badge(task.state), h("span", { class: "what" }, told(task) || task.id),
    h("span", { class: "facts" }, h("span", {}, task.model.replace(/^claude-/, "")), h("span", { class: "lane" }, task.lane),
      took && h("span", { class: "took" }, took), task.cost_usd !== null && h("span", { class: "cost" }, usd(task.cost_usd)), h("time", {}, ago(task.created_at)))));
}

/** Reads the page anew, and how many run and wait: {running, queued, more, tasks}. Throws Refused. */
export async function refresh() {
  const query = new URLSearchParams({ kind: filter.kind, limit: PAGE });
  if (filter.state) query.set("state", filter.state);
  if (pages.at(-1)) query.set("cursor", pages.at(-1));
  const [page, running, queued] = await Promise.all([
    ask(`v1/tasks?${query}`), ask("v1/tasks?state=running&limit=100"), ask("v1/tasks?state=queued&limit=100"),
  ]);
  render(byId("tasks"), [page.data, approvals().length, Math.round(Date.now() / 30000)], () => page.data.length ? page.data.map(row)
    : h("li", { class: "empty" }, pages.length > 1 || filter.state ? "Nothing here." : "Nothing yet. What you run appears here."));
  byId("newer").disabled = pages.length === 1;
  byId("older").disabled = !page.next;
  byId("older").onclick = () => turn([...pages, page.next]);
  byId("page").textContent = pages.length === 1 && !page.next ? "" : `Page ${pages.length}`;
  return { running: running.data.length, more: !!running.next, queued: queued.data.length, moreQueued: !!queued.next,
    tasks: running.data };
}

let again = () => {};

function turn(to) {
  pages = to;
  again();
}

/** `refreshed`: asks for the list anew. `submitted(task, prompt)`: a task was accepted. */
export function wire(refreshed, submitted) {
  again = refreshed;
  byId("newer").onclick = () => turn(pages.slice(0, -1));
  byId("state").onchange = (event) => { filter.state = event.target.value; turn([""]); };
  byId("kind").onchange = (event) => { filter.kind = event.target.value; turn([""]); };
  byId("compose").onsubmit = (event) => { event.preventDefault(); submit(submitted); };
  byId("prompt").onkeydown = (event) => {
    if (event.key === "Enter" && (event.metaKey || event.ctrlKey)) byId("compose").requestSubmit();
  };
}

export function models(names) {
  const known = byId("model");
  fill(known, h("option", { value: "" }, "default model"), names.map((name) => h("option", { value: name }, name)));
}

/** The submission as the form has it; fields that are left empty are not sent. */
function submission() {
  const text = (id) => byId(id).value.trim();
  const task = { prompt: byId("prompt").value };
  if (text("model")) task.model = text("model");
  if (text("system")) task.append_system = text("system");
  if (text("cwd")) task.cwd = text("cwd");
  if (text("turns")) task.max_turns = Number(text("turns"));
  const allow = text("allow").split(",").map((one) => one.trim()).filter(Boolean); // no rule has a comma
  const approval = byId("approval").value;
  if (allow.length || approval !== "never") task.tools = { allow, approval };
  return task;
}

let attempt = null; // the same body is sent again under the same key: a lost answer makes no second task

async function submit(submitted) {
  const task = submission(), note = byId("compose-note"), button = byId("run");
  if (!task.prompt.trim()) return byId("prompt").focus();
  const body = JSON.stringify(task);
  if (attempt?.body !== body) attempt = { body, key: [...crypto.getRandomValues(new Uint8Array(16))].map((one) => one.toString(16).padStart(2, "0")).join("") };
  button.disabled = true;
  note.hidden = true;
  try {
    const made = await ask("v1/tasks", { method: "POST", body: task, headers: { "Idempotency-Key": attempt.key } });
    attempt = null;
    byId("prompt").value = "";
    submitted(made, task.prompt);
  } catch (refused) {
    if (!(refused instanceof Refused)) throw refused;
    note.textContent = refused.message;
    note.hidden = false;
  } finally {
    button.disabled = false;
  }
}

export const over = (task) => ENDED.has(task.state);
