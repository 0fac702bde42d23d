// One WebSocket for all tasks that are followed. It comes back by itself, each task from its own cursor.

import { address, ask, key } from "./client.js";

const PROTOCOL = "claude-daemon.v1";
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15000;
const KEY_ENDED = 1008;
const ENDS = new Set(["task.succeeded", "task.failed", "task.cancelled"]);
const MAX_ENDED = 500; // remembered: far more than one list shows

export class Stream {
  /** `onState(state)`: idle, connecting, open, waiting or refused (with why). `onEvent(event)`: of any task followed. */
  constructor({ onState, onEvent }) {
    Object.assign(this, { onState, onEvent, followed: new Map(), ended: new Map(), socket: null, failures: 0, refs: 0, timer: 0 });
    this.state = "idle";
    addEventListener("online", () => this.state === "waiting" && this.connect());
  }

  /** Whether this task is followed, or was to its end: a list that is a moment old still has it as
   * running, while one that was tried again has got on since. */
  knows(task, seq) {
    return this.followed.has(task) || this.ended.get(task) >= seq;
  }

  /** From the event after this cursor on; whoever follows already starts anew. */
  follow(task, after = 0) {
    this.followed.set(task, { after, ref: null });
    if (this.state === "open") this.subscribe(task);
    else if (this.state === "idle") this.connect();
  }

  unfollow(task) {
    if (this.followed.delete(task) && this.state === "open") this.send({ op: "unsubscribe", task });
  }

  close() {
    clearTimeout(this.timer);
    this.followed.clear();
    const socket = this.socket;
    this.socket = null;
    socket?.close(1000);
    this.tell("idle");
  }

  tell(state, why = "") {
    this.state = state;
    this.onState(state, why);
  }

  send(message) {
    this.socket?.send(JSON.stringify(message));
  }

  subscribe(task) {
    const one = this.followed.get(task);
    one.ref = ++this.refs; // what comes before its ack is of an earlier subscription
    one.live = false;
    this.send({ op: "subscribe", ref: one.ref, task, after: one.after });
  }

  connect() {
    clearTimeout(this.timer);
    const url = address("v1/stream");
    url.protocol = url.protocol.replace("http", "ws");
    this.wait = null;
    this.tell("connecting");
    const socket = new WebSocket(url, [PROTOCOL, `bearer.${key.get()}`]);
    this.socket = socket;
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.failures = 0;
      this.tell("open");
      for (const task of this.followed.keys()) this.subscribe(task);
    };
    socket.onmessage = (message) => this.socket === socket && this.take(JSON.parse(message.data));
    socket.onclose = (event) => this.socket === socket && this.lost(event, opened);
  }

  take(told) {
    if (told.op === "event") {
      const one = this.followed.get(told.task);
      if (!one?.live) return;
      one.after = told.seq;
      if (ENDS.has(told.type)) {
        this.followed.delete(told.task);
        this.ended.set(told.task, told.seq);
        if (this.ended.size > MAX_ENDED) this.ended.delete(this.ended.keys().next().value);
      }
      this.onEvent(told);
    } else if (told.op === "ack") {
      const one = this.followed.get(told.task);
      if (one?.ref === told.ref) one.live = true;
    } else if (told.op === "drain") {
      this.wait = told.retry_after_ms;
    } else if (told.op === "error") {
      for (const [task, one] of this.followed) {
        if (task !== told.task && one.ref !== told.ref) continue;
        this.followed.delete(task);
        this.onEvent({ task, type: "refused", data: told.error });
      }
    }
  }

  async lost(event, opened) {
    this.socket = null;
    if (event.code === KEY_ENDED || !opened) {
      try {
        await ask("v1/stream", { accept: [400] }); // what it says to a key, without a WebSocket
      } catch (refused) {
        if (refused.status === 401) return this.tell("refused", refused.message);
        if (refused.status === 403 || refused.status === 421) return this.tell("refused", refused.message);
      }
    }
    if (this.socket !== null || this.state === "idle") return;
    if (this.followed.size === 0) return this.tell("idle");
    const wait = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.failures++) * (0.5 + Math.random() / 2);
    this.tell("waiting");
    this.timer = setTimeout(() => this.connect(), this.wait ?? wait);
  }
}
