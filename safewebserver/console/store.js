// What the pages show: kept here, changed by the stream only.
import { batch, computed, signal } from "./lib.js";
import { judge, places, RANK, differences } from "./verdict.js";

/** @type {import("./lib.js").Signal<Record<string, import("./verdict.js").Server>>} */
export const nodes = signal({});
export const order = signal(/** @type {string[]} */ ([]));
export const me = signal("");
export const user = signal("");
export const role = signal("");
export const ready = signal(false);
/** When the connection was lost (ms), 0 while it is there. */
export const lost = signal(0);
export const login = signal(false);
/** Seconds by which the server's clock is ahead of the browser's. */
export const ahead = signal(0);
export const tick = signal(Date.now());
setInterval(() => { tick.value = Date.now(); }, 1000);

/** Now by the clock of the server, in Unix seconds. */
export const now = computed(() => tick.value / 1000 + ahead.value);

/** @type {Record<string, number>} */
const LEVELS = { Monitor: 1, Control: 2, Admin: 3 };
const page = document.documentElement.dataset.role ?? "";
/** 1 Monitor, 2 Control, 3 Admin: the lesser of the person's and the page's. */
export const level = computed(() => Math.min(LEVELS[role.value] ?? 0, page ? LEVELS[page] : 3));

/** @param {string} type @param {any} data */
export function take(type, data) {
  batch(() => {
    if (type === "snapshot") {
      nodes.value = data.nodes;
      order.value = data.order;
      me.value = data.me;
      if (data.user !== undefined) {
        user.value = data.user;
        role.value = data.role;
      }
      ahead.value = data.time - Date.now() / 1000;
      ready.value = true;
    } else if (type === "change") {
      change(data);
    }
  });
}

/** @param {any} data */
function change(data) {
  const all = { ...nodes.value };
  if (data.removed) delete all[data.node];
  else if (data.whole) all[data.node] = data.whole;
  else if (all[data.node]) {
    const modules = { ...all[data.node].modules, ...data.modules };
    for (const name of data.gone ?? []) delete modules[name];
    all[data.node] = { ...all[data.node], ...data.about, modules };
  }
  nodes.value = all;
  const own = /** @type {any} */ (all[me.value]);
  if (own?.nodes?.length && own.nodes.join() !== order.value.join()) order.value = own.nodes;
}

export function snapshot() {
  if (!ready.value) return null;
  return {
    nodes: nodes.value, order: order.value, me: me.value, user: user.value, role: role.value,
    time: Date.now() / 1000 + ahead.value,
  };
}

/** Every module of the cluster with its places and its verdict, by name. */
export const modules = computed(() => {
  const names = new Set(order.value.flatMap((name) => Object.keys(nodes.value[name]?.modules ?? {})));
  return [...names].sort().map((module) => {
    const where = places(nodes.value, order.value, module);
    return { module, places: where, verdict: judge(where) };
  });
});

/** The worst verdict of all. */
export const worst = computed(() =>
  modules.value.reduce((found, each) => (RANK[each.verdict.kind] < RANK[found] ? each.verdict.kind : found),
    /** @type {keyof typeof RANK} */ ("protected")));

export const drift = computed(() => differences(nodes.value, order.value));
