// What can be done with a module: on all servers, and on one. Each dialog says what will happen.
import { html } from "./lib.js";
import { t } from "./i18n.js";
import { ask, at, get, query } from "./api.js";
import { confirm, decoded, openDialog, save, Dialog, Button, useLoad, Panel } from "./parts.js";
import { command, run } from "./tasks.js";
import { level, me, modules, drift } from "./store.js";

/** @typedef {import("./verdict.js").Place} Place */

/** @param {string} module */
function placesOf(module) {
  return modules.value.find((each) => each.module === module)?.places ?? [];
}

/** Why a command makes no sense now; empty when it does. @param {string} word @param {Place} place @param {Place[]} all */
export function impossible(word, place, all) {
  const { row } = place;
  const other = all.find((each) => each !== place && each.reachable);
  if (!place.reachable) return t("why.unreachable");
  if (!row.configured) return t("why.unconfigured");
  const stopped = row.state === "STOP";
  if (["start", "prim", "second"].includes(word) && !stopped) return t("why.running");
  if (["stop", "restart", "stopstart", "swap"].includes(word) && stopped) return t("why.stopped");
  if (["prim", "second", "swap", "failover on", "failover off"].includes(word) && row.mode !== "mirror") return t("why.mirror");
  if (word === "swap" && !(["PRIM", "SECOND"].includes(row.state) && row.color === "green")) return t("why.pair");
  if (word === "restart" && !["PRIM", "ALONE", "UP"].includes(row.state)) return t("why.serving");
  if (word === "prim" && other && ["PRIM", "ALONE"].includes(other.row.state)) return t("why.served", { node: other.node });
  if (word === "failover on" && row.failover === "on") return t("why.already");
  if (word === "failover off" && row.failover === "off") return t("why.already");
  return "";
}

/** What a command will do, in words. @param {string} word @param {string} module @param {Place} place @param {Place[]} all */
function consequence(word, module, place, all) {
  const others = all.filter((each) => each !== place);
  const other = others[0];
  const values = { module, node: place.node, other: other?.node ?? "" };
  const serves = ["PRIM", "ALONE", "UP"].includes(place.row.state);
  if (word === "stop" && place.row.state === "PRIM" && other?.row.state === "SECOND" && other.row.color === "green") return t("will.stop_prim", values);
  if (word === "stop" && place.row.state === "ALONE") return t("will.stop_alone", values);
  if (word === "stop" && place.row.state === "SECOND") return t("will.stop_second", values);
  if (word === "stop" && place.row.mode === "farm" && serves) return t("will.stop_up", values);
  if (word === "stopstart" && place.row.state === "PRIM" && other?.row.state === "SECOND") return t("will.stopstart_prim", values);
  return t(`will.${word.replace(" ", "_")}`, values);
}

const COPYING = ["stop", "stopstart", "restart", "swap"];

/** Ask, then run a command on a server. @param {string} word @param {string} module @param {string} node */
export function nodeCommand(word, module, node) {
  const all = placesOf(module);
  const place = all.find((each) => each.node === node);
  if (!place) return;
  const copying = COPYING.includes(word) && all.some((each) => each.row.state === "SECOND" && each.row.color === "magenta");
  const differs = ["start", "prim", "second"].includes(word)
    && drift.value.some((each) => each.key === "cluster" || (each.key === "module" && each.values.module === module));
  const words = word.split(" ");
  confirm({
    title: t(`action.${word.replace(" ", "_")}.title`, { module, node }),
    text: consequence(word, module, place, all),
    note: html`${copying && html`<p class="note warn">${t("will.copying")}</p>`}
      ${differs && html`<p class="note warn">${t("banner.module", { module })}</p>`}`,
    yes: t(`action.${word.replace(" ", "_")}`),
    kind: ["stop", "prim", "second"].includes(word) ? "danger" : "primary",
    word: ["prim", "second"].includes(word) ? node : "",
    action: () => command(t(`action.${word.replace(" ", "_")}`), node, [...words, "-m", module]),
  });
}

/** Ask, then run a command on all servers of a module. @param {"start" | "stop"} word @param {string} module */
export function globalCommand(word, module) {
  const all = placesOf(module).filter((each) => !impossible(word, each, placesOf(module)));
  const differs = word === "start" && drift.value.some((each) => each.key === "cluster" || (each.key === "module" && each.values.module === module));
  confirm({
    title: t(`global.${word}.title`, { module }),
    text: t(`will.global_${word}`, { module, nodes: all.map((each) => each.node).join(", ") }),
    note: differs && html`<p class="note warn">${t("banner.module", { module })}</p>`,
    yes: t(`action.${word}`),
    kind: word === "stop" ? "danger" : "primary",
    action: () => all.forEach((each) => void command(t(`action.${word}`), each.node, [word, "-m", module])),
  });
}

/** @param {string} module @param {string} node */
export function snapshot(module, node) {
  void run(t("action.snapshot"), node, `safekit snapshot -m ${module}`, async () => {
    const answer = await get(at(me.value, node, `modules/${encodeURIComponent(module)}/snapshot`));
    save(answer.name, decoded(answer.base64), "application/zip");
    return { status: 0, output: answer.name };
  });
}

/** Whether a module starts at boot. @param {string} module @param {string} node */
function bootStart(module, node) {
  openDialog((close) => html`<${Boot} ...${{ module, node, close }} />`);
}

/** @param {any} props */
function Boot({ module, node, close }) {
  const state = useLoad(() => ask("POST", at(me.value, node, "command"), { arguments: ["boot", "status", "-m", module] }), [module, node]);
  const set = (/** @type {string} */ to) => {
    close();
    void command(t("action.boot"), node, ["boot", "-m", module, to]);
  };
  return html`<${Dialog} title=${t("action.boot.title", { module, node })} close=${close} actions=${html`
      <${Button} onClick=${() => set("off")} data-key="boot-off">${t("boot.off")}<//>
      <${Button} kind="primary" onClick=${() => set("on")} data-key="boot-on">${t("boot.on")}<//>`}>
    <p>${t("boot.text", { module, node })}</p>
    <${Panel} state=${state}>${(/** @type {any} */ data) => html`<pre class="output">${data.output}</pre>`}<//>
  <//>`;
}

/** The menu of a module on a server. @param {string} module @param {Place} place @returns {any[]} */
export function nodeMenu(module, place) {
  const all = placesOf(module);
  /** @param {string} word @param {string} [group] */
  const item = (word, group) => ({
    key: word.replace(" ", "-"), label: t(`action.${word.replace(" ", "_")}`), group,
    why: impossible(word, place, all), action: () => nodeCommand(word, module, place.node),
  });
  const mirror = place.row.mode === "mirror";
  const control = level.value >= 2 ? [
    item("start", t("menu.control")), item("stop"), item("restart"), mirror && item("swap"), item("stopstart"),
    ...(mirror ? [item("prim", t("menu.force")), item("second")] : []),
    ...(mirror ? [item("failover on", t("menu.failover")), item("failover off")] : []),
    level.value >= 3 && {
      key: "boot", group: t("menu.admin"), label: t("action.boot"),
      why: place.reachable ? "" : t("why.unreachable"), action: () => bootStart(module, place.node),
    },
  ] : [];
  return [...control, {
    key: "snapshot", group: t("menu.support"), label: t("action.snapshot"),
    why: place.reachable ? "" : t("why.unreachable"), action: () => snapshot(module, place.node),
  }].filter(Boolean);
}

/** The menu of a module on all its servers. @param {string} module @returns {any[]} */
export function globalMenu(module) {
  const all = placesOf(module);
  const fresh = all.some((each) => each.row.mode === "mirror" && each.row.verdict.reason.includes("never been started"));
  /** @param {"start" | "stop"} word */
  const item = (word) => ({
    key: word, label: t(`global.${word}`), action: () => globalCommand(word, module),
    why: fresh && word === "start" ? t("why.fresh")
      : all.some((each) => !impossible(word, each, all)) ? "" : t(word === "start" ? "why.allrunning" : "why.allstopped"),
  });
  return [item("start"), item("stop")];
}
