// The quick form of the wizard: macros, heartbeats, replicated directories, virtual addresses (guide 3.4.2.2).
// It reads the XML and writes it: whatever it does not show stays as it is.
import { html } from "./lib.js";
import { t } from "./i18n.js";
import { Button } from "./parts.js";
import { all, insert, parse, remove, setAttribute, value } from "./xml.js";

/** @param {{text: string, change: (text: string) => void, sections: string[], lans: string[]}} props */
export function QuickForm({ text, change, sections, lans }) {
  const tree = parse(text);
  if (!tree) return html`<p class="note bad">${t("editor.notree")}</p>`;
  const service = all(tree, "service")[0] ?? tree;
  const parts = { macros: Macros, heartbeats: service.children.some((each) => each.tag === "farm") ? FarmLans : Heartbeats, replication: Replicated, addresses: Addresses };
  return html`<div class="quick">${sections.map((name) => {
    const Part = parts[/** @type {keyof typeof parts} */ (name)];
    return Part && html`<${Part} key=${name} tree=${tree} service=${service} text=${text} change=${change} lans=${lans} />`;
  })}</div>`;
}

/** @param {any} props */
function Field({ text, change, element, name, label, list = null }) {
  return html`<input aria-label=${label} placeholder=${label} name=${name} list=${list} value=${value(element, name)}
    onChange=${(/** @type {any} */ e) => change(setAttribute(text, element, name, e.target.value))} />`;
}

/** @param {any} props */
function Remove({ text, change, element, label }) {
  return html`<${Button} kind="small" aria-label=${label} title=${label} onClick=${() => change(remove(text, element))}>−<//>`;
}

/** @param {any} props */
function Macros({ tree, text, change }) {
  const macros = all(tree, "macro");
  if (!macros.length) return null;
  return html`<fieldset><legend>${t("form.macros")}</legend>${macros.map((each) => html`<label class="row"><span class="muted">${value(each, "name")}</span>
    <${Field} text=${text} change=${change} element=${each} name="value" label=${value(each, "name")} /></label>`)}</fieldset>`;
}

/** @param {any} props */
function Lans({ lans }) {
  return html`<datalist id="lans">${lans.map((/** @type {string} */ each) => html`<option value=${each}></option>`)}</datalist>`;
}

/** @param {any} props */
function Heartbeats({ service, text, change, lans }) {
  const heart = service.children.find((/** @type {any} */ each) => each.tag === "heart");
  if (!heart) return null;
  const beats = heart.children.filter((/** @type {any} */ each) => each.tag === "heartbeat");
  return html`<fieldset><legend>${t("form.heartbeats")}</legend><${Lans} lans=${lans} /><div class="rows">${beats.map((/** @type {any} */ each) => html`<div class="row">
      <${Field} text=${text} change=${change} element=${each} name="name" label=${t("form.lan")} list="lans" />
      <label class="check"><input type="checkbox" checked=${value(each, "ident") === "flow"} onChange=${(/** @type {any} */ e) => change(setAttribute(text, each, "ident", e.target.checked ? "flow" : ""))} /> ${t("form.flow")}</label>
      <${Remove} text=${text} change=${change} element=${each} label=${t("form.remove")} /></div>`)}</div>
    <p><${Button} kind="small" data-key="new-heartbeat" onClick=${() => change(insert(text, heart, `<heartbeat name="${lans.find((/** @type {string} */ l) => !beats.some((/** @type {any} */ b) => value(b, "name") === l)) ?? ""}"/>`))}>${t("form.newheartbeat")}<//></p></fieldset>`;
}

/** @param {any} props */
function FarmLans({ service, text, change, lans }) {
  const farm = service.children.find((/** @type {any} */ each) => each.tag === "farm");
  return html`<fieldset><legend>${t("form.farm")}</legend><${Lans} lans=${lans} /><div class="rows">${farm.children.filter((/** @type {any} */ each) => each.tag === "lan").map((/** @type {any} */ each) => html`<div class="row">
      <${Field} text=${text} change=${change} element=${each} name="name" label=${t("form.lan")} list="lans" />
      <${Remove} text=${text} change=${change} element=${each} label=${t("form.remove")} /></div>`)}</div>
    <p><${Button} kind="small" onClick=${() => change(insert(text, farm, `<lan name="${lans[0] ?? ""}"/>`))}>${t("form.newlan")}<//></p></fieldset>`;
}

/** @param {any} props */
function Replicated({ service, text, change }) {
  const rfs = service.children.find((/** @type {any} */ each) => each.tag === "rfs");
  if (service.children.some((/** @type {any} */ each) => each.tag === "farm")) return null;
  return html`<fieldset data-section="replication"><legend>${t("form.replication")}</legend><div class="rows">${(rfs?.children ?? []).filter((/** @type {any} */ each) => each.tag === "replicated").map((/** @type {any} */ each) => html`<div class="row">
      <${Field} text=${text} change=${change} element=${each} name="dir" label=${t("form.directory")} />
      <${Remove} text=${text} change=${change} element=${each} label=${t("form.remove")} /></div>`)}</div>
    <p><${Button} kind="small" data-key="new-directory" onClick=${() => change(rfs ? insert(text, rfs, '<replicated dir="/data"/>') : insert(text, service, '<rfs>\n <replicated dir="/data"/>\n</rfs>'))}>${t("form.newdirectory")}<//></p></fieldset>`;
}

/** @param {any} props */
function Addresses({ service, text, change }) {
  const addresses = all(service, "virtual_addr");
  const list = all(service, "interface_list")[0];
  const one = '<interface check="on" arpreroute="on">\n <real_interface>\n  <virtual_addr addr="" where="one_side_alias"/>\n </real_interface>\n</interface>';
  const indented = one.split("\n").join("\n  ");
  return html`<fieldset data-section="addresses"><legend>${t("form.addresses")}</legend><div class="rows">${addresses.map((each) => html`<div class="row">
      <${Field} text=${text} change=${change} element=${each} name="addr" label=${t("form.address")} />
      <${Remove} text=${text} change=${change} element=${holder(each)} label=${t("form.remove")} /></div>`)}</div>
    ${!service.children.some((/** @type {any} */ each) => each.tag === "farm") && html`<p><${Button} kind="small" data-key="new-address" onClick=${() => change(list ? insert(text, list, one) : insert(text, service, `<vip>\n <interface_list>\n  ${indented}\n </interface_list>\n</vip>`))}>${t("form.newaddress")}<//></p>`}</fieldset>`;
}

/** The interface of an address that has no other one. @param {import("./xml.js").Element} address */
function holder(address) {
  const face = address.parent?.parent;
  return face?.tag === "interface" && all(face, "virtual_addr").length === 1 ? face : address;
}
