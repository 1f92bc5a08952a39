// The wizards: five steps from servers and networks to the first start (guide 3.4.2, 3.8.2).
import { html, useEffect, useState } from "../lib.js";
import { t } from "../i18n.js";
import { ask, at, get, query } from "../api.js";
import { Button, Dialog, Icon, openDialog, Panel, State, Tabs, useLoad } from "../parts.js";
import { nodeCommand } from "../actions.js";
import { command, run } from "../tasks.js";
import { me, modules, nodes, order } from "../store.js";
import { QuickForm } from "../form.js";
import { all, insert, parse, remove, value } from "../xml.js";
import { ClusterForm } from "./cluster.js";
import { Editor, FileEditor } from "./editor.js";

/** @typedef {{module: string, source: string, fresh: boolean, advanced?: boolean}} Subject */

/** @param {Subject} subject */
export function openWizard(subject) {
  openDialog((close) => html`<${Wizard} subject=${subject} close=${close} />`);
}

/** @param {{subject: Subject, close: () => void}} props */
function Wizard({ subject, close }) {
  const { module, source, advanced = false } = subject;
  const steps = advanced ? ["nodes", "apply", "check"] : ["nodes", "edit", "apply", "check", "finish"];
  const entry = modules.value.find((each) => each.module === module);
  const [step, setStep] = useState("nodes");
  const [chosen, setChosen] = useState(/** @type {string[]} */ (
    subject.fresh ? [source, ...order.value.filter((name) => name !== source)] : entry?.places.map((each) => each.node) ?? [source]));
  const [results, setResults] = useState(/** @type {any[] | null} */ (null));
  const [busy, setBusy] = useState(false);
  const first = useFirst(module);
  const good = results !== null && results.every((each) => each.status === 0);
  const tabs = steps.map((key) => ({
    key, label: t(`wizard.${key}`), kind: key === "check" && results ? (good ? "green" : "red") : "",
    why: (key === "check" && !results) || (key === "finish" && !good) ? t("wizard.later") : "",
  }));
  const configure = async () => {
    setBusy(true);
    /** @type {any[]} */
    let told = [];
    await run(t("wizard.configure"), chosen.join(", "), `safekit config -m ${module}`, async () => {
      told = (await ask("POST", at(me.value, source, `modules/${encodeURIComponent(module)}/deploy`), { nodes: chosen })).results;
      // Those that are not told of were not asked, because the first one refused.
      told = chosen.map((node) => told.find((each) => each.node === node) ?? { node, status: 1, kind: "skipped", output: "", next_step: "" });
      return { status: told.every((each) => each.status === 0) ? 0 : 1, output: told.map((each) => `${each.node}: ${each.output}`).join("\n") };
    });
    setBusy(false);
    setResults(told.length ? told : chosen.map((node) => ({ node, status: 1, kind: "connect", output: t("panel.unreachable"), next_step: "" })));
    setStep("check");
  };
  const next = () => setStep(steps[steps.indexOf(step) + 1] ?? step);
  return html`<${Dialog} title=${t(advanced ? "wizard.advanced" : "wizard.title", { module })} close=${close} wide=${true}>
    <div class="wizard-bar"><${Tabs} label=${t("wizard.steps")} tabs=${tabs} value=${step} change=${setStep} /></div>
    ${step === "nodes" ? html`<${Nodes} ...${{ subject, chosen, setChosen, next }} />`
      : step === "edit" ? html`<${Edit} ...${{ subject, next }} />`
        : step === "apply" ? html`<${Apply} ...${{ subject, chosen, configure, busy }} />`
          : step === "check" ? html`<${Check} ...${{ results: results ?? [], good, next: () => (good && !advanced ? setStep("finish") : close()), back: () => setStep("apply") }} />`
            : html`<${Finish} ...${{ module, chosen, first, close }} />`}<//>`;
}

/** Whether the module was never started when the wizard was opened. @param {string} module */
function useFirst(module) {
  const now = () => {
    const rows = modules.value.find((each) => each.module === module)?.places.map((each) => each.row) ?? [];
    return rows.every((row) => !row.configured || row.verdict.reason.includes("never been started"));
  };
  const [first] = useState(now());
  return first;
}

/** userconfig.xml of the module on the source server. @param {Subject} subject */
function useFile({ module, source }) {
  const path = `modules/${module}/conf/userconfig.xml`;
  const state = useLoad(() => get(at(me.value, source, `file${query({ path })}`)), [module, source]);
  /** @param {string} text @param {string} etag */
  const write = (text, etag) => ask("PUT", at(me.value, source, `file${query({ path })}`), { text }, { "If-Match": `"${etag}"` });
  return { state, write };
}

/** @param {any} props */
function Nodes({ subject, chosen, setChosen, next }) {
  const cluster = useLoad(() => get("cluster"), [order.value.join()]);
  const file = useFile(subject);
  const [lans, setLans] = useState(/** @type {string[] | null} */ (null));
  const [problem, setProblem] = useState("");
  const text = file.state.data?.text ?? "";
  const tree = parse(text);
  const heart = all(tree, "heart")[0] ?? all(tree, "farm")[0];
  const tag = heart?.tag === "farm" ? "lan" : "heartbeat";
  const used = heart ? heart.children.filter((each) => each.tag === tag).map((each) => value(each, "name")) : [];
  const names = cluster.data?.lans.map((/** @type {any} */ each) => each.name) ?? [];
  const picked = lans ?? names.filter((/** @type {string} */ name) => used.includes(name));
  const validate = async () => {
    let changed = text;
    if (heart && lans) {
      for (const name of names.filter((/** @type {string} */ each) => used.includes(each) && !picked.includes(each))) {
        const now = all(parse(changed), heart.tag)[0]?.children.find((each) => each.tag === tag && value(each, "name") === name);
        if (now) changed = remove(changed, now);
      }
      for (const name of picked.filter((/** @type {string} */ each) => !used.includes(each))) {
        const now = all(parse(changed), heart.tag)[0];
        if (now) changed = insert(changed, now, `<${tag} name="${name}"/>`);
      }
    }
    try {
      if (changed !== text) await file.write(changed, file.state.data.etag);
      next();
    } catch (error) {
      setProblem(/** @type {any} */ (error).message);
    }
  };
  const toggle = (/** @type {string[]} */ list, /** @type {string} */ name, /** @type {boolean} */ on) => (on ? [...list, name] : list.filter((each) => each !== name));
  return html`<h2>${t("wizard.which.nodes")}</h2>${order.value.map((name) => {
    const reachable = nodes.value[name]?.reachable;
    return html`<p class="row"><label class="check"><input type="checkbox" name=${name} checked=${chosen.includes(name)} disabled=${name === subject.source}
      onChange=${(/** @type {any} */ e) => setChosen(toggle(chosen, name, e.target.checked))} /> <b>${name}</b></label>
      <span class=${reachable ? "green" : "red"}>${reachable ? t("cluster.answers") : t("cluster.silent")}</span>${name === subject.source && html`<span class="muted">${t("wizard.source")}</span>`}</p>`;
  })}
    ${!subject.advanced && heart && html`<h2>${t("wizard.which.lans")}</h2>${names.map((/** @type {string} */ name) => html`<p><label class="check"><input type="checkbox" name=${`lan-${name}`} checked=${picked.includes(name)}
      onChange=${(/** @type {any} */ e) => setLans(toggle(picked, name, e.target.checked))} /> ${name}</label></p>`)}
      ${picked.length === 1 && html`<p class="note warn">${t("wizard.onelan")}</p>`}
      ${picked.length === 0 && names.length > 0 && html`<p class="note bad">${t("wizard.nolan")}</p>`}`}
    <details class="fold"><summary>${t("wizard.cluster")}</summary><p class="note">${t("wizard.cluster.note")}</p><${ClusterForm} edit=${true} /></details>
    ${problem && html`<p class="note bad">${problem}</p>`}
    <div class="tools"><span class="push"></span><${Button} kind="primary" data-key="validate" disabled=${!chosen.length || (!subject.advanced && file.state.data === undefined)} onClick=${validate}>${t("wizard.validate")}<//></div>`;
}

/** @param {any} props */
function Edit({ subject, next }) {
  const { module, source } = subject;
  const file = useFile(subject);
  const about = useLoad(() => get(at(me.value, source, `modules/${encodeURIComponent(module)}/configuration`)), [module, source]);
  const scripts = useLoad(() => get(at(me.value, source, `files${query({ path: `modules/${module}/bin` })}`)), [module, source]);
  const lans = useLoad(() => get("cluster"), []);
  const [text, setText] = useState("");
  const [key, setKey] = useState("");
  const [problem, setProblem] = useState("");
  useEffect(() => { if (file.state.data) setText(file.state.data.text ?? ""); }, [file.state.data]);
  const validate = async () => {
    try {
      if (text !== file.state.data.text) await file.write(text, file.state.data.etag);
      if (key) {
        const done = await command(t(`form.${key}`), source, ["module", key, "-m", module]);
        if (done.status !== 0) return;
      }
      next();
    } catch (error) {
      setProblem(/** @type {any} */ (error).message);
    }
  };
  return html`<${Panel} state=${about}>${(/** @type {any} */ data) => !text ? null : html`
    ${data.form ? html`<${QuickForm} text=${text} change=${setText} sections=${data.form} lans=${lans.data?.lans.map((/** @type {any} */ l) => l.name) ?? []} />`
      : html`<${Editor} text=${text} change=${setText} kind="userconfig" module=${module} xml=${true} />`}
    <fieldset><legend>${t("form.scripts")}</legend><ul class="picker">${(scripts.data?.entries ?? []).filter((/** @type {any} */ each) => !each.directory).map((/** @type {any} */ each) => html`<li><button type="button"
      onClick=${() => openDialog((close) => html`<${FileEditor} node=${source} path=${`modules/${module}/bin/${each.name}`} close=${close} />`)}>${each.name}</button></li>`)}</ul></fieldset>
    <fieldset><legend>${t("form.keys")}</legend><label class="check"><input type="checkbox" name="genkey" checked=${key === "genkey"} onChange=${(/** @type {any} */ e) => setKey(e.target.checked ? "genkey" : "")} /> ${t("form.genkey")}</label>
      <label class="check"><input type="checkbox" name="delkey" disabled=${!data.key} checked=${key === "delkey"} onChange=${(/** @type {any} */ e) => setKey(e.target.checked ? "delkey" : "")} /> ${t("form.delkey")}</label>
      <p class="muted">${t(data.key ? "form.key.own" : "form.key.cluster")}</p></fieldset>
    ${data.form && html`<${Findings} text=${text} module=${module} />`}`}<//>
    ${problem && html`<p class="note bad">${problem}</p>`}
    <div class="tools"><span class="muted small">${t("wizard.kept", { node: source })}</span><span class="push"></span><${Button} kind="primary" data-key="validate" disabled=${!text} onClick=${validate}>${t("wizard.validate")}<//></div>`;
}

/** What is wrong with the form's result. @param {{text: string, module: string}} props */
function Findings({ text, module }) {
  const [found, setFound] = useState(/** @type {any[]} */ ([]));
  useEffect(() => {
    const timer = setTimeout(() => ask("POST", "check", { kind: "userconfig", text, module }).then((data) => setFound(data.findings), () => undefined), 300);
    return () => clearTimeout(timer);
  }, [text]);
  return html`<ul class="findings" aria-live="polite">${found.map((each) => html`<li class=${each.severity === "error" ? "red" : "magenta"}><${Icon} shape="warn" /> ${each.element && html`<code>${each.element}</code> `}${each.text}</li>`)}</ul>`;
}

/** @param {any} props */
function Apply({ subject, chosen, configure, busy }) {
  const entry = modules.value.find((each) => each.module === subject.module);
  const places = chosen.map((/** @type {string} */ node) => ({ node, place: entry?.places.find((each) => each.node === node) }));
  const running = places.filter((/** @type {any} */ each) => each.place && each.place.row.configured && each.place.row.state !== "STOP");
  const why = !subject.advanced && running.length ? t("wizard.mustStop", { nodes: running.map((/** @type {any} */ each) => each.node).join(", ") }) : "";
  return html`<table class="grid"><tbody>${places.map((/** @type {any} */ each) => html`<tr><th scope="row">${each.node}</th><td>${each.place ? html`<${State} row=${each.place.row} reachable=${each.place.reachable} />` : html`<span class="muted">${t("state.unconfigured")}</span>`}</td>
      <td>${!subject.advanced && running.includes(each) && html`<${Button} kind="small" onClick=${() => nodeCommand("stop", subject.module, each.node)}>${t("action.stop")}<//>`}</td></tr>`)}</tbody></table>
    <p class="note">${t(subject.advanced ? (running.length ? "wizard.dynamic" : "wizard.static") : "wizard.replaces")}</p>
    ${why && html`<p class="note warn">${why}</p>`}
    <div class="tools"><span class="push"></span><${Button} kind="primary" busy=${busy} why=${why} data-key="configure" onClick=${configure}>${t("wizard.configure")}<//></div>`;
}

/** @param {any} props */
function Check({ results, good, next, back }) {
  return html`<p class="note ${good ? "good" : "bad"}" role="status">${t(good ? "wizard.good" : "wizard.bad")}</p>
    ${results.map((/** @type {any} */ each) => html`<details class="fold" open=${each.status !== 0} data-result=${each.node}><summary><span class="state ${each.status === 0 ? "green" : "red"}"><${Icon} shape=${each.status === 0 ? "green" : "red"} />${each.node}:
      ${" "}${each.status === 0 ? t("result.success") : each.kind === "skipped" ? t("result.skipped") : each.kind ? t("result.connection") : t("result.failure")}</span></summary>
      <pre class="output">${[each.output, each.next_step].filter(Boolean).join("\n")}</pre></details>`)}
    <div class="tools">${!good && html`<${Button} onClick=${back}>${t("wizard.back")}<//>`}<span class="push"></span><${Button} kind="primary" data-key="next" onClick=${next}>${t("wizard.next")}<//></div>`;
}

/** @param {any} props */
function Finish({ module, chosen, first, close }) {
  const entry = modules.value.find((each) => each.module === module);
  const mirror = entry?.places.some((each) => each.row.mode === "mirror" && each.row.replicated.length > 0);
  const [node, setNode] = useState(chosen[0]);
  if (!first || !mirror) {
    return html`<p class="note good">${t("finish.done", { module })}</p><div class="tools"><span class="push"></span><${Button} kind="primary" data-key="finish" onClick=${close}>${t("close")}<//></div>`;
  }
  return html`<p>${t("finish.which", { module })}</p><p class="note warn">${t("finish.lost")}</p>
    ${chosen.map((/** @type {string} */ each) => html`<p><label class="check"><input type="radio" name="uptodate" value=${each} checked=${node === each} onChange=${() => setNode(each)} /> ${each}</label></p>`)}
    <div class="tools"><${Button} onClick=${close}>${t("finish.later")}<//><span class="push"></span><${Button} kind="primary" data-key="start-prim" onClick=${async () => {
      close();
      const done = await command(t("action.prim"), node, ["prim", "-m", module]);
      if (done.status !== 0) return;
      for (const other of chosen.filter((/** @type {string} */ each) => each !== node)) void command(t("action.second"), other, ["second", "-m", module]);
    }}>${t("finish.start", { node })}<//></div>`;
}
