// The timeline: what happened on all servers, in one order, whatever their clocks say.
import { html, useState } from "../lib.js";
import { language, t, when } from "../i18n.js";
import { at, get, query } from "../api.js";
import { Button, Panel, save, useLoad } from "../parts.js";
import { route, turn } from "../route.js";
import { me, modules, nodes, order } from "../store.js";

/** By how much a server's clock is ahead, and within how much that is known; all in seconds.
 * @param {number} asked @param {number} received @param {number} answered @param {number} arrived */
export function clock(asked, received, answered, arrived) {
  const ahead = ((received - asked) + (answered - arrived)) / 2;
  return { ahead, within: Math.max(0, ((arrived - asked) - (answered - received)) / 2) };
}

/** @param {string} module @param {string} level */
async function load(module, level) {
  const lang = language.value === "fr" ? "fr" : "en";
  const names = order.value.filter((name) => nodes.value[name]?.reachable !== false);
  const found = await Promise.all(names.map(async (name) => {
    const asked = Date.now() / 1000;
    try {
      const data = await get(at(me.value, name, `timeline${query({ level, lang, lines: 400, module })}`));
      const measured = clock(asked, data.received, data.answered, Date.now() / 1000);
      return { name, entries: data.entries, ...measured, error: "" };
    } catch (error) {
      return { name, entries: [], ahead: 0, within: 0, error: String(/** @type {any} */ (error).message) };
    }
  }));
  const own = found.find((each) => each.name === me.value)?.ahead ?? 0;
  const entries = found.flatMap((each) => each.entries.map((/** @type {any} */ entry) => ({
    ...entry, node: each.name, at: Math.abs(each.ahead - own) > each.within ? entry.at - (each.ahead - own) : entry.at,
  }))).sort((a, b) => a.at - b.at);
  return { entries, servers: found.map((each) => ({ ...each, ahead: each.ahead - own })) };
}

export function Timeline() {
  const q = route.value.query;
  const module = q.get("module") ?? "", level = q.get("level") ?? "E";
  const [text, setText] = useState("");
  const state = useLoad(() => load(module, level), [module, level, language.value, order.value.join()], 5000);
  const set = (/** @type {Record<string, string>} */ more) => turn({ ...Object.fromEntries(q), ...more });
  return html`<section class="page"><div class="page-head"><h1>${t("timeline.title")}</h1>
    <div class="tools"><label class="inline">${t("table.module")} <select value=${module} onChange=${(/** @type {any} */ e) => set({ module: e.target.value })}>
        <option value="">${t("timeline.all")}</option>${modules.value.map((each) => html`<option>${each.module}</option>`)}</select></label>
      <label class="inline">${t("timeline.detail")} <select value=${level} onChange=${(/** @type {any} */ e) => set({ level: e.target.value })}>
        ${["E", "I", "A"].map((each) => html`<option value=${each}>${t(`level.${each}`)}</option>`)}</select></label>
      <input type="search" placeholder=${t("filter")} aria-label=${t("filter")} value=${text} onInput=${(/** @type {any} */ e) => setText(e.target.value)} />
      <${Button} kind="small" onClick=${() => state.data && save("timeline.txt", state.data.entries.map((/** @type {any} */ e) =>
        `${new Date(e.at * 1000).toISOString()} | ${e.node} | ${e.subject} | ${e.who} | ${e.text}`).join("\n") + "\n")}>${t("save")}<//></div></div>
    <${Panel} state=${state}>${(/** @type {any} */ data) => html`<${Lanes} data=${data} text=${text} />`}<//></section>`;
}

/** @param {{data: any, text: string}} props */
function Lanes({ data, text }) {
  const rows = data.entries.filter((/** @type {any} */ e) => `${e.node} ${e.subject} ${e.text}`.toLowerCase().includes(text.toLowerCase())).slice(-600).reverse();
  const off = data.servers.filter((/** @type {any} */ each) => Math.abs(each.ahead) > Math.max(0.5, each.within));
  let day = "";
  return html`${data.servers.filter((/** @type {any} */ s) => s.error).map((/** @type {any} */ s) => html`<p class="note warn">${s.name}: ${s.error}</p>`)}
    ${off.map((/** @type {any} */ s) => html`<p class="note warn">${t("timeline.clock", { node: s.name, seconds: s.ahead.toFixed(1), within: s.within.toFixed(1) })}</p>`)}
    <div class="scroll" tabindex="0"><table class="lanes"><thead><tr><th>${t("commands.at")}</th>${data.servers.map((/** @type {any} */ s) => html`<th key=${s.name}>${s.name}</th>`)}</tr></thead>
    <tbody>${rows.map((/** @type {any} */ e, /** @type {number} */ i) => {
      const date = new Date(e.at * 1000).toDateString();
      const turned = date !== day;
      day = date;
      return html`${turned && html`<tr class="day"><th colspan=${data.servers.length + 1}>${new Intl.DateTimeFormat(language.value, { dateStyle: "full" }).format(e.at * 1000)}</th></tr>`}
        <tr key=${i}><td class="nowrap muted">${new Intl.DateTimeFormat(language.value, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false, fractionalSecondDigits: 1 }).format(e.at * 1000)}</td>
        ${data.servers.map((/** @type {any} */ s) => html`<td key=${s.name} data-server=${s.name}>${s.name === e.node && html`<div class="mark from-${e.source} ${tone(e.text)}">
          <small>${e.subject || t("timeline.server")} · ${e.source === "command" ? t("timeline.command") : e.who}</small><span>${e.text}</span></div>`}</td>`)}</tr>`;
    })}</tbody></table></div>`;
}

/** The colour of a state that a line tells. @param {string} text */
function tone(text) {
  if (/\b(green|vert)\b/i.test(text)) return "green";
  if (/\bmagenta\b/i.test(text)) return "magenta";
  if (/\b(red|rouge)\b|return (?!0:)-?\d+:/i.test(text)) return "red";
  return "";
}
