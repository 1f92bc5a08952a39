// Asking the web service, this one and through it the others.

const HEADER = {
  "X-SafeKit-Console": "1",
  // The address of the page may ask that this server shows the others the certificate of proxy.crtkey.
  ...(new URLSearchParams(globalThis.location?.search).get("proxy") === "true" ? { "X-SafeKit-Proxy": "1" } : {}),
};

/** What the service refused or could not do. */
export class ApiError extends Error {
  /** @param {number} status @param {{error?: string, text?: string, next_step?: string}} body */
  constructor(status, body) {
    super(body.text ?? `HTTP ${status}`);
    this.status = status;
    this.kind = body.error ?? "http";
    this.step = body.next_step ?? "";
  }
}

/** @type {(() => void)[]} */
const onLogin = [];

/** Be told when the service wants a password. @param {() => void} told */
export function needLogin(told) {
  onLogin.push(told);
}

/** @param {string} method @param {string} path below /api/v1/ @param {unknown} [body] @param {Record<string, string>} [headers]
 * @returns {Promise<any>} */
export async function ask(method, path, body, headers = {}) {
  const options = { method, headers: { ...HEADER, ...headers }, cache: /** @type {const} */ ("no-store") };
  if (body !== undefined) {
    Object.assign(options, { body: JSON.stringify(body) });
    Object.assign(options.headers, { "Content-Type": "application/json" });
  }
  let answer;
  try {
    answer = await fetch(`/api/v1/${path}`, options);
  } catch {
    throw new ApiError(0, { error: "connection", text: "", next_step: "" });
  }
  let data;
  try {
    data = JSON.parse(await answer.text());
  } catch {
    data = { error: "http", text: `HTTP ${answer.status}` };
  }
  if (answer.status === 401 && path !== "session") for (const told of onLogin) told();
  if (!answer.ok) throw new ApiError(answer.status, data);
  return data;
}

/** @param {string} path */
export const get = (path) => ask("GET", path);

/** A path on a server: of this one as it is, of another through the relay.
 * @param {string} me @param {string} node @param {string} path */
export function at(me, node, path) {
  return !node || node === me ? path : `nodes/${encodeURIComponent(node)}/${path}`;
}

/** A query string with its question mark; what is empty is left out. @param {Record<string, string | number>} values */
export function query(values) {
  const text = new URLSearchParams(Object.entries(values).filter(([, v]) => v !== "").map(([k, v]) => [k, String(v)]));
  return text.size ? `?${text}` : "";
}

export { HEADER };
