// Texts in the language of the browser: English, French, Japanese; anything else English (guide 3.1.1).
import { signal } from "./lib.js";

export const LANGUAGES = { en: "English", fr: "Français", ja: "日本語" };
const base = document.documentElement.dataset.base ?? "/console/dev";

/** @type {{value: string}} */
export const language = signal("en");
/** @type {Record<string, string>} */
let texts = {};
/** @type {Record<string, string>} */
let english = {};

/** The language that the browser prefers and we have; what somebody chose here comes first.
 * @param {readonly string[]} preferred @param {string | null} chosen */
export function choose(preferred, chosen) {
  if (chosen !== null && chosen in LANGUAGES) return chosen;
  const first = (preferred[0] ?? "en").slice(0, 2).toLowerCase();
  return first in LANGUAGES ? first : "en";
}

/** @param {string} name */
async function load(name) {
  const answer = await fetch(`${base}/i18n/${name}.json`);
  return answer.ok ? await answer.json() : {};
}

/** Fetch the texts of a language, and the English ones for what it lacks. @param {string} name */
export async function use(name) {
  const [own, fallback] = await Promise.all([load(name), name === "en" ? {} : load("en")]);
  texts = own;
  english = name === "en" ? own : fallback;
  document.documentElement.lang = name;
  language.value = name;
}

/** A text with its places filled. @param {string} key @param {Record<string, unknown>} [values] */
export function t(key, values = {}) {
  void language.value;
  const plural = typeof values.count === "number"
    ? `${key}.${new Intl.PluralRules(language.value).select(values.count)}` : "";
  const text = (plural && texts[plural]) || texts[key] || texts[`${key}.other`] || (plural && english[plural])
    || english[key] || english[`${key}.other`] || key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** Whether there is a text of that name. @param {string} key */
export function has(key) {
  return key in texts || key in english;
}

/** A date as people of this language write it: the time alone when it is today. @param {number} at Unix seconds */
export function when(at) {
  if (!at) return "";
  const date = new Date(at * 1000);
  const today = new Date().toDateString() === date.toDateString();
  return new Intl.DateTimeFormat(language.value, today
    ? { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false }
    : { dateStyle: "medium", timeStyle: "medium", hour12: false }).format(date);
}

/** A span of time in its two greatest units. @param {number} seconds */
export function span(seconds) {
  let left = Math.max(0, Math.round(seconds));
  const units = /** @type {const} */ ([["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]]);
  const parts = [];
  for (const [unit, size] of units) {
    if (parts.length === 2 || (parts.length && !left)) break;
    const count = Math.floor(left / size);
    if (count || (unit === "second" && !parts.length)) {
      parts.push(new Intl.NumberFormat(language.value, { style: "unit", unit, unitDisplay: "short" }).format(count));
      left -= count * size;
    } else if (parts.length) break;
  }
  return parts.join(" ");
}

/** A number of bytes; 1 KB is 1024 of them, as everywhere in the product. @param {number} count */
export function bytes(count) {
  let left = count;
  let unit = "B";
  for (const next of ["KB", "MB", "GB", "TB"]) {
    if (left < 1024) break;
    left /= 1024;
    unit = next;
  }
  const digits = unit === "B" || left >= 100 ? 0 : 1;
  return `${new Intl.NumberFormat(language.value, { maximumFractionDigits: digits }).format(left)} ${unit}`;
}
