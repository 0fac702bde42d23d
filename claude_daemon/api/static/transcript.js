// A task's events, as they come, for reading.

import { approvalCard } from "./approvals.js";
import { add, clock, count, h, line, words } from "./dom.js";
import { head, input, said } from "./tools.js";

const MAX_BLOCKS = 2000; // of one transcript: a page with more is slow, and the API has them all
const MAX_BLOCK_CHARACTERS = 200000; // of one text; a longer one goes on in the next block

// Event types are an open set: what is not here is passed over.
const KNOWN = new Map([
  "task.queued", "task.started", "task.requeued", "task.succeeded", "task.failed", "task.cancelled", "text.delta",
  "text.reset", "thinking.delta", "message", "usage", "retry", "tool.use", "tool.result", "tool.denied", "file.changed",
  "approval.requested", "approval.resolved", "refused",
].map((type) => [type, type.replace(".", "_")]));

export class Transcript {
  constructor() {
    this.root = h("div", { class: "transcript", role: "log", "aria-live": "off", "aria-label": "What the task said and did" });
    this.tools = new Map();
    this.approvals = new Map();
    this.texts = []; // since the last reset
    this.attempt = 0;
    this.seq = 0;
    this.spent = null;
    this.dropped = 0;
  }

  take(event) {
    if (event.seq <= this.seq) return;
    this.seq = event.seq ?? this.seq;
    const low = this.lowest();
    const known = KNOWN.get(event.type);
    if (known) this[known](event.data ?? {}, event);
    if (event.data?.truncated) this.note(`Cut: this event had ${count(event.data.size_bytes)} bytes.`);
    if (low) this.root.scrollTop = this.root.scrollHeight;
  }

  /** Whether the reader is at the end: then what comes moves it on. */
  lowest() {
    return this.root.scrollHeight - this.root.scrollTop - this.root.clientHeight < 40;
  }

  put(element) {
    this.text = null;
    add(this.root, element);
    if (this.root.childElementCount > MAX_BLOCKS) {
      this.root.firstElementChild.remove();
      this.dropped++;
    }
    return element;
  }

  note(text, kind = "", at = null) {
    return this.put(h("p", { class: `note ${kind}` }, at !== null && h("time", {}, clock(at)), text));
  }

  task_queued(_, event) { this.note("Queued", "", event.at); }

  task_started(told, event) {
    this.attempt = told.attempt ?? 1;
    const again = this.attempt > 1 ? `Attempt ${this.attempt} started` : "Started";
    this.note(`${again} in the ${told.lane} lane${told.start ? `, on a ${told.start} process` : ""}`, "", event.at);
  }

  task_requeued(told, event) { this.note(`Put back into the queue${told.reason ? `: ${words(told.reason)}` : ""}`, "warn", event.at); }

  task_succeeded(_, event) { this.over("Succeeded", "pass", event.at); }

  task_failed(told, event) {
    const why = told.error?.message ?? told.message ?? "";
    this.over(`Failed${why ? `: ${why}` : ""}`, "fail", event.at);
  }

  task_cancelled(_, event) { this.over("Cancelled", "warn", event.at); }

  over(text, kind, at) {
    for (const { state } of this.tools.values())
      if (!state.matches(".pass, .fail, .denied")) Object.assign(state, { className: "state denied", textContent: "cut short" });
    this.note(text, kind, at);
  }

  refused(told) { this.note(`Not followed any more: ${told.message}`, "fail"); }

  retry(told) {
    const status = told.status ? ` (${told.status})` : "";
    this.note(`A model call failed${status}; tried again in ${told.delay_seconds} s`, "warn");
  }

  text_delta(told) { this.say("said", told.text, () => h("div", { class: "said" })); }

  thinking_delta(told) {
    this.say("thinking", told.text, () => {
      const block = h("div", {});
      block.outer = h("details", { class: "thinking" }, h("summary", {}, "Thinking"), block);
      return block;
    });
  }

  say(kind, text, make) {
    if (!text) return;
    if (this.text?.kind !== kind || this.text.node.length > MAX_BLOCK_CHARACTERS) {
      const block = make(), node = document.createTextNode("");
      block.append(node);
      const outer = this.put(block.outer ?? block);
      this.text = { kind, node };
      this.texts.push(outer);
    }
    this.text.node.appendData(text);
  }

  message(told) { // a whole answer, where nothing was streamed
    if (this.texts.length) return;
    for (const block of told.content ?? []) if (block.type === "text") this.text_delta({ text: block.text });
  }

  text_reset() {
    for (const block of this.texts) {
      if (!block.isConnected) continue;
      const cover = h("details", { class: "superseded" }, h("summary", {}, "Superseded"));
      block.replaceWith(cover);
      cover.append(block);
    }
    this.texts = [];
    this.text = null;
  }

  usage(told) { this.spent = told; }

  tool_use(told) {
    const state = h("span", { class: "state running" }, "running");
    const body = h("div", { class: "body" }, input(told.name, told.input));
    const card = h("details", { class: told.parent ? "tool inner" : "tool", "data-tool": told.id },
      h("summary", {}, h("b", {}, told.name), h("code", {}, line(head(told.input))), state), body);
    this.tools.set(told.id, { card, state, body });
    this.put(card);
  }

  end(told, kind, word, text) {
    if (!this.tools.has(told.id)) this.tool_use({ id: told.id, name: told.name, input: {}, parent: told.parent });
    const { body } = this.tools.get(told.id);
    if (state.textContent !== "denied") this.mark(told.id, kind, word);
    if (text) add(body, h("pre", { class: "result", tabindex: 0, "aria-label": "Result" }, text));
  }

  tool_result(told) { this.end(told, told.is_error ? "fail" : "pass", told.is_error ? "failed" : "done", said(told.content)); }

  tool_denied(told) { this.end(told, "denied", "denied", told.message); }

  file_changed(told) {
    const known = this.tools.get(told.id);
    const chip = h("p", { class: "changed" }, "Changed ", h("code", {}, told.path));
    if (known) known.body.prepend(chip);
    else this.put(chip);
  }

  approval_requested(told, event) {
    const card = this.put(approvalCard(event.task, told));
    this.approvals.set(told.approval, { card, call: told.tool_use_id });
    this.mark(told.tool_use_id, "denied", "waits");
  }

  approval_resolved(told) {
    const { card, call } = this.approvals.get(told.approval) ?? {};
    card?.resolve(told);
    this.mark(call, told.allow ? "running" : "denied", told.allow ? "running" : "denied");
  }

  mark(call, kind, word) {
    const known = this.tools.get(call);
    if (known) Object.assign(known.state, { className: `state ${kind}`, textContent: word });
  }
}
