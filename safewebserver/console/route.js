// The address tells what is shown: it can be sent to somebody, and "back" works.
import { signal } from "./lib.js";

function read() {
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { parts: path.split("/").filter(Boolean).map(decodeURIComponent), query: new URLSearchParams(search) };
}

export const route = signal(read());
addEventListener("hashchange", () => { route.value = read(); });

/** The address of a place. @param {string[]} parts @param {Record<string, string>} [query] */
export function href(parts, query = {}) {
  const text = new URLSearchParams(Object.entries(query).filter(([, v]) => v !== ""));
  return `#/${parts.map(encodeURIComponent).join("/")}${text.size ? `?${text}` : ""}`;
}

/** @param {string[]} parts @param {Record<string, string>} [query] */
export function go(parts, query = {}) {
  location.hash = href(parts, query);
}

/** The same place with another query. @param {Record<string, string>} query */
export function turn(query) {
  history.replaceState(null, "", href(route.value.parts, query));
  route.value = read();
}
