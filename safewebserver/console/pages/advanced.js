// Advanced Configuration: files, earlier configurations and the commands of each server (guide 3.8).
import { html, useRef, useState } from "../lib.js";
import { bytes, t, when } from "../i18n.js";
import { ask, at, get, query } from "../api.js";
import { Button, confirm, decoded, Dialog, encoded, Icon, Menu, openDialog, Panel, save, Tabs, useLoad } from "../parts.js";
import { command, run } from "../tasks.js";
import { nodeMenu } from "../actions.js";
import { go, route } from "../route.js";
import { me, modules, nodes, order } from "../store.js";
import { CommandTable, joined } from "./detail.js";
import { choose, edit, uninstall } from "./configuration.js";
import { FileEditor } from "./editor.js";
import { openWizard } from "./wizard.js";
import { Control } from "./control.js";
import { signal } from "../lib.js";

/** What was copied: a file or a directory of a server. */
const clipboard = signal(/** @type {{node: string, path: string} | null} */ (null));
/** Grows with each change of files, so that what shows them looks again. */
const turn = signal(0);

export function Advanced() {
  const node = route.value.parts[1] ?? order.value[0] ?? me.value;
  const module = route.value.parts[2] ?? "";
  return html`<section class="page"><${Tabs} label=${t("advanced.nodes")} value=${node} change=${(/** @type {string} */ key) => go(["advanced", key])}
      tabs=${order.value.map((name) => ({ key: name, label: html`<span class=${nodes.value[name]?.reachable ? "" : "grey"}>${name}</span>` }))} />
    ${!nodes.value[node]?.reachable ? html`<p class="note warn">${t("panel.unreachable")} ${nodes.value[node]?.problem?.text ?? ""}</p>`
      : html`<div class="two" key=${node}><div><${Installed} node=${node} module=${module} /><${Repository} node=${node} /></div>
        <div>${module && html`<${Module} node=${node} module=${module} />`}<${ServerCommands} node=${node} /></div></div>`}</section>`;
}

/** Do something with files, then look again. @param {string} label @param {string} node @param {string} words @param {() => Promise<any>} work */
function change(label, node, words, work) {
  return run(label, node, words, async () => {
    await work();
    turn.value += 1;
    return { status: 0, output: "" };
  });
}

/** @param {any} props */
function Installed({ node, module }) {
  const names = Object.keys(nodes.value[node].modules).sort();
  return html`<h2>${t("advanced.installed")}</h2>${!names.length && html`<p class="muted">${t("empty.modules")}</p>`}<ul class="tree">${names.map((name) => html`<${ModuleRow} key=${name} node=${node} name=${name} selected=${name === module} />`)}</ul>`;
}

/** @param {any} props */
function ModuleRow({ node, name, selected }) {
  const [open, setOpen] = useState(selected);
  const state = useLoad(() => get(at(me.value, node, `modules/${encodeURIComponent(name)}/configuration`)), [node, name, turn.value, nodes.value[node].modules[name]?.signature]);
  const modified = state.data?.modified;
  const place = modules.value.find((each) => each.module === name)?.places.find((each) => each.node === node);
  const check = () => void command(t("file.check"), node, ["confcheck", "-m", name]);
  const items = [
    { key: "apply", label: t("file.apply"), action: () => openWizard({ module: name, source: node, fresh: false, advanced: true }) },
    { key: "check", label: t("file.check"), action: check }, { key: "edit", label: t("conf.edit"), action: () => edit(name) },
    { key: "save-to", label: t("file.savetemplate"), action: () => void change(t("file.savetemplate"), node, name, () => ask("POST", at(me.value, node, "files"), { op: "copy", from: `modules/${name}`, to: `templates/${name}` })) },
    { key: "uninstall", label: t("conf.uninstall"), action: () => uninstall(name) }, ...(place ? nodeMenu(name, place) : []),
  ];
  return html`<li data-module=${name}><div class="tree-row"><button type="button" aria-expanded=${open} onClick=${() => { setOpen(!open); go(["advanced", node, name]); }}>
      <span class=${modified ? "icon-purple" : "icon-blue"} data-modified=${String(Boolean(modified))}><${Icon} shape="box" title=${modified ? t("advanced.modified") : t("advanced.applied")} /></span><b>${name}</b>${modified && html`<small class="muted">${t("advanced.modified")}</small>`}</button>
      <${Menu} label=${t("file.menu", { name })} items=${items} /></div>
    ${open && html`<${Folder} node=${node} path=${`modules/${name}`} />`}</li>`;
}

/** What is in a directory. @param {{node: string, path: string}} props */
function Folder({ node, path }) {
  const state = useLoad(() => get(at(me.value, node, `files${query({ path })}`)), [node, path, turn.value]);
  return html`<${Panel} state=${state} empty=${(/** @type {any} */ d) => !d.entries.length} nothing=${html`<small class="muted">${t("file.none")}</small>`}>${(/** @type {any} */ data) => html`<ul class="tree">${data.entries.map((/** @type {any} */ each) => html`<${Entry} key=${each.name} node=${node} path=${`${path}/${each.name}`} entry=${each} />`)}</ul>`}<//>`;
}

/** Ask for a name. @param {string} title @param {string} first @param {(name: string) => void} done */
function name(title, first, done) {
  openDialog((close) => html`<${Name} ...${{ title, first, done, close }} />`);
}

/** @param {any} props */
function Name({ title, first, done, close }) {
  const [text, setText] = useState(first);
  const good = /^[^/\0.][^/\0]*$/.test(text);
  return html`<${Dialog} title=${title} close=${close} actions=${html`<${Button} onClick=${close}>${t("cancel")}<//><${Button} kind="primary" disabled=${!good} data-key="confirm" onClick=${() => { close(); done(text); }}>${t("confirm")}<//>`}>
    <label class="field">${t("file.name")}<input name="file" value=${text} onInput=${(/** @type {any} */ e) => setText(e.target.value)} onKeyDown=${(/** @type {KeyboardEvent} */ e) => { if (e.key === "Enter" && good) { close(); done(text); } }} /></label><//>`;
}

/** The menu of a file or a directory. @param {string} node @param {string} path @param {{directory: boolean}} entry @returns {any[]} */
function fileMenu(node, path, entry) {
  const folder = path.slice(0, path.lastIndexOf("/")), own = path.slice(path.lastIndexOf("/") + 1);
  const files = (/** @type {any} */ body) => ask("POST", at(me.value, node, "files"), body);
  const into = entry.directory ? path : folder;
  const template = path.startsWith("templates/");
  const safe = !entry.directory && own.endsWith(".safe");
  return [
    !entry.directory && !safe && { key: "open", label: t("file.open"), action: () => openFile(node, path) },
    safe && template && path.split("/").length === 3 && { key: "configure", label: t("conf.edit"), action: () => choose(node, path.split("/")[1], own.slice(0, -5)) },
    entry.directory && template && path.split("/").length >= 2 && { key: "apply", label: t("file.apply"), action: () => void applyFolder(node, path) },
    { key: "copy", label: t("file.copy"), action: () => { clipboard.value = { node, path }; } },
    clipboard.value && { key: "paste", label: t("file.paste"), why: clipboard.value.node !== node ? t("file.other") : "", action: () => {
      const from = /** @type {any} */ (clipboard.value).path;
      const base = from.slice(from.lastIndexOf("/") + 1);
      const to = from === `${into}/${base}` ? `${into}/copy_of_${base}` : `${into}/${base}`;
      void change(t("file.paste"), node, to, () => files({ op: "copy", from, to }));
    } },
    { key: "rename", label: t("file.rename"), action: () => name(t("file.rename"), own, (to) => void change(t("file.rename"), node, to, () => files({ op: "move", from: path, to: `${folder}/${to}` }))) },
    { key: "delete", label: t("file.delete"), kind: "red", action: () => confirm({ title: t("file.delete.title", { name: own }), text: t("file.delete.text", { name: own, node }), yes: t("file.delete"), kind: "danger",
      action: () => void change(t("file.delete"), node, path, () => ask("DELETE", at(me.value, node, `file${query({ path })}`))) }) },
    entry.directory && { key: "folder", label: t("file.folder"), action: () => name(t("file.folder"), "", (to) => void change(t("file.folder"), node, to, () => files({ op: "mkdir", to: `${path}/${to}` }))) },
    entry.directory && template && { key: "pack", label: t("file.pack"), action: () => void change(t("file.pack"), node, `${path}.safe`, () => files({ op: "pack", from: path, to: `${path}.safe` })) },
    safe && { key: "unpack", label: t("file.unpack"), action: () => void change(t("file.unpack"), node, path, () => files({ op: "unpack", from: path, to: path.slice(0, -5) })) },
    entry.directory && { key: "load", label: t("file.load"), action: () => load(node, path) },
    !entry.directory && { key: "save", label: t("file.save"), action: () => void change(t("file.save"), node, path, async () => {
      const data = await get(at(me.value, node, `file${query({ path })}`));
      save(own, data.text ?? decoded(data.base64));
    }) },
  ].filter(Boolean);
}

/** @param {string} node @param {string} path */
function openFile(node, path) {
  openDialog((close) => html`<${FileEditor} node=${node} path=${path} close=${close} saved=${() => { turn.value += 1; }} />`);
}

/** An unpacked module of Application_Modules becomes an installed one, then its wizard opens. @param {string} node @param {string} path */
async function applyFolder(node, path) {
  const module = path.slice(path.lastIndexOf("/") + 1), packed = `${path}.safe`;
  const files = at(me.value, node, "files");
  const there = await get(at(me.value, node, `files${query({ path: path.slice(0, path.lastIndexOf("/")) })}`));
  if (!there.entries.some((/** @type {any} */ each) => each.name === `${module}.safe`)) {
    const done = await change(t("file.pack"), node, packed, () => ask("POST", files, { op: "pack", from: path, to: packed }));
    if (done.status !== 0) return;
  }
  const words = ["module", "install", "-m", module, packed.replace(/^templates\//, "")];
  const done = await command(t("conf.install"), node, words);
  if (done.status === 0) openWizard({ module, source: node, fresh: true, advanced: true });
}

/** A file from the administrator's own disk. @param {string} node @param {string} path */
function load(node, path) {
  const input = document.createElement("input");
  input.type = "file";
  input.onchange = async () => {
    const file = input.files?.[0];
    if (!file) return;
    const base64 = await encoded(file);
    void change(t("file.load"), node, file.name, () => ask("PUT", at(me.value, node, `file${query({ path: `${path}/${file.name}` })}`), { base64 }));
  };
  input.click();
}

/** @param {any} props */
function Entry({ node, path, entry }) {
  const [open, setOpen] = useState(false);
  const shape = entry.directory ? "folder" : entry.name.endsWith(".safe") ? "box" : "file";
  const act = () => (entry.directory ? setOpen(!open) : entry.name.endsWith(".safe") ? undefined : openFile(node, path));
  const menu = useRef(/** @type {any} */ (null));
  return html`<li data-path=${path}><div class="tree-row" ref=${menu} onContextMenu=${(/** @type {MouseEvent} */ e) => { e.preventDefault(); menu.current.querySelector("[aria-haspopup]")?.click(); }}>
      <button type="button" aria-expanded=${entry.directory ? open : null} onClick=${act}><${Icon} shape=${shape} />${entry.name}
        ${!entry.directory && html`<small class="muted" title=${when(entry.modified)}>${bytes(entry.size)}</small>`}</button><${Menu} label=${t("file.menu", { name: entry.name })} items=${fileMenu(node, path, entry)} /></div>
    ${open && html`<${Folder} node=${node} path=${path} />`}</li>`;
}

/** @param {any} props */
function Repository({ node }) {
  return html`<h2 class="row"><span>Application_Modules</span> <${Menu} label=${t("file.menu", { name: "Application_Modules" })} items=${[
    { key: "load", label: t("file.load"), action: () => load(node, "templates") },
    { key: "folder", label: t("file.folder"), action: () => name(t("file.folder"), "", (to) => void change(t("file.folder"), node, to, () => ask("POST", at(me.value, node, "files"), { op: "mkdir", to: `templates/${to}` }))) },
    clipboard.value && { key: "paste", label: t("file.paste"), why: clipboard.value.node !== node ? t("file.other") : "", action: () => {
      const from = /** @type {any} */ (clipboard.value).path;
      void change(t("file.paste"), node, from, () => ask("POST", at(me.value, node, "files"), { op: "copy", from, to: `templates/${from.slice(from.lastIndexOf("/") + 1)}` }));
    } }]} /></h2><${Folder} node=${node} path="templates" />`;
}

/** @param {any} props */
function Module({ node, module }) {
  const entry = modules.value.find((each) => each.module === module);
  const place = entry?.places.find((each) => each.node === node);
  const state = useLoad(() => get(at(me.value, node, `modules/${encodeURIComponent(module)}/configurations`)), [node, module, place?.row.signature]);
  const restore = (/** @type {any} */ each) => confirm({
    title: t("restore.title", { name: each.applied }), text: t("restore.text", { module, node }), yes: t("restore.go"),
    action: async () => {
      const done = await command(t("restore.go"), node, ["module", "restore", "-m", module, String(each.number)]);
      turn.value += 1;
      if (done.status === 0) openWizard({ module, source: node, fresh: false });
    },
  });
  return html`<h2>${t("advanced.control", { module })}</h2>
    ${entry && place && html`<p>${entry.places.map((each) => html`<${PlaceLine} key=${each.node} place=${each} module=${module} />`)}</p>`}
    <h2>${t("advanced.last")}</h2><${Panel} state=${state} empty=${(/** @type {any} */ d) => !d.configurations.length} nothing=${t("advanced.nolast")}>${(/** @type {any} */ data) => html`<ul class="tree">${data.configurations.map((/** @type {any} */ each) => html`<li data-last=${each.number}><div class="tree-row"><button type="button" onClick=${() => compare(node, module, each)}><${Icon} shape="box" />${each.name}
      ${each.signature === place?.row.signature && html`<small class="green">${t("advanced.active")}</small>`}</button><${Menu} label=${t("file.menu", { name: each.name })} items=${[
        { key: "restore", label: t("restore.go"), action: () => restore(each) }, { key: "compare", label: t("advanced.compare"), action: () => compare(node, module, each) }]} /></div></li>`)}</ul>`}<//>`;
}

/** @param {any} props */
function PlaceLine({ place, module }) {
  return html`<a class="inline" href=${`#/control/${encodeURIComponent(module)}/${encodeURIComponent(place.node)}`}>${place.node} <b class=${place.row.color}>${place.row.configured ? place.row.state : t("state.unconfigured")}</b></a> `;
}

/** An earlier configuration beside the present one. @param {string} node @param {string} module @param {any} each */
function compare(node, module, each) {
  openDialog((close) => html`<${Difference} ...${{ node, module, each, close }} />`);
}

/** Lines of two texts that differ, by the longest common part. @param {string} a @param {string} b */
export function lineDiff(a, b) {
  const x = a.split("\n"), y = b.split("\n");
  const table = Array.from({ length: x.length + 1 }, () => new Uint16Array(y.length + 1));
  for (let i = x.length - 1; i >= 0; i--) for (let j = y.length - 1; j >= 0; j--) table[i][j] = x[i] === y[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
  const out = [];
  let i = 0, j = 0;
  while (i < x.length || j < y.length) {
    if (i < x.length && j < y.length && x[i] === y[j]) { out.push({ sign: " ", text: x[i] }); i++; j++; }
    else if (j < y.length && (i >= x.length || table[i][j + 1] >= table[i + 1][j])) out.push({ sign: "+", text: y[j++] });
    else out.push({ sign: "-", text: x[i++] });
  }
  return out;
}

/** @param {any} props */
function Difference({ node, module, each, close }) {
  const base = `modules/${encodeURIComponent(module)}`;
  const state = useLoad(() => Promise.all([get(at(me.value, node, `${base}/configurations/${each.number}`)), get(at(me.value, node, `${base}/configuration`))]), [each.number]);
  return html`<${Dialog} title=${t("advanced.difference", { name: each.applied })} close=${close} wide=${true}><${Panel} state=${state}>${(/** @type {any} */ [old, now]) => {
    const lines = lineDiff(old.userconfig, now.current.userconfig);
    return lines.every((line) => line.sign === " ") ? html`<p class="note good">${t("advanced.same")}</p>` : html`<pre class="output">${lines.map((line) => html`<div class=${line.sign === "+" ? "green" : line.sign === "-" ? "red" : "muted"}>${line.sign} ${line.text}</div>`)}</pre>`;
  }}<//><//>`;
}

/** @param {any} props */
function ServerCommands({ node }) {
  const state = useLoad(() => get(at(me.value, node, "commands?lines=100")), [node, turn.value], 5000);
  return html`<h2>${t("advanced.commands", { node })}</h2><${Panel} state=${state} empty=${(/** @type {any} */ d) => !d.entries.length} nothing=${t("commands.none")}>${(/** @type {any} */ data) => html`<div class="log short"><${CommandTable} rows=${joined(data.entries)} /></div>`}<//>`;
}
