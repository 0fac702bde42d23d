// The OpenAPI document of this daemon, for reading.

import { Refused, ask } from "./client.js";
import { byId, fill, h, line } from "./dom.js";

const METHODS = ["get", "post", "put", "patch", "delete"];
const MAX_DEPTH = 6; // of shapes within shapes; deeper ones are named, and stand under Schemas

let api;

const resolve = (node) => (node?.$ref ? node.$ref.slice(2).split("/").reduce((at, name) => at?.[name.replaceAll("~1", "/")], api) : node);
const named = (node) => node?.$ref?.split("/").at(-1);

/** Markdown's `code` spans; all else is text. */
function prose(text) {
  return (text ?? "").split(/\n{2,}/).map((part) => h("p", {}, part.split(/(`[^`]+`)/).map((piece) =>
    piece.startsWith("`") && piece.length > 2 ? h("code", {}, piece.slice(1, -1)) : piece)));
}

/** A schema in a few words: its type, and what bounds it. */
function type(schema) {
  if (schema === true || !schema || !Object.keys(schema).length) return "anything";
  if (schema.$ref) return named(schema);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  for (const many of ["anyOf", "oneOf"]) if (schema[many]) return [...new Set(schema[many].map(type))].join(" | ");
  if (schema.allOf) return schema.allOf.map(type).join(" & ");
  const kind = [schema.type ?? "anything"].flat().map((one) => one === "array" ? `array of ${type(schema.items)}` : one).join(" | ");
  return schema.format ? `${kind} (${schema.format})` : kind;
}

/** What bounds a value: "1 to 255 characters, matches …". */
function bounds(schema) {
  const others = schema?.anyOf?.filter((one) => one.type !== "null");
  if (others?.length === 1) return bounds({ ...resolve(others[0]), default: schema.default });
  const range = (least, most, unit) => {
    if (least === undefined && most === undefined) return "";
    const words = least === undefined ? `at most ${most}` : most === undefined ? `at least ${least}` : `${least} to ${most}`;
    return `${words}${unit}`;
  };
  const { exclusiveMinimum: above, exclusiveMaximum: below, pattern, default: usual } = schema ?? {};
  return [
    range(schema?.minLength, schema?.maxLength, " characters"), range(schema?.minItems, schema?.maxItems, " items"),
    above !== undefined && `above ${above}`, below !== undefined && `below ${below}`, range(schema?.minimum, schema?.maximum, ""),
    pattern && `matches ${pattern}`, usual !== undefined && usual !== null && `default ${JSON.stringify(usual)}`,
  ].filter(Boolean).join(", ");
}

/** Those parts of a schema that have fields of their own. */
function inner(schema) {
  const found = resolve(schema);
  if (!found) return [];
  if (found.properties) return [schema];
  const parts = [...(found.anyOf ?? []), ...(found.oneOf ?? []), ...(found.allOf ?? []), found.items, found.additionalProperties].filter((one) => one && one !== true);
  return parts.flatMap(inner);
}

function fields(schema, seen = []) {
  const found = resolve(schema);
  const required = new Set(found?.required ?? []);
  const rows = Object.entries(found?.properties ?? {}).map(([name, field]) => {
    const deeper = inner(field).filter((one) => !seen.includes(named(one)));
    const row = h("li", {}, h("p", { class: "field" }, h("code", { class: "name" }, name), required.has(name) && h("em", {}, "required"),
      h("span", { class: "type" }, type(field)), h("span", { class: "bounds" }, bounds(resolve(field)))), prose(field.description ?? resolve(field)?.description));
    if (deeper.length && seen.length < MAX_DEPTH) for (const one of deeper) row.append(later(named(one) ?? "its fields", () => fields(one, [...seen, named(one)])));
    return row;
  });
  return rows.length ? h("ul", { class: "fields" }, rows) : null;
}

/** Made once it is opened: whole trees would be long. */
function later(title, make, open = false) {
  const details = h("details", { class: "shape" }, h("summary", {}, title));
  const show = () => details.childElementCount === 1 && details.append(make() ?? h("p", { class: "muted" }, "no fields of its own"));
  details.addEventListener("toggle", () => details.open && show());
  if (open) { show(); details.open = true; }
  return details;
}

function content(body, open) {
  return Object.entries(resolve(body)?.content ?? {}).map(([media, { schema }]) => {
    const about = [h("code", {}, media), " ", h("span", { class: "type" }, type(schema)), prose(schema?.description)];
    const parts = inner(schema);
    return h("div", { class: "content" }, h("div", {}, about), parts.map((one) => later(named(one) ?? "Fields", () => fields(one, [named(one)]), open)));
  });
}

function parameters(list) {
  if (!list.length) return null;
  return [h("h4", {}, "Parameters"), h("ul", { class: "fields" }, list.map(resolve).map((one) => h("li", {}, h("p", { class: "field" },
    h("code", { class: "name" }, one.name), one.required && h("em", {}, "required"), h("span", { class: "type" }, `${one.in}: ${type(one.schema)}`),
    h("span", { class: "bounds" }, bounds(one.schema))), prose(one.description))))];
}

function responses(operation) {
  return [h("h4", {}, "Answers"), h("ul", { class: "answers" }, Object.entries(operation.responses).map(([status, one]) => {
    const told = resolve(one), names = Object.keys(told.headers ?? {});
    const more = [content(told, false), names.length ? h("p", { class: "muted" }, "Headers: ", names.map((name, at) => [at ? ", " : "", h("code", {}, name)])) : null];
    return h("li", {}, h("details", {}, h("summary", {}, h("b", { class: status < 400 ? "good" : "bad" }, status), h("span", {}, line(told.description ?? "", 200))), more));
  }))];
}

function operation(path, method, told, shared) {
  const open = Array.isArray(told.security) && (told.security.length === 0 || told.security.some((one) => !Object.keys(one).length));
  return h("article", { id: told.operationId, class: "operation" },
    h("h3", {}, h("span", { class: `method ${method}` }, method.toUpperCase()), h("code", {}, path), open && h("i", { class: "open" }, "open")),
    h("p", { class: "lead" }, told.summary), prose(told.description), parameters([...(shared ?? []), ...(told.parameters ?? [])]),
    told.requestBody && [h("h4", {}, "Body"), content(told.requestBody, true)], responses(told));
}

function operations() {
  const groups = new Map();
  for (const [path, item] of Object.entries(api.paths))
    for (const method of METHODS.filter((one) => item[one])) {
      const tag = item[method].tags?.[0] ?? "other";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push({ path, method, told: item[method], shared: item.parameters });
    }
  return groups;
}

function show() {
  const groups = operations();
  byId("version").textContent = api.info.version;
  byId("summary").textContent = api.info.summary;
  fill(byId("index"), [...groups].map(([tag, list]) => h("section", {}, h("h2", {}, tag), h("ul", {}, list.map(({ path, method, told }) =>
    h("li", { "data-words": `${method} ${path} ${told.summary}`.toLowerCase() }, h("a", { href: `#${told.operationId}` },
      h("span", { class: `method ${method}` }, method.toUpperCase()), h("span", {}, path))))))));
  fill(byId("operations"), [...groups].map(([tag, list]) => h("section", {}, h("h2", { class: "group" }, tag),
    list.map(({ path, method, told, shared }) => operation(path, method, told, shared)))));
  fill(byId("schemas"), Object.entries(api.components.schemas).map(([name, schema]) => h("div", { class: "content", id: `schema-${name}` },
    later(name, () => h("div", {}, prose(schema.description), fields({ $ref: `#/components/schemas/${name}` }, [name]) ?? h("p", { class: "type" }, type(schema)))))));
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

byId("find").oninput = (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const one of byId("index").querySelectorAll("li")) one.hidden = !one.dataset.words.includes(wanted);
  for (const one of byId("index").querySelectorAll("section")) one.hidden = !one.querySelector("li:not([hidden])");
};

try {
  api = await ask("openapi.json", { as: null });
  show();
} catch (refused) {
  if (!(refused instanceof Refused)) throw refused;
  byId("note").textContent = refused.message;
  byId("note").hidden = false;
}
