// The page: who may come in, what is shown, and when it is asked for again.

import { approvalStrip, approvals, forgetApprovals, onApprovals, takeApproval } from "./approvals.js";
import { Refused, ask, ended, key } from "./client.js";
import { byId, fill } from "./dom.js";
import { about, changes, checks, pill, tiles } from "./overview.js";
import { Stream } from "./stream.js";
import { TaskPage, remember } from "./task.js";
import * as tasks from "./tasks.js";
import { DAYS, usagePanel } from "./usage.js";

const HEALTH_EVERY_MS = 5000;
const TASKS_EVERY_MS = 5000;
const USAGE_EVERY_MS = 60000;
const LONGEST_PAUSE_MS = 60000; // after refusals, so that no page hammers a daemon that is busy
const MAX_WATCHED = 20; // running tasks that are followed for their approvals: each may have a long history

const seen = { health: null, tasks: null, usage: null };
let page = null;
let inside = false;

const say = (text) => { byId("said").textContent = text; };
const show = () => { tiles(byId("tiles"), seen); checks(byId("checks"), seen.health); changes(byId("changes"), seen.health); };

const stream = new Stream({
  onEvent(event) {
    takeApproval(event);
    if (page?.id === event.task) page.take(event);
    if (event.type.startsWith("task.")) list.soon();
  },
  onState(state, why) {
    const words = { open: "live", connecting: "connecting…", waiting: "reconnecting…", refused: `no live events: ${why}`, idle: "" };
    byId("link").textContent = words[state];
    byId("link").className = `link ${state}`;
  },
});

const waits = (number) => (number === 1 ? "A call waits for your word" : `${number} calls wait for your word`);

/** Those of the task that is open stand in its transcript. */
function strip() {
  const elsewhere = approvalStrip(byId("approvals-list"), page?.id);
  byId("approvals").hidden = elsewhere === 0;
  byId("approvals-title").textContent = waits(elsewhere);
}

onApprovals(() => {
  const number = approvals().length;
  strip();
  document.title = number ? `(${number}) claude-daemon` : "claude-daemon";
  say(number ? waits(number) : "");
  list.soon();
});

/** Asks again and again while the page is looked at; slower where it is refused. */
class Poll {
  constructor(every, ask, where) {
    Object.assign(this, { every, ask, where, timer: 0, failures: 0, busy: false });
  }

  start() {
    this.failures = 0;
    this.soon();
  }

  stop() {
    clearTimeout(this.timer);
  }

  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.once(), 50);
  }

  async once() {
    if (this.busy) return this.soon();
    const by = key.get();
    this.busy = true;
    let pause = this.every;
    try {
      await this.ask();
      this.failures = 0;
      this.where.hidden = true;
    } catch (refused) {
      if (!(refused instanceof Refused)) throw refused;
      pause = Math.min(LONGEST_PAUSE_MS, Math.max(refused.retryAfter * 1000, this.every * 2 ** this.failures++));
      this.where.textContent = refused.status === 403 ? `This key may not see it. ${refused.message}` : refused.message;
      this.where.hidden = false;
    } finally {
      this.busy = false;
    }
    clearTimeout(this.timer);
    if (by === key.get() && !document.hidden) this.timer = setTimeout(() => this.once(), pause);
  }
}

const health = new Poll(HEALTH_EVERY_MS, async () => {
  try {
    seen.health = await ask("health", { accept: [503] });
    about(byId("about"), seen.health);
  } catch (refused) {
    seen.health = null;
    throw refused;
  } finally {
    pill(byId("state-pill"), seen.health);
    if (inside) show();
  }
}, byId("health-note"));

const list = new Poll(TASKS_EVERY_MS, async () => {
  try {
    seen.tasks = await tasks.refresh();
  } catch (refused) {
    seen.tasks = null;
    throw refused;
  } finally {
    show();
  }
  const asks = (task) => task.lane === "agent" || task.lane === "session";
  for (const task of seen.tasks.tasks.filter(asks).slice(0, MAX_WATCHED)) if (!stream.knows(task.id, task.last_seq)) stream.follow(task.id);
}, byId("tasks-note"));

const usage = new Poll(USAGE_EVERY_MS, async () => {
  try {
    seen.usage = await ask(`v1/usage?by=day&days=${DAYS}`);
    usagePanel(byId("usage"), seen.usage);
  } catch (refused) {
    seen.usage = null;
    throw refused;
  } finally {
    show();
  }
}, byId("usage-note"));

const polls = [health, list, usage];

/** Asks for everything now, unless nobody looks. */
function look() {
  if (document.hidden) polls.forEach((poll) => poll.stop());
  else if (inside) polls.forEach((poll) => poll.start());
  else health.start();
}

document.addEventListener("visibilitychange", look);
addEventListener("online", look);
addEventListener("offline", look);

// where one is: #/ or #/task/ID

function route() {
  if (!inside) return;
  const id = /^#\/task\/([A-Za-z0-9_-]{1,64})$/.exec(location.hash)?.[1];
  page?.close();
  page = null;
  byId("overview").hidden = !!id;
  byId("task").hidden = !id;
  if (id) page = new TaskPage(id, say);
  strip();
  if (!id) return list.soon();
  const opened = page;
  byId("task-title").focus();
  stream.unfollow(id); // it may be followed for its approvals: the page wants it from the start
  opened.load().then((task) => {
    if (page === opened && task && task.kind !== "chat") stream.follow(id);
  });
}

addEventListener("hashchange", route);

tasks.wire(() => list.soon(), (task, prompt) => {
  remember(task.id, prompt);
  location.hash = `#/task/${task.id}`;
});

// the door

function enter() {
  inside = true;
  byId("door").hidden = true;
  byId("inside").hidden = byId("leave").hidden = false;
  polls.forEach((poll) => poll.start());
  route();
}

function leave(why = "") {
  inside = false;
  key.forget();
  stream.close();
  forgetApprovals();
  page?.close();
  page = null;
  Object.assign(seen, { tasks: null, usage: null });
  list.stop();
  usage.stop();
  fill(byId("usage"));
  for (const id of ["tasks", "usage", "tiles", "checks"]) { fill(byId(id)); byId(id).madeFrom = undefined; }
  byId("inside").hidden = byId("leave").hidden = true;
  byId("door").hidden = false;
  byId("door-note").textContent = why;
  byId("door-note").hidden = !why;
  byId("key").value = "";
  byId("key").focus();
  health.start();
}

ended.told = (why) => inside && leave(why);
byId("leave").onclick = () => leave();

/** Whether the daemon knows this key; the models it may name come with the answer. Throws Refused. */
async function known(given) {
  try {
    tasks.models((await ask("v1/models", { as: given })).data.map((one) => one.id));
  } catch (refused) {
    if (refused.status !== 403) throw refused; // a key may lack a route, and be good for others
  }
}

byId("sign-in").onsubmit = async (event) => {
  event.preventDefault();
  const given = byId("key").value.trim(), note = byId("door-note"), button = byId("enter");
  note.hidden = true;
  button.disabled = true;
  try {
    if (!key.wellFormed(given)) throw new Refused(400, "", "This is no key: a key begins with cd_ and has no spaces.");
    await known(given);
    key.set(given);
    enter();
  } catch (refused) {
    if (!(refused instanceof Refused)) throw refused;
    note.textContent = refused.message;
    note.hidden = false;
    byId("key").focus();
  } finally {
    button.disabled = false;
  }
};

if (key.get() === null) {
  health.start();
  byId("key").focus();
} else {
  enter();
  known(key.get()).catch(() => {});
}
