// The way to the daemon. The key is kept in this tab's sessionStorage and sent as a header, never in an address.

const KEPT = "claude-daemon.key";
const FORM = /^[\x21-\x7e]{1,512}$/;

/** An answer that is no success. `status` 0: there was none. */
export class Refused extends Error {
  constructor(status, code, message, retryAfter = 0) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEPT),
  set: (given) => sessionStorage.setItem(KEPT, given),
  forget: () => sessionStorage.removeItem(KEPT),
  wellFormed: (given) => FORM.test(given),
};

/** Told once a key was refused, with the daemon's words. */
export const ended = { told: () => {} };

export const address = (path) => new URL(path, document.baseURI);

/** The JSON of an answer. Throws Refused. `accept`: further statuses that are no failure. */
export async function ask(path, { method = "GET", body, headers = {}, accept = [], as = key.get() } = {}) {
  const sent = { ...headers };
  if (as) sent.Authorization = `Bearer ${as}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(address(path), {
      method, headers: sent, body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
    });
  } catch {
    throw new Refused(0, "unreachable", "The daemon does not answer.");
  }
  const told = await response.json().catch(() => ({}));
  if (response.ok || accept.includes(response.status)) return told;
  const fault = told.errors?.map((one) => `${one.path}: ${one.message}`).join(" ");
  const said = told.error?.message ?? told.detail ?? `The daemon answered ${response.status}.`;
  const refused = new Refused(response.status, told.code ?? told.error?.code ?? "", fault || said,
    Number(response.headers.get("Retry-After")) || 0);
  if (response.status === 401 && as === key.get()) ended.told(said);
  throw refused;
}
