// The frame around the pages, and where everything begins.
import { html, render, useEffect, useRef, useState } from "./lib.js";
import { LANGUAGES, choose, language, span, t, use } from "./i18n.js";
import { ask, get, needLogin } from "./api.js";
import { Button, Dialog, Dialogs, Icon, Kind, Menu, openDialog, State, Tabs } from "./parts.js";
import { drift, level, login, lost, me, modules, nodes, now, order, ready, role, snapshot, take, tick, user, worst } from "./store.js";
import { Stream } from "./stream.js";
import { open, tasks } from "./tasks.js";
import { go, href, route } from "./route.js";
import { Overview } from "./pages/overview.js";
import { Control, DetailWindow } from "./pages/control.js";
import { Timeline } from "./pages/timeline.js";
import { Login } from "./pages/login.js";
import { Configuration } from "./pages/configuration.js";
import { Advanced } from "./pages/advanced.js";
import { ClusterPanel } from "./pages/cluster.js";
import { Compare } from "./pages/compare.js";
import { clusterName, Inventory, inventory } from "./inventory.js";

const TABS = [
  { key: "configuration", needs: 3 }, { key: "control", needs: 2 }, { key: "monitoring", needs: 1 }, { key: "advanced", needs: 3 },
];
const PAGES = {
  monitoring: Overview, control: Control, detail: DetailWindow, timeline: Timeline, configuration: Configuration,
  advanced: Advanced, compare: Compare,
};

/** @type {Stream | null} */
let stream = null;

function connect() {
  stream?.stop();
  stream = new Stream({
    event: take,
    state: (up) => { lost.value = up ? 0 : lost.value || Date.now(); },
    snapshot,
    login: () => { login.value = true; },
  });
}

async function logOut() {
  stream?.stop();
  stream = null;
  await ask("DELETE", "session").catch(() => undefined);
  ready.value = false;
  nodes.value = {};
  login.value = true;
}

function App() {
  void language.value;
  if (login.value) return html`<${Login} done=${() => { login.value = false; connect(); }} /><${Dialogs} />`;
  if (!ready.value) return html`<main class="login"><p class="muted" aria-live="polite">${lost.value ? t("banner.lost.first") : t("panel.loading")}</p></main>`;
  const [name = "monitoring"] = route.value.parts;
  const tab = TABS.find((each) => each.key === name);
  const allowed = !tab || level.value >= tab.needs;
  const Page = PAGES[/** @type {keyof typeof PAGES} */ (name)] ?? Overview;
  if (name === "detail") return html`<${Banners} /><main id="main"><${DetailWindow} /></main><${Dialogs} />`;
  const wall = name === "monitoring" && route.value.query.get("format") === "wall";
  return html`<a class="skip" href="#main" onClick=${(/** @type {Event} */ e) => { e.preventDefault(); document.getElementById("main")?.focus(); }}>${t("skip")}</a>
    ${!wall && html`<${Top} />`}<${Banners} />
    <div class="body ${wall ? "wall" : ""}">${!wall && html`<${Inventory} />`}
      <main id="main" tabindex="-1">${!wall && html`<${Main} name=${name} />`}
        ${["configuration", "control", "monitoring", "advanced"].includes(name) && !wall && html`<${ClusterPanel} edit=${["configuration", "advanced"].includes(name)} />`}
        ${allowed ? html`<${Page} key=${name} />` : html`<section class="page"><div class="empty">${t("panel.role", { role: role.value })}</div></section>`}
        ${wall && html`<a class="leave button small" href=${href(["monitoring"])}>${t("wall.leave")}</a>`}
      </main></div>
    ${!wall && html`<${Strip} />`}<${Dialogs} />`;
}

/** @param {{name: string}} props */
function Main({ name }) {
  const tabs = TABS.filter((each) => level.value >= each.needs).map((each) => ({ key: each.key, label: t(`tab.${each.key}`) }));
  return html`<div class="main-tabs"><${Tabs} label=${t("tabs.label")} tabs=${tabs} value=${name in { timeline: 1, compare: 1 } ? "" : name} change=${(/** @type {string} */ key) => go([key])} kind="main" />
    <nav class="more" aria-label=${t("tabs.more")}><a href=${href(["timeline"])} aria-current=${name === "timeline" ? "page" : null}>${t("timeline.title")}</a>
      <a href=${href(["compare"])} aria-current=${name === "compare" ? "page" : null}>${t("compare.title")}</a>
      <button type="button" class="icon-button" aria-label=${t("help.open")} title=${t("help.open")} data-key="help" onClick=${() => help(name)}><${Icon} shape="help" /></button></nav></div>`;
}

/** Help of the place. @param {string} name */
function help(name) {
  openDialog((close) => html`<${Dialog} title=${t("help.title", { place: t(name in { timeline: 1, compare: 1 } ? `${name}.title` : `tab.${name}`) })} close=${close}>
    ${t(`help.${name}`).split("\n").map((line) => html`<p>${line}</p>`)}
    <h3>${t("help.states")}</h3>
    <dl class="facts-list legend">${["green", "magenta", "red", "grey"].map((color) => html`<dt><span class="state ${color}"><${Icon} shape=${color} />${t(`color.${color}`)}</span></dt>
      <dd>${t(`help.color.${color}`)}</dd>`)}</dl>
    <h3>${t("help.keys")}</h3><p><kbd>Ctrl K</kbd> ${t("help.key.search")} · <kbd>?</kbd> ${t("help.key.help")} · <kbd>Esc</kbd> ${t("help.key.close")}</p><//>`);
}

function Top() {
  const languages = Object.entries(LANGUAGES).map(([key, label]) => ({
    key, label, action: () => { localStorage.setItem("safekit.language", key); void use(key); },
  }));
  const themes = ["auto", "light", "dark"].map((key) => ({ key, label: t(`theme.${key}`), group: t("theme.label"), action: () => theme(key) }));
  return html`<header class="top"><a class="brand" href=${href(["monitoring"])}><b>SafeKit</b><span>${clusterName()}</span></a>
    <${Kind} kind=${modules.value.length ? worst.value : "stopped"} />
    <span class="push"></span>
    <button type="button" class="search-button" onClick=${search} data-key="search"><span>${t("search")}</span><kbd>Ctrl K</kbd></button>
    <${Menu} label=${t("language")} items=${[...languages, ...themes]} text=${language.value.toUpperCase()} kind="text-button" shape="right" />
    <${Menu} label=${t("user", { user: user.value })} text=${html`<span class="who">${user.value}<small>${role.value}</small></span>`} kind="text-button" shape="right"
      items=${[{ key: "logout", label: t("logout"), action: () => void logOut() }]} /></header>`;
}

/** @param {string} name */
function theme(name) {
  localStorage.setItem("safekit.theme", name);
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
}

function Banners() {
  const own = nodes.value[me.value];
  return html`<div class="banners" role="status">
    ${lost.value > 0 && tick.value - lost.value > 1500 && html`<p class="banner red"><${Icon} shape="warn" /> ${t("banner.lost", { time: span((tick.value - lost.value) / 1000) })}</p>`}
    ${own && !own.configured && html`<p class="banner">${t("banner.unconfigured", { node: me.value })} ${level.value >= 3 && html`<a href=${href(["configuration"], { cluster: "open" })}>${t("banner.configure")}</a>`}</p>`}
    ${drift.value.map((each) => html`<p class="banner" key=${`${each.key}${JSON.stringify(each.values)}`}><${Icon} shape="warn" /> ${t(`banner.${each.key}`, each.values)} <a href=${href(["compare"])}>${t("compare.title")}</a></p>`)}
  </div>`;
}

/** What was commanded here: quiet while it works, open when it failed. */
function Strip() {
  const [all, setAll] = useState(false);
  const list = tasks.value;
  const shown = list.find((each) => each.id === open.value);
  if (!list.length) return null;
  const running = list.filter((each) => !each.ended || each.goes);
  const lines = all ? list : list.slice(0, 1);
  return html`<footer class="strip ${all || shown ? "up" : ""}" aria-label=${t("task.label")}>
    ${shown && html`<div class="task-output" role=${shown.status === 0 ? "status" : "alert"} data-key="task-output"><header><b>${shown.label}</b> ${shown.node} <code>${shown.words}</code><span class="push"></span>
      <button type="button" class="icon-button" aria-label=${t("close")} onClick=${() => { open.value = 0; }}><${Icon} shape="close" /></button></header>
      <pre>${shown.output || t("task.silent")}</pre></div>`}
    <ul>${lines.map((each) => html`<li key=${each.id}><button type="button" class="task" onClick=${() => { open.value = open.value === each.id ? 0 : each.id; }}>
      <span class="dot ${each.status === 0 ? "green" : each.ended && !each.goes ? "red" : "magenta busy"}"></span>
      <b>${each.label}</b><span>${each.node}</span><code>${each.words}</code>
      <span class="muted">${each.goes ? t("task.goes") : !each.ended ? t("task.running", { time: span((tick.value - each.began) / 1000) })
        : each.status === 0 ? t("task.done") : t("task.failed", { status: each.status })}</span></button></li>`)}</ul>
    ${list.length > 1 && html`<button type="button" class="text-button" aria-expanded=${all} onClick=${() => setAll(!all)}>${all ? t("task.less") : t("task.more", { count: list.length, running: running.length })}</button>`}</footer>`;
}

/** Go to a module, a server or a page by its name. */
function search() {
  openDialog((close) => html`<${Search} close=${close} />`);
}

/** @param {{close: () => void}} props */
function Search({ close }) {
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const input = useRef(/** @type {any} */ (null));
  useEffect(() => input.current.focus(), []);
  const places = modules.value.flatMap((each) => each.places.map((place) => ({
    label: `${each.module} · ${place.node}`, to: href([level.value >= 2 ? "control" : "detail", each.module, place.node]), row: place.row, reachable: place.reachable,
  })));
  const pages = [...TABS.filter((each) => level.value >= each.needs).map((each) => ({ label: t(`tab.${each.key}`), to: href([each.key]) })),
    { label: t("timeline.title"), to: href(["timeline"]) }, { label: t("compare.title"), to: href(["compare"]) }];
  const found = [...places, ...pages].filter((each) => each.label.toLowerCase().includes(text.toLowerCase())).slice(0, 12);
  const take_ = (/** @type {any} */ entry) => { close(); location.hash = entry.to; };
  return html`<${Dialog} title=${t("search")} close=${close}><input class="search" ref=${input} role="combobox" aria-expanded="true" aria-controls="found" aria-label=${t("search.label")}
      placeholder=${t("search.label")} value=${text} onInput=${(/** @type {any} */ e) => { setText(e.target.value); setAt(0); }}
      onKeyDown=${(/** @type {KeyboardEvent} */ e) => {
        if (e.key === "ArrowDown" || e.key === "ArrowUp") { setAt((at + (e.key === "ArrowDown" ? 1 : -1) + found.length) % Math.max(found.length, 1)); e.preventDefault(); }
        if (e.key === "Enter" && found[at]) take_(found[at]);
      }} />
    <ul class="found" id="found" role="listbox" aria-label=${t("search")}>${found.map((each, i) => html`<li role="option" aria-selected=${i === at} onClick=${() => take_(each)}>
      <span>${each.label}</span>${"row" in each && html`<${State} ...${each} />`}</li>`)}</ul><//>`;
}

addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLElement && event.target.closest("input, textarea, select, .editor");
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k" && ready.value) {
    event.preventDefault();
    search();
  } else if (event.key === "?" && !typing && ready.value) help(route.value.parts[0] ?? "monitoring");
});

async function begin() {
  const kept = localStorage.getItem("safekit.theme");
  if (kept && kept !== "auto") document.documentElement.dataset.theme = kept;
  inventory.start();
  await use(choose(navigator.languages, localStorage.getItem("safekit.language")));
  needLogin(() => { if (!login.value) { stream?.stop(); login.value = true; } });
  const app = /** @type {HTMLElement} */ (document.getElementById("app"));
  app.replaceChildren();
  render(html`<${App} />`, app);
  try {
    await get("node");
    connect();
  } catch (error) {
    if (!login.value) { lost.value = Date.now(); connect(); }
  }
}

void begin();
