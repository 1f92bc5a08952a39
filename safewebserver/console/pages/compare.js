// Everything that should be equal on all servers, side by side; what differs comes first.
import { html } from "../lib.js";
import { t, when } from "../i18n.js";
import { at, get } from "../api.js";
import { Button, Icon, Panel, useLoad } from "../parts.js";
import { run } from "../tasks.js";
import { ask } from "../api.js";
import { level, me, modules, nodes, order } from "../store.js";

export function Compare() {
  const names = order.value;
  const state = useLoad(async () => {
    /** @type {Record<string, Record<string, any>>} */
    const found = {};
    await Promise.all(names.filter((name) => nodes.value[name]?.reachable && level.value >= 2).flatMap((name) =>
      Object.keys(nodes.value[name].modules).map(async (module) => {
        const data = await get(at(me.value, name, `modules/${encodeURIComponent(module)}/configuration`)).catch(() => null);
        (found[module] ??= {})[name] = data;
      })));
    return found;
  }, [names.join(), JSON.stringify(modules.value.map((each) => each.places.map((p) => [p.row.signature, p.reachable])))]);
  const general = [
    { label: t("compare.version"), of: (/** @type {any} */ n) => n.version },
    { label: t("cluster.title"), of: (/** @type {any} */ n) => n.cluster.slice(0, 12) || t("info.none") },
    { label: t("compare.clock"), of: (/** @type {any} */ n) => (Math.abs(n.ahead) > 0 ? `${n.ahead > 0 ? "+" : ""}${n.ahead} s` : t("compare.same")), same: (/** @type {string[]} */ v) => v.every((each) => each === v[0]) },
  ];
  const row = (/** @type {string} */ label, /** @type {(string | null)[]} */ values, /** @type {any} */ extra = null) => {
    const known = values.filter((each) => each !== null && each !== "");
    const differs = new Set(known).size > 1;
    return { label, values, differs, extra };
  };
  const rows = [
    ...general.map((each) => row(each.label, names.map((name) => (nodes.value[name]?.reachable ? each.of(nodes.value[name]) : null)))),
    ...modules.value.map((each) => row(t("compare.module", { module: each.module }),
      names.map((name) => (nodes.value[name]?.reachable ? nodes.value[name].modules[each.module]?.signature.slice(0, 12) ?? "" : null)), each)),
  ].sort((a, b) => Number(b.differs) - Number(a.differs));
  return html`<section class="page"><div class="page-head"><div><h1>${t("compare.title")}</h1>
      <p class="muted">${rows.some((each) => each.differs) ? t("compare.differs", { count: rows.filter((each) => each.differs).length }) : t("compare.equal")}</p></div></div>
    <div class="scroll" tabindex="0"><table class="grid"><thead><tr><th>${t("compare.what")}</th>${names.map((name) => html`<th>${name}</th>`)}<th><span class="hidden">${t("table.actions")}</span></th></tr></thead>
    <tbody>${rows.map((each) => html`<tr class=${each.differs ? "differs" : ""}><th scope="row">${each.differs && html`<span class="red"><${Icon} shape="warn" title=${t("compare.differ")} /></span> `}${each.label}</th>
      ${each.values.map((value) => html`<td><code class=${each.differs ? "red" : ""}>${value ?? html`<span class="muted">${t("state.unreachable")}</span>`}</code></td>`)}
      <td>${each.extra && each.differs && level.value >= 3 && html`<${Button} kind="small" onClick=${() => void give(each.extra.module, each.extra.places.map((/** @type {any} */ p) => p.node))}>${t("compare.give", { node: me.value })}<//>`}</td></tr>`)}</tbody></table></div>
    ${level.value >= 2 && html`<h2>${t("compare.applied")}</h2><${Panel} state=${state}>${(/** @type {any} */ data) => html`<div class="scroll" tabindex="0"><table class="grid"><thead><tr><th>${t("table.module")}</th>
      ${names.map((name) => html`<th>${name}</th>`)}</tr></thead><tbody>${Object.entries(data).map(([module, by]) => html`<tr><th scope="row">${module}</th>
      ${names.map((name) => {
        const one = /** @type {any} */ (by)[name];
        return html`<td>${one && html`${when(one.active.date)}${one.modified && html`<br /><span class="magenta">${t("compare.modified")}</span>`}`}</td>`;
      })}</tr>`)}</tbody></table></div>`}<//>`}</section>`;
}

/** The module as it is here, to all its servers. @param {string} module @param {string[]} places */
function give(module, places) {
  return run(t("compare.give", { node: me.value }), places.join(", "), `safekit -E ${module}`, async () => {
    const { results } = await ask("POST", `modules/${encodeURIComponent(module)}/deploy`, { nodes: places });
    const bad = results.filter((/** @type {any} */ each) => each.status !== 0);
    return { status: bad.length ? 1 : 0, output: results.map((/** @type {any} */ each) => `${each.node}: ${each.output}`).join("\n") };
  });
}
