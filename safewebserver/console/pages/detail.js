// The tabs of a module on a server.
import { html, useEffect, useRef, useState } from "../lib.js";
import { bytes, has, language, span, t, when } from "../i18n.js";
import { ask, at, get, query } from "../api.js";
import { Button, Panel, save, State, useLoad } from "../parts.js";
import { command } from "../tasks.js";
import { level, me, now } from "../store.js";
import { Reintegration } from "./overview.js";

/** @typedef {{module: string, node: string, place: import("../verdict.js").Place, entry: any}} Props */

/** @param {Props} props @param {string} tail */
const path = (props, tail) => at(me.value, props.node, `modules/${encodeURIComponent(props.module)}/${tail}`);
const logLanguage = () => (language.value === "fr" ? "fr" : "en");

/** The name of a resource for people; the part after the class stays as it is. @param {string} name */
export function resourceLabel(name) {
  if (has(`resource.${name}`)) return t(`resource.${name}`);
  const remote = name.startsWith("remote.");
  const plain = remote ? name.slice(7) : name;
  const [kind, ...rest] = plain.split(".");
  const label = has(`resource.${plain}`) ? t(`resource.${plain}`)
    : has(`class.${kind}`) ? `${t(`class.${kind}`)} ${rest.join(".")}` : plain;
  return remote ? t("resource.remote", { label }) : label;
}

const HIDDEN = /^state\.(color|remotecolor)$/;
/** Resources of which `up` is the bad news. */
const BAD = /^(remote\.)?rfs\.(degraded|inconsistent|remote_degraded)$/;
/** What checkers and heartbeats say; of all others up and down are no verdict. */
const JUDGED = /^(remote\.)?(heartbeat|intf|ip|tcp|ping|custom|module|splitbrain|proc|file)\.|^(remote\.)?rfs\.uptodate$/;

/** @param {string} name @param {string} value */
function tone(name, value) {
  if (BAD.test(name)) return value === "up" ? "red" : "";
  if (!JUDGED.test(name)) return "";
  return { up: "green", down: "red" }[value] ?? "";
}

/** The order of reading: the states, what is judged, the rest, then the other server. @param {string} name */
function place(name) {
  if (name === "state.local" || name === "state.remote") return 0;
  if (name.startsWith("remote.")) return 4;
  return JUDGED.test(name) || BAD.test(name) ? 1 : name.startsWith("state.") ? 3 : 2;
}

/** @param {Props} props */
export function Resources(props) {
  const [bad, setBad] = useState(false);
  const [text, setText] = useState("");
  const state = useLoad(() => get(path(props, "resources")), [props.module, props.node, props.place.row.stamp]);
  return html`<div class="tools"><label class="check"><input type="checkbox" checked=${bad}
      onChange=${(/** @type {any} */ e) => setBad(e.target.checked)} /> ${t("resources.bad")}</label>
      <input type="search" placeholder=${t("filter")} aria-label=${t("filter")} value=${text}
        onInput=${(/** @type {any} */ e) => setText(e.target.value)} /></div>
    <${Panel} state=${state} empty=${(/** @type {any} */ data) => !Object.keys(data.resources).length} nothing=${t("resources.none")}>
    ${(/** @type {any} */ data) => {
      const rows = Object.entries(data.resources).filter(([name, r]) => !HIDDEN.test(name)
        && (!bad || tone(name, /** @type {any} */ (r).value) === "red") && `${name} ${resourceLabel(name)}`.toLowerCase().includes(text.toLowerCase()))
        .sort(([a], [b]) => place(a) - place(b) || a.localeCompare(b));
      return html`<div class="scroll" tabindex="0"><table class="grid resources"><thead><tr><th>${t("resources.name")}</th><th>${t("resources.value")}</th>
        <th>${t("resources.since")}</th><th>${t("resources.setter")}</th></tr></thead><tbody>
        ${rows.map(([name, value]) => {
          const r = /** @type {{value: string, since: number, setter: string}} */ (value);
          return html`<tr key=${name} data-resource=${name}><th scope="row"><span title=${name} class="hint">${resourceLabel(name)}</span></th>
            <td><span class="value ${tone(name, r.value)}">${r.value}</span></td>
            <td class="nowrap" title=${when(r.since)}>${r.since > 1 ? span(now.value - r.since) : ""}</td><td class="muted">${r.setter}</td></tr>`;
        })}</tbody></table></div>`;
    }}<//>`;
}

/** Lines that stay at their end while somebody does not scroll up. @param {{children: any, mark: string}} props */
function Lines({ children, mark }) {
  const box = useRef(/** @type {any} */ (null));
  const end = useRef(true);
  useEffect(() => {
    if (end.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [mark]);
  return html`<div class="log" ref=${box} tabindex="0" role="log" aria-live="off" onScroll=${() => {
    end.current = box.current.scrollTop + box.current.clientHeight > box.current.scrollHeight - 20;
  }}>${children}</div>`;
}

/** @param {Props} props */
export function ModuleLog(props) {
  const [verbose, setVerbose] = useState(false);
  const [follow, setFollow] = useState(true);
  const [both, setBoth] = useState(false);
  const [text, setText] = useState("");
  const others = props.entry.places.map((/** @type {any} */ each) => each.node).filter((/** @type {string} */ name) => name !== props.node);
  const one = (/** @type {string} */ node) =>
    get(at(me.value, node, `modules/${encodeURIComponent(props.module)}/log${query({ level: verbose ? "A" : "E", lang: logLanguage(), lines: 500 })}`));
  const state = useLoad(async () => {
    const all = await Promise.all([props.node, ...(both ? others : [])].map(one));
    return { lines: all.flatMap((each) => each.lines).sort((a, b) => (a.date < b.date ? -1 : a.date > b.date ? 1 : 0)) };
  }, [props.module, props.node, verbose, both, language.value], follow ? 2000 : 0);
  return html`<div class="tools"><label class="check"><input type="checkbox" checked=${verbose} data-key="verbose"
      onChange=${(/** @type {any} */ e) => setVerbose(e.target.checked)} /> ${t("log.verbose")}</label>
      <label class="check"><input type="checkbox" checked=${follow} onChange=${(/** @type {any} */ e) => setFollow(e.target.checked)} /> ${t("log.follow")}</label>
      ${others.length > 0 && html`<label class="check"><input type="checkbox" checked=${both} onChange=${(/** @type {any} */ e) => setBoth(e.target.checked)} /> ${t("log.both")}</label>`}
      <input type="search" placeholder=${t("filter")} aria-label=${t("filter")} value=${text} onInput=${(/** @type {any} */ e) => setText(e.target.value)} />
      <span class="push"></span><${Button} kind="small" onClick=${state.again}>${t("refresh")}<//>
      <${Button} kind="small" data-key="save" onClick=${() => state.data && save(`${props.module}_${props.node}.log`,
        state.data.lines.map((/** @type {any} */ l) => `${l.date} | ${l.node} | ${l.process} | ${l.level} | ${l.text}`).join("\n") + "\n")}>${t("save")}<//></div>
    <${Panel} state=${state} empty=${(/** @type {any} */ data) => !data.lines.length} nothing=${t("log.none")}>${(/** @type {any} */ data) => {
      const lines = data.lines.filter((/** @type {any} */ l) => `${l.process} ${l.text}`.toLowerCase().includes(text.toLowerCase()));
      return html`<${Lines} mark=${`${lines.length} ${lines.at(-1)?.date}`}><table class="loglines"><tbody>${lines.map((/** @type {any} */ line, /** @type {number} */ i) => html`
        <tr key=${i} class="level-${line.level}"><td class="nowrap muted" title=${line.date}>${when(Date.parse(line.date) / 1000)}</td>
        ${both && html`<td>${line.node}</td>`}<td class="muted">${line.process}</td>${verbose && html`<td title=${t(`level.${line.level}`)}>${line.level}</td>`}
        <td title=${line.code}>${line.text}</td></tr>`)}</tbody></table><//>`;
    }}<//>`;
}

/** @param {Props} props */
export function AppLog(props) {
  const state = useLoad(() => get(path(props, "userlog?lines=500")), [props.module, props.node], 3000);
  return html`<div class="tools"><span class="push"></span><${Button} kind="small" onClick=${state.again}>${t("refresh")}<//>
      <${Button} kind="small" data-key="save" onClick=${() => state.data && save(`${props.module}_${props.node}.ulog`, `${state.data.lines.join("\n")}\n`)}>${t("save")}<//></div>
    <${Panel} state=${state} empty=${(/** @type {any} */ data) => !data.lines.length} nothing=${t("applog.none")}>${(/** @type {any} */ data) => html`
      <${Lines} mark=${`${data.lines.length} ${data.lines.at(-1)}`}><pre>${data.lines.join("\n")}</pre><//>`}<//>`;
}

/** The commands of a server as one line each: begun and ended together. @param {any[]} entries */
export function joined(entries) {
  /** @type {Map<number, any>} */
  const open = new Map();
  const rows = [];
  for (const entry of entries) {
    if (entry.code === null) {
      const row = { ...entry, end: 0 };
      open.set(entry.pid, row);
      rows.push(row);
    } else if (open.has(entry.pid)) {
      Object.assign(open.get(entry.pid), { code: entry.code, end: entry.at });
      open.delete(entry.pid);
    } else rows.push({ ...entry, end: entry.at });
  }
  return rows.reverse();
}

/** @param {{rows: any[]}} props */
export function CommandTable({ rows }) {
  return html`<div class="scroll" tabindex="0"><table class="grid"><thead><tr><th>${t("commands.at")}</th><th>${t("commands.words")}</th>
    <th>${t("commands.result")}</th></tr></thead><tbody>${rows.map((row, i) => html`<tr key=${i}><td class="nowrap">${when(row.at)}</td>
      <td><code>safekit ${row.arguments}</code></td>
      <td class="nowrap">${row.code === null ? t("commands.running")
        : html`<span class="value ${row.code === 0 ? "green" : "red"}">${row.code === 0 ? t("task.done") : t("task.failed", { status: row.code })}</span>
          ${row.end > row.at && html` <span class="muted">${(row.end - row.at).toFixed(1)} s</span>`}`}</td></tr>`)}</tbody></table></div>`;
}

/** @param {Props} props */
export function Commands(props) {
  const state = useLoad(() => get(at(me.value, props.node, `commands${query({ module: props.module, lines: 300 })}`)), [props.module, props.node], 5000);
  return html`<div class="tools"><span class="muted">${t("commands.about", { module: props.module })}</span><span class="push"></span>
      <${Button} kind="small" onClick=${state.again}>${t("refresh")}<//>
      <${Button} kind="small" data-key="save" onClick=${() => state.data && save(`commands_${props.node}.log`,
        state.data.entries.map((/** @type {any} */ e) => `${new Date(e.at * 1000).toISOString()} | ${e.pid} | ${e.code ?? "running"} | ${e.arguments}`).join("\n") + "\n")}>${t("save")}<//></div>
    <${Panel} state=${state} empty=${(/** @type {any} */ data) => !data.entries.length} nothing=${t("commands.none")}>
      ${(/** @type {any} */ data) => html`<${CommandTable} rows=${joined(data.entries)} />`}<//>`;
}

/** @param {Props} props */
export function Information(props) {
  const said = useLoad(() => ask("POST", at(me.value, props.node, "command"), { arguments: ["level"] }), [props.node]);
  const conf = useLoad(() => get(path(props, "configuration")), [props.module, props.node, props.place.row.signature]);
  return html`<h2>${t("info.server")}</h2><${Panel} state=${said}>${(/** @type {any} */ data) => html`<pre class="output" data-key="level">${data.output}</pre>`}<//>
    <h2>${t("info.configuration")}</h2>
    <${Panel} state=${conf}>${(/** @type {any} */ data) => html`<dl class="facts-list">
      <dt>${t("info.signature")}</dt><dd><code>${data.active.signature || t("info.none")}</code></dd>
      <dt>${t("info.date")}</dt><dd>${when(data.active.date)}</dd>
      ${data.modified && html`<dt></dt><dd><span class="note warn">${t("info.modified")}</span></dd>`}</dl>
      <pre class="output xml">${data.active.userconfig || t("info.none")}</pre>`}<//>`;
}

/** @param {Props} props */
export function Why(props) {
  const state = useLoad(() => get(path(props, "why?lines=40")), [props.module, props.node, props.place.row.stamp]);
  return html`<${Panel} state=${state} empty=${(/** @type {any} */ data) => !data.decisions.length} nothing=${t("why.none")}>
    ${(/** @type {any} */ data) => html`<ol class="why">${[...data.decisions].reverse().map((/** @type {any} */ each, /** @type {number} */ i) => html`
      <li key=${i}><div class="why-head"><time>${when(each.time)}</time> <b>${each.node}</b> <span class="action">${each.action || t("why.noaction")}</span>
        <span class="muted">${t("why.rule", { rule: each.rule })}</span></div>
        ${each.sentence ? html`<p>${each.sentence}</p>` : each.text && !each.text.startsWith(`${each.rule}: ${each.action}`) && html`<p>${each.text}</p>`}
        ${each.inputs.length > 0 && html`<table class="inputs"><tbody>${each.inputs.map((/** @type {any} */ input) => html`<tr><td><span title=${input.name} class="hint">${resourceLabel(input.name)}</span></td>
          <td><span class="value ${{ up: "green", down: "red" }[/** @type {"up"} */ (input.value)] ?? ""}">${input.value}</span></td>
          <td class="muted">${input.setter && t("why.setter", { setter: input.setter })} ${input.since > 0 ? when(input.since) : ""}</td></tr>`)}</tbody></table>`}</li>`)}</ol>`}<//>`;
}

/** What would happen: asked of the same code that decides. @param {Props} props */
export function WhatIf(props) {
  const others = props.entry.places.map((/** @type {any} */ each) => each.node);
  const [what, setWhat] = useState("down");
  const [node, setNode] = useState(props.node);
  const [resource, setResource] = useState("");
  const known = useLoad(() => get(path(props, "resources")), [props.module, props.node]);
  const names = Object.keys(known.data?.resources ?? {}).filter((name) => !/^(state|remote|usersetting|rfs_bandwidth)\./.test(name)).sort();
  const [result, setResult] = useState(/** @type {any} */ (null));
  const words = what === "down" ? ["--node-down", node] : what === "cut" ? ["--cut"]
    : ["--set", `${resource || names[0]}=${what === "up" ? "up" : "down"}`];
  const ask_ = async () => {
    setResult({ busy: true });
    try {
      const answer = await ask("POST", at(me.value, props.node, "command"), { arguments: ["simulate", "-m", props.module, ...words] });
      setResult(answer);
    } catch (error) {
      setResult({ status: 1, output: String(/** @type {any} */ (error).message) });
    }
  };
  return html`<p class="note">${t("whatif.about")}</p>
    <div class="tools form"><label class="inline">${t("whatif.if")} <select value=${what} data-key="what" onChange=${(/** @type {any} */ e) => setWhat(e.target.value)}>
        <option value="down">${t("whatif.down")}</option><option value="cut">${t("whatif.cut")}</option>
        <option value="resource">${t("whatif.resource")}</option></select></label>
      ${what === "down" && html`<label class="inline">${t("whatif.node")} <select value=${node} onChange=${(/** @type {any} */ e) => setNode(e.target.value)}>
        ${others.map((/** @type {string} */ name) => html`<option>${name}</option>`)}</select></label>`}
      ${what === "resource" && html`<label class="inline">${t("whatif.which")} <select value=${resource || names[0]} onChange=${(/** @type {any} */ e) => setResource(e.target.value)}>
        ${names.map((name) => html`<option value=${name}>${resourceLabel(name)} (${name})</option>`)}</select></label>`}
      <${Button} kind="primary" busy=${result?.busy} data-key="ask" onClick=${ask_}>${t("whatif.ask")}<//></div>
    ${result?.output !== undefined && html`<pre class="output ${result.status === 0 ? "" : "bad"}" aria-live="polite">${result.output}</pre>`}
    <p class="muted"><code>safekit simulate -m ${props.module} ${words.join(" ")}</code></p>`;
}

/** Replication of a mirror, shares of a farm. @param {Props} props */
export function Replication(props) {
  return props.place.row.mode === "farm" ? html`<${Farm} ...${props} />` : html`<${Mirror} ...${props} />`;
}

/** @param {Props} props */
function Farm(props) {
  const state = useLoad(() => get(path(props, "farm")), [props.module, props.node, props.place.row.stamp], 3000);
  return html`<${Panel} state=${state} empty=${(/** @type {any} */ data) => !data.live} nothing=${t("farm.none")}>${(/** @type {any} */ data) => {
    const s = data.status;
    return html`${(s.groups ?? []).map((/** @type {any} */ group) => html`<h2>${t("farm.group", { name: group.name })}</h2>
      <table class="grid"><tbody>${s.nodes.map((/** @type {string} */ name, /** @type {number} */ i) => html`<tr><th scope="row">${name}</th>
        <td class="wide-cell"><meter min="0" max="100" value=${group.percent[i]} aria-label=${`${name} ${group.percent[i]}%`}></meter></td><td>${group.percent[i]}%</td>
        <td class="muted">${(s.participants ?? []).includes(name) ? t("farm.takes") : (s.members ?? []).includes(name) ? t("farm.member") : t("farm.silent")}</td></tr>`)}</tbody></table>`)}`;
  }}<//>`;
}

/** @param {Props} props */
function Mirror(props) {
  const state = useLoad(() => get(path(props, "replication")), [props.module, props.node, props.place.row.stamp], 2000);
  const { row } = props.place;
  const control = level.value >= 2;
  return html`<${Panel} state=${state} empty=${(/** @type {any} */ data) => !data.live && !row.replicated.length} nothing=${t("replication.none")}>
    ${(/** @type {any} */ data) => html`
    <dl class="facts-list"><dt>${t("replication.directories")}</dt><dd>${row.replicated.join(", ") || t("info.none")}</dd>
      <dt>${t("replication.uptodate")}</dt><dd>${row.uptodate === "up" ? t("yes") : row.uptodate === "down" ? t("no") : row.uptodate || t("info.none")}</dd>
      ${data.live && html`<dt>${t("replication.role")}</dt><dd>${data.status.role ?? ""}</dd>
      <dt>${t("replication.paired")}</dt><dd>${data.status.paired ? t("yes") : t("no")}</dd>
      <dt>${t("replication.sync")}</dt><dd>${data.status.sync_point ? when(data.status.sync_point) : t("info.none")}</dd>
      ${figures(data.status.nfsbox).map(([name, value]) => html`<dt>${has(`figure.${name}`) ? t(`figure.${name}`) : name}</dt><dd>${value}</dd>`)}`}</dl>
    ${!data.live && html`<p class="note">${t("replication.stopped")}</p>`}
    <${Reintegration} row=${row} />
    ${control && row.replicated.length > 0 && html`<div class="tools">
      <${Button} kind="small" why=${row.state === "PRIM" && row.color === "green" ? "" : t("why.prim")}
        onClick=${() => command(t("action.verify"), props.node, ["rfsverify", "-m", props.module])}>${t("action.verify")}<//></div>`}`}<//>`;
}

/** The figures of nfsbox that are plain numbers or words. @param {Record<string, any>} box @returns {[string, string][]} */
function figures(box) {
  const shown = [];
  for (const [name, value] of Object.entries(box ?? {})) {
    if (typeof value === "number" && !["pid", "epoch"].includes(name)) {
      shown.push(/** @type {[string, string]} */ ([name, name.includes("bytes") ? bytes(value) : String(Math.round(value * 100) / 100)]));
    }
  }
  return shown;
}
