// Monitoring: what is protected, who serves it since when, what happened last, what to do now.
import { html, useEffect, useState } from "../lib.js";
import { bytes, span, t, when } from "../i18n.js";
import { at, get } from "../api.js";
import { Button, Icon, Kind, Menu, Progress, State, useLoad } from "../parts.js";
import { globalMenu, nodeCommand, nodeMenu } from "../actions.js";
import { href, route, turn } from "../route.js";
import { level, me, modules, nodes, now, order } from "../store.js";
import { RANK } from "../verdict.js";

/** @typedef {{module: string, places: import("../verdict.js").Place[], verdict: import("../verdict.js").Verdict}} Entry */

/** The verdict as a sentence. @param {Entry} entry */
export function sentence(entry) {
  return t(`says.${entry.verdict.key}`, { module: entry.module, ...entry.verdict.values });
}

/** How old what is known of a server is. @param {import("../verdict.js").Place} place */
export function age(place) {
  return place.reachable || !place.at ? "" : t("state.ago", { time: span(now.value - place.at) });
}

/** The views that administrators made, and the one of all modules. */
export function useViews() {
  const loaded = useLoad(() => get("views"), [me.value]);
  return /** @type {{name: string, problem: string, modules: {name: string, nodes: {name: string, uri: string}[]}[]}[]} */ (loaded.data?.views ?? []);
}

/** The modules that a view shows. @param {Entry[]} all @param {ReturnType<typeof useViews>} views @param {string} name */
export function chosen(all, views, name) {
  const view = views.find((each) => each.name === name);
  if (!view) return all;
  return view.modules.map((wanted) => {
    const found = all.find((each) => each.module === wanted.name);
    if (!found) return null;
    const names = wanted.nodes.map((each) => each.name).filter(Boolean);
    return names.length ? { ...found, places: found.places.filter((each) => names.includes(each.node)) } : found;
  }).filter((each) => each !== null);
}

/** Choose a view, where there is more than one. @param {{views: ReturnType<typeof useViews>, value: string, change: (name: string) => void}} props */
export function ViewChoice({ views, value, change }) {
  if (!views.length) return null;
  const problem = views.find((each) => each.name === value)?.problem;
  return html`<label class="inline">${t("view.label")}
    <select value=${value} onChange=${(/** @type {any} */ event) => change(event.target.value)} data-key="view">
      <option value="">${t("view.all")}</option>
      ${views.map((each) => html`<option value=${each.name}>${each.name}</option>`)}</select></label>
    ${problem && html`<span class="note bad">${problem}</span>`}`;
}

export function Overview() {
  const views = useViews();
  const query = route.value.query;
  const format = query.get("format") ?? "cards";
  const view = query.get("view") ?? "";
  const set = (/** @type {Record<string, string>} */ more) => turn({ ...Object.fromEntries(query), ...more });
  const all = chosen(modules.value, views, view);
  const sorted = [...all].sort((a, b) => RANK[a.verdict.kind] - RANK[b.verdict.kind] || a.module.localeCompare(b.module));
  return html`<section class="page as-${format}">
    <div class="page-head">
      <${Summary} all=${all} />
      <div class="tools"><${ViewChoice} views=${views} value=${view} change=${(/** @type {string} */ name) => set({ view: name })} />
        <label class="inline">${t("format.label")}
          <select value=${format} data-key="format" onChange=${(/** @type {any} */ event) => set({ format: event.target.value })}>
            ${["cards", "table", "wall"].map((each) => html`<option value=${each}>${t(`format.${each}`)}</option>`)}
          </select></label></div>
    </div>
    ${!all.length ? html`<${Nothing} />`
      : format === "table" ? html`<${Table} all=${sorted} />`
        : html`<div class="cards">${sorted.map((each) => html`<${Card} key=${each.module} entry=${each} wall=${format === "wall"} />`)}</div>`}
  </section>`;
}

/** One sentence on everything. @param {{all: Entry[]}} props */
function Summary({ all }) {
  const bad = all.filter((each) => each.verdict.kind !== "protected");
  const silent = order.value.filter((name) => nodes.value[name] && !nodes.value[name].reachable);
  return html`<div><h1 aria-live="polite">${!all.length ? t("summary.none")
    : bad.length ? t("summary.bad", { count: bad.length, all: all.length }) : t("summary.good", { count: all.length })}</h1>
    <p class="muted">${silent.length ? t("summary.silent", { nodes: silent.join(", ") })
      : t("summary.servers", { count: order.value.length, names: order.value.join(", ") })}</p></div>`;
}

function Nothing() {
  return html`<div class="empty"><p>${t("empty.modules")}</p>
    ${level.value >= 3 ? html`<p><a class="button primary" href=${href(["configuration"])}>${t("empty.configure")}</a></p>` : ""}
    <p class="muted">${t("empty.commands")}</p>
    <pre class="output">safekit module install -m mirror mirror.safe${"\n"}safekit config -m mirror${"\n"}safekit prim -m mirror</pre></div>`;
}

/** @param {{entry: Entry, wall?: boolean}} props */
function Card({ entry, wall = false }) {
  const { module, places, verdict } = entry;
  const copying = places.find((each) => each.row.reintegration && each.reachable);
  return html`<article class="card ${verdict.kind}" aria-label=${module} data-module=${module}>
    <header><h2><a href=${href(["control", module, verdict.serving[0] ?? places[0]?.node ?? ""])}>${module}</a></h2>
      <${Kind} kind=${verdict.kind} />
      ${level.value >= 2 && !wall && html`<${Menu} label=${t("menu.module", { module })} items=${globalMenu(module)} />`}</header>
    <p class="says">${sentence(entry)}${verdict.since > 0 && html` <span class="muted">${t("since", { time: span(now.value - verdict.since) })}</span>`}</p>
    <${Topology} entry=${entry} wall=${wall} />
    ${copying && html`<${Reintegration} row=${copying.row} />`}
    ${!wall && html`<${LastEvent} entry=${entry} />`}
    ${!wall && html`<${Step} entry=${entry} />`}
  </article>`;
}

/** The servers and what flows between them. @param {{entry: Entry, wall: boolean}} props */
function Topology({ entry, wall }) {
  const { module, places } = entry;
  const mirror = places.some((each) => each.row.mode === "mirror");
  const from = places.find((each) => ["PRIM", "ALONE"].includes(each.row.state));
  const to = places.find((each) => each.row.state === "SECOND");
  const replicated = [...new Set(places.flatMap((each) => each.row.replicated ?? []))];
  const virtual = [...new Set(places.flatMap((each) => each.row.virtual ?? []))];
  const flow = mirror && from && to ? (places.indexOf(from) < places.indexOf(to) ? "right" : "left") : "none";
  return html`<div class="topology ${mirror ? "mirror" : "farm"}">
    ${places.map((place, index) => html`
      ${mirror && index > 0 && html`<span class="flow ${flow} ${to?.row.color === "magenta" ? "moving" : ""}" role="img"
        aria-label=${flow === "none" ? t("flow.none") : t("flow.label", { from: from?.node, to: to?.node })}></span>`}
      <div class="server ${place.reachable ? place.row.color : "grey"}" data-node=${place.node}>
        <a class="server-name" href=${href(["control", module, place.node])}>${place.node}</a>
        <${State} row=${place.row} reachable=${place.reachable} age=${age(place)} />
        ${Object.entries(place.row.shares ?? {}).slice(0, 1).map(([, share]) => html`<span class="muted">${t("share", { share })}</span>`)}
        ${!wall && html`<${Menu} label=${t("menu.node", { module, node: place.node })} items=${nodeMenu(module, place)} />`}
      </div>`)}
    ${(replicated.length > 0 || virtual.length > 0) && html`<p class="facts muted">${virtual.length > 0 && html`<span>${t("fact.address")} <b>${virtual.join(", ")}</b></span> `}
      ${replicated.length > 0 && html`<span>${t("fact.replicated")} <b>${replicated.join(", ")}</b></span>`}</p>`}
  </div>`;
}

/** Progress of a reintegration; the time left never grows from one look to the next without reason. @param {{row: import("../verdict.js").Row}} props */
export function Reintegration({ row }) {
  const p = row.reintegration;
  if (!p) return null;
  const part = p.bytes_total ? Math.min(1, p.bytes / p.bytes_total) : 0;
  const text = !p.files_total ? t("copy.comparing") : t("copy.progress", {
    percent: Math.floor(part * 100), done: bytes(p.bytes), total: bytes(p.bytes_total), rate: bytes(p.bytes_per_second),
    files: p.files, all: p.files_total,
  });
  return html`<div class="copying"><${Progress} part=${part} label=${t("copy.label")} />
    <span>${text}${p.seconds_left !== null && p.files_total ? html`, ${t("copy.left", { time: span(p.seconds_left) })}` : ""}</span></div>`;
}

/** The last event of the module on the server that knows most. @param {{entry: Entry}} props */
function LastEvent({ entry }) {
  const { module, places, verdict } = entry;
  const best = places.filter((each) => each.reachable).sort((a, b) => b.row.since - a.row.since)[0];
  const node = verdict.serving[0] ?? best?.node ?? "";
  const stamp = best?.row.since ?? 0;
  const [line, setLine] = useState(/** @type {any} */ (null));
  useEffect(() => {
    let gone = false;
    const lang = document.documentElement.lang === "fr" ? "fr" : "en";
    if (node) {
      get(at(me.value, node, `modules/${encodeURIComponent(module)}/log?level=E&lines=12&lang=${lang}`))
        .then((data) => !gone && setLine(reason(data.lines)), () => !gone && setLine(null));
    }
    return () => { gone = true; };
  }, [node, module, stamp]);
  if (!line) return null;
  return html`<p class="last"><span class="muted">${t("last")}</span> ${line.text}${" "}<a class="muted" href=${href(["control", module, node, "why"])}>${when(Date.parse(line.date) / 1000)}, ${t("last.why")}</a></p>`;
}

/** The line that tells most: a reason, else the last one. @param {{code: string, text: string, date: string}[]} lines */
function reason(lines) {
  const last = lines.at(-1);
  const why = [...lines].reverse().find((each) => each.code.startsWith("failover_") || each.code === "action_rule"
    || each.code === "transition_rule");
  return why && last && Date.parse(last.date) - Date.parse(why.date) < 60000 ? why : last ?? null;
}

/** What to do now. @param {{entry: Entry}} props */
function Step({ entry }) {
  const { module, places, verdict } = entry;
  const key = `todo.${verdict.key}`;
  const text = t(key, { module, ...verdict.values });
  if (text === key || text === "") return null;
  const place = places.find((each) => each.node === verdict.step?.node);
  const word = verdict.step?.action.filter((each) => each !== "-m" && each !== module).join(" ") ?? "";
  return html`<div class="step"><span><b>${t("next")}</b> ${text}</span>
    ${verdict.step && place?.reachable && level.value >= 2 && html`<${Button} kind="small"
      onClick=${() => nodeCommand(word, module, place.node)}>${t(`step.${verdict.step.key}`, { node: place.node })}<//>`}
    ${verdict.key === "fresh" && level.value >= 2 && places.map((each) => html`<${Button} kind="small" key=${each.node}
      onClick=${() => nodeCommand("prim", module, each.node)}>${t("step.prim", { node: each.node })}<//>`)}</div>`;
}

/** @param {{all: Entry[]}} props */
function Table({ all }) {
  return html`<div class="scroll" tabindex="0"><table class="grid"><thead><tr><th>${t("table.module")}</th><th>${t("table.verdict")}</th>
      <th>${t("table.serves")}</th><th>${t("table.since")}</th>${order.value.map((name) => html`<th key=${name}>${name}</th>`)}
      <th><span class="hidden">${t("table.actions")}</span></th></tr></thead>
    <tbody>${all.map((entry) => html`<tr key=${entry.module} data-module=${entry.module}>
      <th scope="row"><a href=${href(["control", entry.module, entry.verdict.serving[0] ?? entry.places[0]?.node ?? ""])}>${entry.module}</a></th>
      <td><${Kind} kind=${entry.verdict.kind} /></td><td>${entry.verdict.serving.join(", ")}</td>
      <td class="nowrap">${entry.verdict.since > 0 ? span(now.value - entry.verdict.since) : ""}</td>
      ${order.value.map((name) => {
        const place = entry.places.find((each) => each.node === name);
        return html`<td key=${name}>${place && html`<${State} row=${place.row} reachable=${place.reachable} age=${age(place)} />`}</td>`;
      })}
      <td>${level.value >= 2 && html`<${Menu} label=${t("menu.module", { module: entry.module })} items=${globalMenu(entry.module)} />`}</td></tr>`)}</tbody></table></div>`;
}
