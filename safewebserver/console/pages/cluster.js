// The configuration of the cluster: its servers, and in advanced mode its networks (guide 3.3).
import { html, useEffect, useState } from "../lib.js";
import { t } from "../i18n.js";
import { ask, get, query } from "../api.js";
import { Button, Dialog, Icon, openDialog, Panel, useLoad } from "../parts.js";
import { run } from "../tasks.js";
import { me, modules, nodes, order } from "../store.js";
import { route } from "../route.js";

/** @typedef {{name: string, addresses: Record<string, string>, known: string}} Machine `known`: green, red or not asked */
/** @typedef {{key: string, name: string, console: boolean, framework: boolean, command: boolean}} Lan */
/** @typedef {{machines: Machine[], lans: Lan[]}} Draft */

let keys = 0;

/** What the form shows of a cluster.xml. @param {any[]} lans @returns {Draft} */
export function draftOf(lans) {
  const made = lans.map((lan) => ({
    key: `l${++keys}`, name: lan.name, console: lan.console, framework: lan.framework, command: lan.command,
  }));
  const names = [...new Set(lans.flatMap((lan) => lan.nodes.map((/** @type {any} */ node) => node.name)))];
  const machines = names.map((name) => ({
    name, known: "", addresses: Object.fromEntries(lans.flatMap((lan, i) => {
      const node = lan.nodes.find((/** @type {any} */ each) => each.name === name);
      return node ? [[made[i].key, node.addr]] : [];
    })),
  }));
  if (!made.length) made.push({ key: `l${++keys}`, name: "default", console: true, framework: true, command: false });
  return { machines, lans: made };
}

const quoted = (/** @type {string} */ text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll('"', "&quot;");

/** cluster.xml of a draft; what the form does not show stays as it was in `before`. @param {Draft} draft @param {string} before */
export function xmlOf(draft, before) {
  const open = /<cluster\b[^>]*>/.exec(before)?.[0] ?? "<cluster>";
  const lans = /<lans\b[^>]*>/.exec(before)?.[0] ?? "<lans>";
  const lines = draft.lans.map((lan) => {
    const own = draft.machines.filter((each) => each.addresses[lan.key]?.trim());
    const laddr = (/** @type {string} */ name) => {
      const block = new RegExp(`<lan\\b[^>]*name="${lan.name.replace(/[^\w.-]/g, ".")}"[\\s\\S]*?</lan>`).exec(before)?.[0] ?? "";
      return new RegExp(`<node\\b[^>]*name="${name.replace(/[^\w.-]/g, ".")}"[^>]*>`).exec(block)?.[0].match(/\sladdr="[^"]*"/)?.[0] ?? "";
    };
    return `  <lan name="${quoted(lan.name.trim())}"${lan.console ? "" : ' console="off"'}${lan.framework ? "" : ' framework="off"'}${
      lan.command ? ' command="on"' : ""}>\n${own.map((each) =>
      `   <node name="${quoted(each.name.trim())}" addr="${quoted(each.addresses[lan.key].trim())}"${laddr(each.name)}/>\n`).join("")}  </lan>\n`;
  });
  return `${open}\n <lans${lans.slice(5)}\n${lines.join("")} </lans>\n</cluster>\n`;
}

/** What is wrong with a draft, in words. @param {Draft} draft @param {string} self */
export function problems(draft, self) {
  const found = [];
  const names = draft.machines.map((each) => each.name.trim());
  // Two networks may have the same address of a server; two servers may not.
  const addresses = draft.machines.flatMap((each) => [...new Set(Object.values(each.addresses).map((one) => one.trim()))]).filter(Boolean);
  if (!draft.machines.length) found.push(t("cluster.none"));
  if (names.some((each) => !each)) found.push(t("cluster.unnamed"));
  if (new Set(names).size < names.length) found.push(t("cluster.twice"));
  if (new Set(addresses).size < addresses.length) found.push(t("cluster.address.twice"));
  if (addresses.some((each) => /^(localhost|127\.|::1)/.test(each))) found.push(t("cluster.localhost"));
  if (self && !names.includes(self)) found.push(t("cluster.self", { node: self }));
  if (draft.machines.some((each) => !draft.lans.some((lan) => each.addresses[lan.key]?.trim()))) found.push(t("cluster.noaddress"));
  if (!draft.lans.some((lan) => lan.framework && draft.machines.every((each) => each.addresses[lan.key]?.trim()))) found.push(t("cluster.framework"));
  return found;
}

/** @param {{edit: boolean}} props */
export function ClusterPanel({ edit }) {
  const [open, setOpen] = useState(route.value.query.get("cluster") === "open");
  useEffect(() => { if (route.value.query.get("cluster") === "open") setOpen(true); }, [route.value]);
  return html`<details class="cluster-panel" open=${open} data-key="cluster-panel"
    onToggle=${(/** @type {any} */ e) => setOpen(e.target.open)}><summary>${t("cluster.title")}</summary>
    ${open && html`<div class="inside"><${ClusterForm} edit=${edit} /></div>`}</details>`;
}

/** The form; `picked` is told of what was applied. @param {{edit: boolean, picked?: () => void}} props */
export function ClusterForm({ edit, picked = () => undefined }) {
  const state = useLoad(() => get("cluster"), [order.value.join()]);
  return html`<${Panel} state=${state}>${(/** @type {any} */ data) => html`<${Form} key=${data.xml} data=${data} edit=${edit} again=${state.again} picked=${picked} />`}<//>`;
}

/** @param {any} props */
function Form({ data, edit, again, picked }) {
  const first = () => {
    const made = draftOf(data.lans);
    if (!made.machines.length) {
      const address = /^[\d.:[\]a-f]+$/i.test(location.hostname) && !location.hostname.startsWith("127.") ? location.hostname : "";
      made.machines.push({ name: me.value, known: "green", addresses: { [made.lans[0].key]: address } });
    }
    return made;
  };
  const [draft, setDraft] = useState(/** @type {Draft} */ (first()));
  const [advanced, setAdvanced] = useState(data.lans.length > 1);
  const [renew, setRenew] = useState(true);
  const [results, setResults] = useState(/** @type {any[]} */ ([]));
  const [busy, setBusy] = useState(false);
  const was = draftOf(data.lans);
  const changed = xmlOf(draft, data.xml) !== xmlOf(was, data.xml) || !data.xml;
  const wrong = problems(draft, data.node);
  const main = draft.lans.find((lan) => lan.console) ?? draft.lans[0];
  const reach = (/** @type {Machine} */ each) => each.known
    || (nodes.value[each.name] ? (nodes.value[each.name].reachable ? "green" : "red") : "");

  /** @param {number} index @param {Partial<Machine>} fields */
  const set = (index, fields) => setDraft((/** @type {Draft} */ d) => ({
    ...d, machines: d.machines.map((each, i) => (i === index ? { ...each, ...fields } : each)),
  }));
  /** @param {string} key @param {Partial<Lan>} fields */
  const setLan = (key, fields) => setDraft((/** @type {Draft} */ d) => ({ ...d, lans: d.lans.map((each) => (each.key === key ? { ...each, ...fields } : each)) }));
  /** @param {number} index @param {string} address */
  const probe = async (index, address) => {
    if (!address || /^(localhost|127\.)/.test(address)) return;
    const answer = await get(`probe${query({ address })}`).catch(() => ({ node: "", answers: false }));
    setDraft((/** @type {Draft} */ d) => ({ ...d, machines: d.machines.map((each, i) => (i !== index ? each
      : { ...each, name: each.name || answer.node, known: answer.answers ? "green" : "red" })) }));
  };
  /** @param {Record<string, any>} people */
  const apply = async (people) => {
    setBusy(true);
    const xml = changed ? xmlOf(draft, data.xml) : data.xml;
    const before = results.length ? (await get("cluster")).xml : data.xml;
    /** @type {any[]} */
    let told = [];
    await run(t("cluster.apply"), draft.machines.map((each) => each.name).join(", "), "safekit -G", async () => {
      told = (await ask("POST", "cluster/apply", { xml, before, renew: changed ? Boolean(data.xml) : renew, people })).results;
      const bad = told.filter((each) => each.status !== 0 && each.kind !== "credentials");
      return { status: bad.length ? 1 : 0, output: told.map((each) => `${each.node}: ${each.output}${each.next_step ? `\n${each.next_step}` : ""}`).join("\n") };
    });
    setBusy(false);
    setResults(told);
    const strangers = told.filter((each) => each.kind === "credentials").map((each) => each.node);
    if (strangers.length) askPasswords(strangers, apply);
    else if (told.length && told.every((each) => each.status === 0)) {
      picked();
      again();
    }
  };
  const gone = was.machines.filter((each) => !draft.machines.some((one) => one.name === each.name)).map((each) => each.name);
  return html`<form class="cluster" onSubmit=${(/** @type {Event} */ e) => e.preventDefault()}>
    ${edit && html`<div class="tools" role="radiogroup" aria-label=${t("cluster.mode")}>
      <label class="check"><input type="radio" name="mode" checked=${!advanced} onChange=${() => setAdvanced(false)} /> ${t("cluster.simple")}</label>
      <label class="check"><input type="radio" name="mode" checked=${advanced} onChange=${() => setAdvanced(true)} /> ${t("cluster.advanced")}</label></div>`}
    <h2>${t("cluster.nodes")}</h2>
    <div class="rows">${draft.machines.map((each, i) => html`<div class="row" data-machine=${i}>
      <input name="address" aria-label=${t("cluster.address")} placeholder=${t("cluster.address")} disabled=${!edit} value=${each.addresses[main.key] ?? ""}
        onInput=${(/** @type {any} */ e) => set(i, { addresses: { ...each.addresses, [main.key]: e.target.value } })}
        onBlur=${(/** @type {any} */ e) => edit && void probe(i, e.target.value.trim())} />
      <input name="name" class=${reach(each)} aria-label=${t("cluster.name")} placeholder=${t("cluster.name")} disabled=${!edit} value=${each.name}
        title=${reach(each) === "green" ? t("cluster.answers") : reach(each) === "red" ? t("cluster.silent") : ""}
        onInput=${(/** @type {any} */ e) => set(i, { name: e.target.value })} />
      <span class="small ${reach(each)}">${reach(each) === "green" ? t("cluster.answers") : reach(each) === "red" ? t("cluster.silent") : ""}</span>
      ${edit && html`<${Button} kind="small" aria-label=${t("cluster.remove", { node: each.name })} title=${t("cluster.remove", { node: each.name })} data-key="remove"
        onClick=${() => setDraft({ ...draft, machines: draft.machines.filter((_, k) => k !== i) })}>−<//>`}</div>`)}</div>
    ${edit && html`<p><${Button} kind="small" data-key="new-node" onClick=${() => setDraft({ ...draft, machines: [...draft.machines, { name: "", known: "", addresses: {} }] })}>${t("cluster.newnode")}<//></p>`}
    ${(advanced || !edit) && html`<h2>${t("cluster.lans")}</h2>${draft.lans.map((lan) => html`<fieldset data-lan=${lan.name} key=${lan.key}>
      <div class="row"><input name="lan" aria-label=${t("cluster.lan")} placeholder=${t("cluster.lan")} disabled=${!edit} value=${lan.name} onInput=${(/** @type {any} */ e) => setLan(lan.key, { name: e.target.value })} />
        <label class="check"><input type="checkbox" name="framework" disabled=${!edit} checked=${lan.framework} onChange=${(/** @type {any} */ e) => setLan(lan.key, { framework: e.target.checked })} /> ${t("cluster.is.framework")}</label>
        <label class="check"><input type="checkbox" name="console" disabled=${!edit} checked=${lan.console} onChange=${(/** @type {any} */ e) => setLan(lan.key, { console: e.target.checked })} /> ${t("cluster.is.console")}</label>
        ${edit && draft.lans.length > 1 && html`<${Button} kind="small" aria-label=${t("cluster.removelan", { lan: lan.name })} title=${t("cluster.removelan", { lan: lan.name })}
          onClick=${() => setDraft({ ...draft, lans: draft.lans.filter((each) => each !== lan) })}>−<//>`}</div>
      ${lan !== main && html`<div class="rows">${draft.machines.map((each, i) => html`<label class="row"><span class="muted">${each.name || t("cluster.name")}</span>
        <input name="address" aria-label=${`${lan.name} ${each.name}`} disabled=${!edit} value=${each.addresses[lan.key] ?? ""} placeholder=${t("cluster.address")}
          onInput=${(/** @type {any} */ e) => set(i, { addresses: { ...each.addresses, [lan.key]: e.target.value } })} /></label>`)}</div>`}</fieldset>`)}
      ${edit && html`<p><${Button} kind="small" data-key="new-lan" onClick=${() => setDraft({ ...draft, lans: [...draft.lans, { key: `l${++keys}`, name: "", console: false, framework: true, command: false }] })}>${t("cluster.newlan")}<//></p>`}`}
    ${edit && html`${changed && wrong.map((each) => html`<p class="note bad" key=${each}>${each}</p>`)}
      ${changed && gone.length > 0 && html`<p class="note warn">${t("cluster.gone", { nodes: gone.join(", ") })}</p>`}
      ${changed && modules.value.length > 0 && html`<p class="note">${t("cluster.affects", { modules: modules.value.map((each) => each.module).join(", ") })}</p>`}
      ${advanced && !changed && html`<label class="check"><input type="checkbox" name="renew" checked=${renew} onChange=${(/** @type {any} */ e) => setRenew(e.target.checked)} /> ${t("cluster.renew")}</label>`}
      <div class="tools"><${Button} kind=${changed ? "changed" : "primary"} busy=${busy} data-key="save-cluster" disabled=${changed ? wrong.length > 0 : !advanced}
          title=${changed ? t("cluster.changed") : ""} onClick=${() => void apply({})}>${t(changed ? "cluster.save" : "cluster.reapply")}<//>
        <${Button} disabled=${!changed || busy} data-key="discard" onClick=${() => { setDraft(first()); setResults([]); }}>${t("cluster.discard")}<//></div>
      ${results.length > 0 && html`<ul class="results" aria-live="polite">${results.map((each) => html`<li><span class="state ${each.status === 0 ? "green" : "red"}"><${Icon} shape=${each.status === 0 ? "green" : "red"} />${each.node}</span>
        ${each.status === 0 ? t("result.success") : `${each.kind && each.kind !== "credentials" ? t("result.connection") : t("result.failure")}: ${each.output} ${each.next_step}`}</li>`)}</ul>`}`}
  </form>`;
}

/** Servers that are not of this cluster yet want to know who asks. @param {string[]} strangers @param {(people: any) => void} done */
function askPasswords(strangers, done) {
  openDialog((close) => html`<${Passwords} strangers=${strangers} done=${done} close=${close} />`);
}

/** @param {any} props */
function Passwords({ strangers, done, close }) {
  const [user, setUser] = useState("admin");
  const [password, setPassword] = useState("");
  const go = () => {
    close();
    done(Object.fromEntries(strangers.map((/** @type {string} */ node) => [node, { user, password }])));
  };
  return html`<${Dialog} title=${t("strangers.title", { nodes: strangers.join(", ") })} close=${close} actions=${html`<${Button} onClick=${close}>${t("cancel")}<//>
      <${Button} kind="primary" data-key="confirm" disabled=${!password} onClick=${go}>${t("cluster.apply")}<//>`}>
    <p>${t("strangers.text")}</p>
    ${location.protocol === "http:" && html`<p class="note warn">${t("strangers.clear")}</p>`}
    <label class="field">${t("login.user")}<input name="user" value=${user} onInput=${(/** @type {any} */ e) => setUser(e.target.value)} /></label>
    <label class="field">${t("login.password")}<input name="password" type="password" autocomplete="off" value=${password} onInput=${(/** @type {any} */ e) => setPassword(e.target.value)} /></label><//>`;
}
