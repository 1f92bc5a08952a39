// Control: the modules on the left, all that is known of one of them on one server on the right.
import { html } from "../lib.js";
import { t } from "../i18n.js";
import { Icon, Kind, Menu, MenuList, State, Tabs } from "../parts.js";
import { globalMenu, nodeMenu } from "../actions.js";
import { go, href, route, turn } from "../route.js";
import { level, modules } from "../store.js";
import { useState } from "../lib.js";
import { age, chosen, sentence, useViews, ViewChoice } from "./overview.js";
import { AppLog, Commands, Information, ModuleLog, Replication, Resources, WhatIf, Why } from "./detail.js";

const TABS = {
  resources: Resources, log: ModuleLog, applog: AppLog, commands: Commands, info: Information,
  why: Why, whatif: WhatIf, replication: Replication,
};

export function Control() {
  const [, module = "", node = "", tab = "resources"] = route.value.parts;
  const views = useViews();
  const view = route.value.query.get("view") ?? "";
  const all = chosen(modules.value, views, view);
  const entry = all.find((each) => each.module === module) ?? all[0];
  const place = entry?.places.find((each) => each.node === node) ?? entry?.places[0];
  if (!entry || !place) return html`<section class="page"><div class="empty"><p>${t("empty.modules")}</p></div></section>`;
  return html`<section class="page split">
    <nav class="list" aria-label=${t("tab.control")}>
      <${ViewChoice} views=${views} value=${view} change=${(/** @type {string} */ name) => turn({ view: name })} />
      ${all.map((each) => html`<${ModuleBlock} key=${each.module} entry=${each} module=${entry.module} node=${place.node} tab=${tab} />`)}
    </nav>
    <div class="detail">
      <${Detail} entry=${entry} place=${place} tab=${tab} />
    </div></section>`;
}

/** @param {any} props */
function ModuleBlock({ entry, module, node, tab }) {
  const [at, setAt] = useState(/** @type {any} */ (null));
  /** The same menu as the button's, where the mouse is. @param {MouseEvent} event @param {any[]} items */
  const context = (event, items) => {
    event.preventDefault();
    setAt({ items, left: event.clientX, right: event.clientX + 240, top: event.clientY, bottom: event.clientY });
  };
  return html`<div class="module" data-module=${entry.module}
    onContextMenu=${(/** @type {MouseEvent} */ event) => level.value >= 2 && context(event, globalMenu(entry.module))}>
    <div class="module-head"><strong>${entry.module}</strong><${Kind} kind=${entry.verdict.kind} />
      ${level.value >= 2 && html`<${Menu} label=${t("menu.module", { module: entry.module })} items=${globalMenu(entry.module)} />`}</div>
    ${entry.places.map((/** @type {any} */ place) => html`<div key=${place.node} data-node=${place.node}
      class="node-row ${entry.module === module && place.node === node ? "selected" : ""}"
      onContextMenu=${(/** @type {MouseEvent} */ event) => { event.stopPropagation(); context(event, nodeMenu(entry.module, place)); }}>
      <a href=${href(["control", entry.module, place.node, tab])} aria-current=${entry.module === module && place.node === node ? "true" : null}>
        <span class="node-name">${place.node}</span><${State} row=${place.row} reachable=${place.reachable} age=${age(place)} /></a>
      <${Menu} label=${t("menu.node", { module: entry.module, node: place.node })} items=${nodeMenu(entry.module, place)} /></div>`)}
    ${at && html`<${MenuList} label=${entry.module} items=${at.items} at=${at} close=${() => setAt(null)} />`}
  </div>`;
}

/** @param {any} props */
function Detail({ entry, place, tab }) {
  const View = TABS[/** @type {keyof typeof TABS} */ (tab)] ?? Resources;
  const tabs = Object.keys(TABS).filter((key) => key !== "replication" || place.row.mode !== "light")
    .map((key) => ({ key, label: t(key === "replication" && place.row.mode === "farm" ? "detail.farm" : `detail.${key}`) }));
  return html`<header class="detail-head"><div><h1>${entry.module} <span class="muted">${t("on", { node: place.node })}</span></h1>
      <p class="says">${sentence(entry)}</p></div>
    <${State} row=${place.row} reachable=${place.reachable} age=${age(place)} />
    <a class="icon-button" target="_blank" rel="noopener" title=${t("window")} aria-label=${t("window")}
      href=${`${location.pathname}${href(["detail", entry.module, place.node, tab])}`}><${Icon} shape="open" /></a></header>
    <${Tabs} label=${t("detail.label")} tabs=${tabs} value=${tab}
      change=${(/** @type {string} */ key) => go([route.value.parts[0] ?? "control", entry.module, place.node, key])} />
    <div class="panel" role="tabpanel" tabindex="0">${!place.reachable && html`<div class="note warn">${t("panel.stale", { node: place.node })}</div>`}
      <${View} key=${`${entry.module} ${place.node}`} module=${entry.module} node=${place.node} place=${place} entry=${entry} /></div>`;
}

/** The detailed status in a window of its own. */
export function DetailWindow() {
  const [, module, node, tab = "resources"] = route.value.parts;
  const entry = modules.value.find((each) => each.module === module);
  const place = entry?.places.find((each) => each.node === node);
  if (!entry || !place) return html`<section class="page"><div class="empty"><p>${t("empty.module", { module, node })}</p></div></section>`;
  return html`<section class="page"><div class="detail alone"><${Detail} entry=${entry} place=${place} tab=${tab} /></div></section>`;
}
