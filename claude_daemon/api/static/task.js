// One task: what it says and does, live, and what became of it.

import { Refused, ask } from "./client.js";
import { add, ago, byId, count, date, diff, fill, h, now, span, usd } from "./dom.js";
import { badge, over } from "./tasks.js";
import { Transcript } from "./transcript.js";

const prompts = new Map(); // of what was submitted on this page: the daemon tells nobody a prompt

export const remember = (id, prompt) => prompts.set(id, prompt);

export class TaskPage {
  /** `say(text)`: for those who listen rather than look. */
  constructor(id, say) {
    Object.assign(this, { id, say, task: null, transcript: new Transcript() });
    fill(byId("transcript"), this.transcript.root);
    fill(byId("outcome"));
    byId("asked").hidden = !prompts.has(id);
    byId("asked-text").textContent = prompts.get(id) ?? "";
    byId("task-note").hidden = true;
    byId("task-id").textContent = id;
    byId("cancel").hidden = true;
    byId("cancel").onclick = () => this.cancel();
    fill(byId("task-state"));
    fill(byId("facts"));
    this.timer = setInterval(() => this.facts(), 1000);
  }

  close() {
    clearInterval(this.timer);
  }

  async load() {
    try {
      this.task = await ask(`v1/tasks/${encodeURIComponent(this.id)}`);
      this.show();
    } catch (refused) {
      if (!(refused instanceof Refused)) throw refused;
      this.note(refused.message);
    }
    return this.task;
  }

  note(text) {
    byId("task-note").textContent = text;
    byId("task-note").hidden = false;
  }

  take(event) {
    this.transcript.take(event);
    if (!event.type.startsWith("task.")) return;
    if (event.type !== "task.queued") this.load();
    const word = event.type.slice(5);
    if (["succeeded", "failed", "cancelled"].includes(word)) this.say(`The task has ${word === "cancelled" ? "been cancelled" : word}.`);
  }

  async cancel() {
    byId("cancel").disabled = true;
    try {
      this.task = await ask(`v1/tasks/${this.id}/cancel`, { method: "POST" });
      this.show();
    } catch (refused) {
      if (!(refused instanceof Refused)) throw refused;
      this.note(refused.message);
    } finally {
      byId("cancel").disabled = false;
    }
  }

  show() {
    const task = this.task;
    fill(byId("task-state"), badge(task.state));
    byId("cancel").hidden = over(task);
    byId("cancel").textContent = task.cancel_requested_at ? "Cancelling…" : "Cancel";
    if (task.kind === "chat") this.note("A chat keeps no words: only who asked which model, and what it cost.");
    this.facts();
    this.outcome();
  }

  facts() {
    const task = this.task;
    if (!task) return;
    const usage = task.usage;
    const took = task.started_at ? (task.finished_at ?? now()) - task.started_at : null;
    const rows = [
      ["Model", task.model], ["Lane", task.lane], ["Submitted", h("time", { title: date(task.created_at) }, ago(task.created_at))],
      ["Waited", task.started_at ? span(task.started_at - task.created_at) : task.finished_at ? "–" : span(now() - task.created_at)],
      ["Took", took === null ? "–" : span(took)], ["Attempt", task.attempt],
      ["Cost", usd(task.cost_usd)],
      ["Tokens", usage ? `${count(usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens)} in, ${count(usage.output_tokens)} out` : "–"],
      ["Model calls", usage ? count(usage.model_calls) : "–"],
      task.session_id && ["Session", h("code", {}, task.session_id)],
      task.batch_id && ["Batch", h("code", {}, task.batch_id)],
      ...Object.entries(task.metadata ?? {}).map(([name, value]) => [name, value]),
    ].filter(Boolean);
    fill(byId("facts"), rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  }

  /** What a task leaves besides its words. */
  outcome() {
    const { result, error } = this.task;
    const place = fill(byId("outcome"));
    if (error) add(place, h("div", { class: "panel" }, h("h2", {}, "Why it failed"),
      h("p", { class: "notice" }, h("code", {}, error.code), " ", error.message)));
    if (result?.structured !== null && result?.structured !== undefined) add(place, h("div", { class: "panel" }, h("h2", {}, "As JSON"),
      h("pre", { tabindex: 0, "aria-label": "The answer as JSON" }, JSON.stringify(result.structured, null, 2))));
    if (result?.diff) add(place, h("div", { class: "panel" },
      h("h2", {}, `Changes in ${count(result.files.length)} ${result.files.length === 1 ? "file" : "files"}`), diff(result.diff)));
  }
}
