// Every command that somebody gives here is a task: who, where, what, and how it ended.
import { signal } from "./lib.js";
import { ask, at, ApiError } from "./api.js";
import { me } from "./store.js";

/** @typedef {{id: number, label: string, node: string, words: string, began: number, ended: number, status: number | null,
 *   output: string, goes: boolean}} Task */
/** @type {import("./lib.js").Signal<Task[]>} */
export const tasks = signal([]);
export const open = signal(0);
let count = 0;

/** @param {number} id @param {Partial<Task>} fields */
function note(id, fields) {
  tasks.value = tasks.value.map((each) => (each.id === id ? { ...each, ...fields } : each));
}

/** Something that runs; it opens itself when it fails. @param {string} label @param {string} node @param {string} words
 * @param {() => Promise<{status: number, output: string, ended?: boolean}>} work */
export async function run(label, node, words, work) {
  const id = ++count;
  const task = { id, label, node, words, began: Date.now(), ended: 0, status: null, output: "", goes: false };
  tasks.value = [task, ...tasks.value].slice(0, 50);
  try {
    const result = await work();
    const goes = result.ended === false;
    note(id, { ended: Date.now(), status: goes ? null : result.status, output: result.output, goes });
    if (result.status !== 0 && !goes) open.value = id;
    return result;
  } catch (error) {
    const failed = error instanceof ApiError ? error : new ApiError(0, { text: String(error) });
    const output = [failed.message, failed.step].filter(Boolean).join("\n");
    note(id, { ended: Date.now(), status: -1, output });
    open.value = id;
    return { status: -1, output, kind: failed.kind };
  }
}

/** A safekit command on a server. @param {string} label @param {string} node @param {string[]} words @param {number} [timeout] */
export function command(label, node, words, timeout = 300) {
  return run(label, node, `safekit ${words.join(" ")}`, () =>
    ask("POST", at(me.value, node, "command"), { arguments: words, timeout }));
}
