// The clusters that this browser knows (guide 3.2): kept in the browser only.
import { html, signal, useState } from "./lib.js";
import { t } from "./i18n.js";
import { Button, Dialog, Menu, MenuList, Kind, openDialog, save } from "./parts.js";
import { modules, worst } from "./store.js";
import { go, href } from "./route.js";

const KEY = "safekit.inventory";

/** @typedef {{name: string, host: string}} Cluster */
export const clusters = signal(/** @type {Cluster[]} */ ([]));

/** `name@ip,name2@ip2`, as in the address of deploy.html. @param {string} text @returns {Cluster[]} */
export function parse(text) {
  return text.split(",").map((each) => each.trim()).filter(Boolean).map((each) => {
    const cut = each.lastIndexOf("@");
    return cut > 0 ? { name: each.slice(0, cut), host: each.slice(cut + 1) } : { name: "", host: each };
  }).filter((each) => /^[A-Za-z0-9.:_[\]-]+$/.test(each.host)).map((each, i) => ({ ...each, name: each.name || `cluster${i + 1}` }));
}

const here = () => location.hostname;

/** @param {Cluster[]} all */
function keep(all) {
  clusters.value = all;
  localStorage.setItem(KEY, JSON.stringify(all));
}

export const inventory = {
  start() {
    const asked = new URLSearchParams(location.search).get("inventory");
    if (asked) {
      keep(parse(asked));
      return;
    }
    let known = [];
    try {
      known = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    } catch {
      known = [];
    }
    clusters.value = Array.isArray(known) ? known.filter((each) => typeof each?.name === "string" && typeof each?.host === "string") : [];
    if (!clusters.value.some((each) => each.host === here())) {
      const numbers = clusters.value.map((each) => Number(/^cluster(\d+)$/.exec(each.name)?.[1] ?? 0));
      keep([...clusters.value, { name: `cluster${Math.max(0, ...numbers) + 1}`, host: here() }]);
    }
  },
};

export function clusterName() {
  return clusters.value.find((each) => each.host === here())?.name ?? here();
}

/** @param {Cluster} cluster */
function address(cluster) {
  const host = cluster.host.includes(":") && !cluster.host.startsWith("[") ? `[${cluster.host}]` : cluster.host;
  return `${location.protocol}//${host}:${location.port || (location.protocol === "https:" ? 443 : 80)}/`;
}

/** @param {Cluster | null} cluster */
function edit(cluster) {
  openDialog((close) => html`<${Edit} cluster=${cluster} close=${close} />`);
}

/** @param {{cluster: Cluster | null, close: () => void}} props */
function Edit({ cluster, close }) {
  const [name, setName] = useState(cluster?.name ?? `cluster${clusters.value.length + 1}`);
  const [host, setHost] = useState(cluster?.host ?? "");
  const local = /^(localhost|127\.0\.0\.1|\[?::1\]?)$/.test(host.trim());
  const bad = !name.trim() || !/^[A-Za-z0-9.:_[\]-]+$/.test(host.trim()) || local
    || clusters.value.some((each) => each !== cluster && each.name === name.trim());
  const done = () => {
    const made = { name: name.trim(), host: host.trim() };
    keep(cluster ? clusters.value.map((each) => (each === cluster ? made : each)) : [...clusters.value, made]);
    close();
  };
  return html`<${Dialog} title=${t(cluster ? "inventory.edit" : "inventory.add")} close=${close} actions=${html`<${Button} onClick=${close}>${t("cancel")}<//>
      <${Button} kind="primary" disabled=${bad} data-key="confirm" onClick=${done}>${t("save")}<//>`}>
    <label class="field">${t("inventory.name")}<input name="name" value=${name} onInput=${(/** @type {any} */ e) => setName(e.target.value)} /></label>
    <label class="field">${t("inventory.host")}<input name="host" value=${host} aria-invalid=${local} onInput=${(/** @type {any} */ e) => setHost(e.target.value)} /></label>
    ${local && html`<p class="note bad">${t("cluster.localhost")}</p>`}<//>`;
}

export function Inventory() {
  const [at, setAt] = useState(/** @type {any} */ (null));
  const items = (/** @type {Cluster | null} */ cluster) => [
    cluster && { key: "edit", label: t("inventory.edit"), action: () => edit(cluster) },
    cluster && {
      key: "delete", label: t("inventory.delete"), why: clusters.value.length > 1 ? "" : t("inventory.last"),
      action: () => keep(clusters.value.filter((each) => each !== cluster)),
    },
    { key: "add", label: t("inventory.add"), action: () => edit(null) },
    {
      key: "link", label: t("inventory.link"), action: () =>
        save("inventory.txt", `${address({ name: "", host: here() })}deploy.html?inventory=${clusters.value.map((each) => `${each.name}@${each.host}`).join(",")}\n`),
    },
  ];
  /** @param {MouseEvent} event @param {Cluster | null} cluster */
  const context = (event, cluster) => {
    event.preventDefault();
    event.stopPropagation();
    setAt({ cluster, left: event.clientX, right: event.clientX + 200, top: event.clientY, bottom: event.clientY });
  };
  return html`<nav class="inventory" aria-label=${t("inventory.title")}><div class="inventory-head" onContextMenu=${(/** @type {MouseEvent} */ e) => context(e, null)}>
      <a href=${href(["monitoring"])} data-key="inventory-root">${t("inventory.title")}</a>
      <${Menu} label=${t("inventory.menu", { name: t("inventory.title") })} items=${items(null)} /></div>
    <ul>${clusters.value.map((each) => html`<li key=${each.name} data-cluster=${each.name} onContextMenu=${(/** @type {MouseEvent} */ e) => context(e, each)}>
      ${each.host === here()
        ? html`<a href=${href(["monitoring"])} aria-current="true" onClick=${() => go(["monitoring"])}><span>${each.name}</span><small>${each.host}</small>${modules.value.length > 0 && html`<${Kind} kind=${worst.value} />`}</a>`
        : html`<a href=${address(each)} target="_blank" rel="noopener" title=${t("inventory.other")}><span>${each.name}</span><small>${each.host}</small></a>`}
      <${Menu} label=${t("inventory.menu", { name: each.name })} items=${items(each)} /></li>`)}</ul>
    ${at && html`<${MenuList} label=${t("inventory.title")} items=${items(at.cluster)} at=${at} close=${() => setAt(null)} />`}</nav>`;
}
