// Tool calls in words: what was given, what came back.

import { h } from "./dom.js";

const MAX_SHOWN = 20000; // characters of one result; the API has the rest
const HEADS = ["command", "file_path", "notebook_path", "pattern", "path", "url", "query", "description"];

/** The one thing of a call's input that says most. */
export function head(given) {
  const name = HEADS.find((one) => typeof given?.[one] === "string");
  return name ? given[name] : "";
}

/** A call's input: a command as it is, all else by name. */
export function input(tool, given, whole = false) {
  const fields = Object.entries(given ?? {});
  if (!whole && fields.length && typeof given.command === "string")
    return h("pre", { class: "command", tabindex: 0, "aria-label": "Command" }, given.command);
  if (!fields.length) return h("p", { class: "muted" }, "without input");
  return h("dl", { class: "input" }, fields.map(([name, value]) => [
    h("dt", {}, name),
    h("dd", {}, h("pre", {}, typeof value === "string" ? value : JSON.stringify(value, null, 2))),
  ]));
}

/** What a tool gave back: text, or blocks of it. */
export function said(content) {
  const text = typeof content === "string" ? content
    : Array.isArray(content) ? content.map((one) => one?.text ?? `[${one?.type ?? "something"}]`).join("\n")
    : JSON.stringify(content ?? "", null, 2);
  return text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}\n… ${text.length - MAX_SHOWN} more characters` : text;
}
