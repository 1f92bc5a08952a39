// Configuration: install a module from a template, change one that is installed (guide 3.4).
import { html, useState } from "../lib.js";
import { t } from "../i18n.js";
import { ask, at, get } from "../api.js";
import { Button, confirm, Dialog, Icon, Kind, Menu, openDialog, Panel, State, useLoad } from "../parts.js";
import { globalMenu } from "../actions.js";
import { command } from "../tasks.js";
import { me, modules, nodes, order } from "../store.js";
import { age } from "./overview.js";
import { openWizard } from "./wizard.js";

const KINDS = ["generic", "demo", "other", "backup"];
const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$/;

export function Configuration() {
  return html`<section class="page"><details class="fold" open><summary><h1>${t("conf.install")}</h1></summary><${Templates} /></details>
    <details class="fold" open><summary><h1>${t("conf.installed")}</h1></summary><${Installed} /></details></section>`;
}

function Templates() {
  const state = useLoad(() => Promise.all(order.value.map((node) =>
    get(at(me.value, node, "templates")).then((data) => ({ node, kinds: data.kinds }), (error) => ({ node, error: String(error.message) })))), [order.value.join()]);
  return html`<${Panel} state=${state}>${(/** @type {any} */ all) => all.map((/** @type {any} */ one) => html`<h2>${one.node}</h2>
    ${one.error ? html`<p class="note warn">${one.error}</p>` : html`<dl class="facts-list" data-node=${one.node}>${KINDS.filter((kind) => one.kinds[kind]?.length).map((kind) => html`<dt>${t(`kind.${kind}`)}</dt>
      <dd><ul class="picker">${one.kinds[kind].map((/** @type {string} */ name) => html`<li><button type="button" data-template=${`${kind}/${name}`} onClick=${() => choose(one.node, kind, name)}>${name}.safe</button></li>`)}</ul></dd>`)}</dl>`}`)}<//>`;
}

/** Ask for the name of the new module first. @param {string} node @param {string} kind @param {string} template */
export function choose(node, kind, template) {
  openDialog((close) => html`<${NewModule} ...${{ node, kind, template, close }} />`);
}

/** @param {any} props */
function NewModule({ node, kind, template, close }) {
  const [name, setName] = useState(template);
  const [busy, setBusy] = useState(false);
  const taken = modules.value.some((each) => each.module === name);
  const wrong = !NAME.test(name) || name === "lastconfig" ? t("name.wrong") : taken ? t("name.taken", { name }) : "";
  const go = async () => {
    setBusy(true);
    const result = await command(t("conf.install"), node, ["module", "install", "-m", name, `${kind}/${template}.safe`]);
    setBusy(false);
    close();
    if (result.status === 0) openWizard({ module: name, source: node, fresh: true });
  };
  return html`<${Dialog} title=${t("conf.new", { template })} close=${close} actions=${html`<${Button} onClick=${close}>${t("cancel")}<//>
      <${Button} kind="primary" busy=${busy} disabled=${!!wrong} data-key="confirm" onClick=${go}>${t("confirm")}<//>`}>
    <label class="field">${t("conf.name")}<input name="module" value=${name} aria-invalid=${!!wrong} autocomplete="off" spellcheck=${false} onInput=${(/** @type {any} */ e) => setName(e.target.value.trim())}
      onKeyDown=${(/** @type {KeyboardEvent} */ e) => e.key === "Enter" && !wrong && !busy && void go()} /></label>
    ${wrong && html`<p class="note bad">${wrong}</p>`}<p class="muted">${t("conf.name.help", { node })}</p><//>`;
}

function Installed() {
  if (!modules.value.length) return html`<div class="empty">${t("empty.modules")}</div>`;
  return html`<div class="scroll" tabindex="0"><table class="grid"><tbody>${modules.value.map((entry) => html`<tr key=${entry.module} data-module=${entry.module}><th scope="row">${entry.module}</th><td><${Kind} kind=${entry.verdict.kind} /></td>
    ${order.value.map((node) => {
      const place = entry.places.find((each) => each.node === node);
      return html`<td key=${node}>${place && html`<span class="muted">${node}</span>${" "}<${State} row=${place.row} reachable=${place.reachable} age=${age(place)} />`}</td>`;
    })}
    <td><${Menu} label=${t("menu.module", { module: entry.module })} items=${[
      { key: "edit", label: t("conf.edit"), action: () => edit(entry.module) }, ...globalMenu(entry.module),
      { key: "uninstall", label: t("conf.uninstall"), action: () => uninstall(entry.module) },
    ]} /></td></tr>`)}</tbody></table></div>`;
}

/** Choose the server whose files are edited. @param {string} module */
export function edit(module) {
  openDialog((close) => html`<${Source} module=${module} close=${close} />`);
}

/** @param {any} props */
function Source({ module, close }) {
  const places = modules.value.find((each) => each.module === module)?.places.filter((each) => each.reachable) ?? [];
  const [node, setNode] = useState(places[0]?.node ?? me.value);
  return html`<${Dialog} title=${t("conf.source", { module })} close=${close} actions=${html`<${Button} onClick=${close}>${t("cancel")}<//>
      <${Button} kind="primary" data-key="confirm" onClick=${() => { close(); openWizard({ module, source: node, fresh: false }); }}>${t("confirm")}<//>`}>
    <p>${t("conf.source.text")}</p>${places.map((each) => html`<p><label class="check"><input type="radio" name="source" value=${each.node} checked=${node === each.node} onChange=${() => setNode(each.node)} /> ${each.node}</label></p>`)}<//>`;
}

/** @param {string} module */
export function uninstall(module) {
  openDialog((close) => html`<${Uninstall} module=${module} close=${close} />`);
}

/** Whether nothing of a module runs any more: after STOP its processes need a moment. @param {import("../verdict.js").Row} row */
const ended = (row) => row.state === "STOP" && !row.running;

/** @param {any} props */
function Uninstall({ module, close }) {
  const places = modules.value.find((each) => each.module === module)?.places ?? [];
  const [chosen, setChosen] = useState(/** @type {string[]} */ (places.filter((each) => ended(each.row) && each.reachable).map((each) => each.node)));
  const go = () => {
    close();
    confirm({
      title: t("uninstall.title", { module }), text: t("uninstall.text", { module, nodes: chosen.join(", ") }), yes: t("conf.uninstall"), kind: "danger",
      action: () => chosen.forEach((/** @type {string} */ node) => void command(t("conf.uninstall"), node, ["module", "uninstall", "-m", module])),
    });
  };
  return html`<${Dialog} title=${t("uninstall.title", { module })} close=${close} actions=${html`<${Button} onClick=${close}>${t("cancel")}<//>
      <${Button} kind="danger" disabled=${!chosen.length} data-key="confirm" onClick=${go}>${t("conf.uninstall")}<//>`}>
    ${places.map((each) => html`<p><label class="check"><input type="checkbox" name=${each.node} checked=${chosen.includes(each.node)} disabled=${!ended(each.row) || !each.reachable}
      onChange=${(/** @type {any} */ e) => setChosen(e.target.checked ? [...chosen, each.node] : chosen.filter((/** @type {string} */ n) => n !== each.node))} /> ${each.node}</label>
      ${!ended(each.row) && html` <span class="muted">${t("uninstall.running")}</span>`}</p>`)}<p class="muted">${t("uninstall.backup")}</p><//>`;
}
