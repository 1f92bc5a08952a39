// The parts that all pages are made of.
import { html, signal, useEffect, useLayoutEffect, useRef, useState } from "./lib.js";
import { t } from "./i18n.js";
import { ApiError } from "./api.js";

/** Outlines on a square of 16, by name. */
const SHAPES = {
  green: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm3.6 5.1-4.3 4.6a.9.9 0 0 1-1.3 0L4.3 8.9a.8.8 0 1 1 1.2-1.1l1.1 1.1L10.4 5a.8.8 0 0 1 1.2 1.1Z",
  magenta: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm0 1.8v10.4A5.2 5.2 0 0 1 8 2.8Z",
  red: "M2.5 1.5h11a1 1 0 0 1 1 1v11a1 1 0 0 1-1 1h-11a1 1 0 0 1-1-1v-11a1 1 0 0 1 1-1Zm2.6 2.7a.8.8 0 0 0-.9 1.2L6.8 8l-2.6 2.6a.8.8 0 0 0 1.2 1.2L8 9.2l2.6 2.6a.8.8 0 0 0 1.2-1.2L9.2 8l2.6-2.6a.8.8 0 0 0-1.2-1.2L8 6.8 5.4 4.2Z",
  grey: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm0 1.6a5.4 5.4 0 1 1 0 10.8A5.4 5.4 0 0 1 8 2.6ZM5 7.2h6v1.6H5Z",
  warn: "M8 1.2c.4 0 .7.2.9.5l6 11a1 1 0 0 1-.9 1.5H2a1 1 0 0 1-.9-1.5l6-11c.2-.3.5-.5.9-.5Zm-.8 4.6v4h1.6v-4Zm0 5v1.5h1.6v-1.5Z",
  more: "M8 2.2a1.4 1.4 0 1 1 0 2.8 1.4 1.4 0 0 1 0-2.8Zm0 4.4a1.4 1.4 0 1 1 0 2.8 1.4 1.4 0 0 1 0-2.8Zm0 4.4a1.4 1.4 0 1 1 0 2.8 1.4 1.4 0 0 1 0-2.8Z",
  close: "M3.5 2.4 8 6.9l4.5-4.5 1.1 1.1L9.1 8l4.5 4.5-1.1 1.1L8 9.1l-4.5 4.5-1.1-1.1L6.9 8 2.4 3.5Z",
  open: "M9 2h5v5h-1.6V4.7L7.6 9.5 6.5 8.4l4.8-4.8H9ZM3 4h4v1.5H3.6v7h7V9H12v4a1 1 0 0 1-1 1H3a1 1 0 0 1-1-1V5a1 1 0 0 1 1-1Z",
  help: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm.9 10.8H7.2v-1.6h1.7Zm.9-4.6c-.5.6-1 .8-1 1.6v.4H7.3v-.6c0-1.1.7-1.6 1.2-2.2.3-.3.5-.6.5-1 0-.6-.4-1-1-1s-1.1.4-1.2 1.1L5.2 5.2A2.7 2.7 0 0 1 8 3c1.500 0 2.700 1 2.700 2.400 0 .800-.400 1.300-.900 1.800Z",
  folder: "M1.500 3a1 1 0 0 1 1-1h3.400l1.600 1.800h6a1 1 0 0 1 1 1V13a1 1 0 0 1-1 1h-11a1 1 0 0 1-1-1Z",
  file: "M3.500 1h6l3.500 3.500V14a1 1 0 0 1-1 1h-8.500a1 1 0 0 1-1-1V2a1 1 0 0 1 1-1Zm5.200 1.500v2.800h2.800Z",
  box: "M8 1l6 3v8l-6 3-6-3V4Zm0 1.700L4.400 4.500 8 6.300l3.600-1.800ZM3.500 5.800v5.300l3.700 1.800V7.600Z",
  right: "M5.500 2.500 11 8l-5.500 5.500-1.100-1.100L8.800 8 4.400 3.600Z",
};

/** @param {{shape: keyof typeof SHAPES, title?: string}} props */
export function Icon({ shape, title = "" }) {
  return html`<svg class="icon" viewBox="0 0 16 16" aria-hidden=${title ? null : "true"} role=${title ? "img" : null}
    aria-label=${title || null}><path d=${SHAPES[shape]} fill-rule="evenodd" /></svg>`;
}

/** State of a module on a server: word, shape and colour. @param {{row: import("./verdict.js").Row, reachable?: boolean, age?: string}} props */
export function State({ row, reachable = true, age = "" }) {
  const color = reachable ? (/** @type {any} */ (["green", "magenta", "red"]).includes(row.color) ? row.color : "grey") : "grey";
  const word = row.configured ? row.state : t("state.unconfigured");
  const phase = row.color === "magenta" && reachable ? ` ${t("state.moving")}` : "";
  const title = reachable ? `${word} (${t(`color.${color}`)})` : t("state.unreachable");
  return html`<span class="state ${color}" title=${title}><${Icon} shape=${color} /><span>${word}${phase}</span>${
    !reachable && html` <small>${age || t("state.unreachable")}</small>`}${
    reachable && row.degraded && html`<span class="tag red">${t("state.degraded")}</span>`}</span>`;
}

const VERDICT = /** @type {const} */ ({ protected: "green", degraded: "magenta", risk: "red", stopped: "grey", unknown: "grey" });

/** @param {{kind: keyof typeof VERDICT}} props */
export function Kind({ kind }) {
  const shape = kind === "degraded" || kind === "risk" ? "warn" : VERDICT[kind];
  return html`<span class="kind ${VERDICT[kind]}"><${Icon} shape=${shape} /><span>${t(`verdict.${kind}`)}</span></span>`;
}

/** @param {any} props */
export function Button({ children, kind = "", busy = false, why = "", ...rest }) {
  const { disabled, title, ...others } = rest;
  return html`<button type="button" ...${others} class="button ${kind}" disabled=${disabled || busy || !!why || null}
    title=${why || title || null} aria-busy=${busy || null}>${children}</button>`;
}

/** Where a menu that hangs over the page stands: below its button, inside the window.
 * @param {HTMLElement} menu @param {{left: number, right: number, top: number, bottom: number}} at */
function stand(menu, at) {
  const { width, height } = menu.getBoundingClientRect();
  const left = Math.max(4, Math.min(at.right - width, innerWidth - width - 4));
  const below = at.bottom + 4 + height <= innerHeight;
  menu.style.left = `${left}px`;
  menu.style.top = `${Math.max(4, below ? at.bottom + 4 : at.top - height - 4)}px`;
}

/** A button that opens a menu. An item: {key, label, action, why?, group?}; with `why` it cannot be chosen, and says so.
 * @param {any} props */
export function Menu({ label, items, text = "", kind = "icon-button", shape = "more" }) {
  const [at, setAt] = useState(/** @type {any} */ (null));
  const button = useRef(/** @type {any} */ (null));
  return html`<span class="menu-place" onContextMenu=${(/** @type {MouseEvent} */ event) => event.stopPropagation()}>
    <button type="button" ref=${button} class=${kind} aria-haspopup="menu" aria-expanded=${at !== null} aria-label=${text ? null : label}
      title=${label} onClick=${() => setAt(at ? null : button.current.getBoundingClientRect())}>
      ${text}<${Icon} shape=${shape} /></button>
    ${at && html`<${MenuList} label=${label} items=${items} at=${at} close=${() => {
      setAt(null);
      button.current?.focus();
    }} />`}</span>`;
}

/** The open list of a menu. @param {any} props */
export function MenuList({ label, items, at, close }) {
  const list = useRef(/** @type {any} */ (null));
  useLayoutEffect(() => {
    stand(list.current, at);
    list.current.querySelector("[role=menuitem]:not([aria-disabled=true])")?.focus();
    /** @param {Event} event */
    const outside = (event) => { if (!list.current?.contains(event.target)) close(); };
    addEventListener("pointerdown", outside, true);
    addEventListener("resize", close);
    return () => {
      removeEventListener("pointerdown", outside, true);
      removeEventListener("resize", close);
    };
  }, []);
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const all = /** @type {HTMLElement[]} */ ([...list.current.querySelectorAll("[role=menuitem]")]);
    const now = all.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    const to = { ArrowDown: now + 1, ArrowUp: now - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to !== undefined) all[(to + all.length) % all.length]?.focus();
    else if (event.key === "Escape" || event.key === "Tab") close();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  /** @type {string} */
  let group = "";
  return html`<div class="menu" role="menu" aria-label=${label} ref=${list} onKeyDown=${key}>
    ${items.filter(Boolean).map((/** @type {any} */ item) => {
      const first = item.group !== undefined && item.group !== group;
      group = item.group ?? group;
      return html`${first && html`<div class="menu-group" role="presentation">${item.group}</div>`}
        <button type="button" role="menuitem" tabindex="-1" class="menu-item ${item.kind ?? ""}" data-key=${item.key}
        aria-disabled=${item.why ? "true" : null} onClick=${() => {
          if (item.why) return;
          close();
          item.action();
        }}><span>${item.label}</span>${item.why && html`<small>${item.why}</small>`}</button>`;
    })}</div>`;
}

/** Dialogs that are open, the last one on top. */
const dialogs = signal(/** @type {{id: number, view: any}[]} */ ([]));
let dialogCount = 0;

/** Open a dialog; `view` is called with a function that closes it. @param {(close: () => void) => any} view */
export function openDialog(view) {
  const id = ++dialogCount;
  const close = () => { dialogs.value = dialogs.value.filter((each) => each.id !== id); };
  dialogs.value = [...dialogs.value, { id, view: view(close) }];
  return close;
}

export function Dialogs() {
  return html`${dialogs.value.map((each) => html`<div key=${each.id}>${each.view}</div>`)}`;
}

/** @param {any} props */
export function Dialog({ title, children, close, wide = false, actions = null, label = "" }) {
  const box = useRef(/** @type {any} */ (null));
  useEffect(() => {
    box.current.showModal();
  }, []);
  return html`<dialog class="dialog ${wide ? "wide" : ""}" ref=${box} aria-label=${label || title}
    onCancel=${(/** @type {Event} */ event) => { event.preventDefault(); close(); }}>
    <header><h2>${title}</h2><button type="button" class="icon-button" aria-label=${t("close")} onClick=${close}>
      <${Icon} shape="close" /></button></header>
    <div class="dialog-body">${children}</div>
    ${actions && html`<footer>${actions}</footer>`}
  </dialog>`;
}

/** Ask before something is done. `word`: what must be typed first. @param {any} options */
export function confirm({ title, text, yes, kind = "primary", word = "", note = null, action }) {
  openDialog((close) => html`<${Confirm} ...${{ title, text, yes, kind, word, note, action, close }} />`);
}

/** @param {any} props */
function Confirm({ title, text, yes, kind, word, note, action, close }) {
  const [typed, setTyped] = useState("");
  const go = () => {
    close();
    action();
  };
  const ready = !word || typed.trim() === word;
  return html`<${Dialog} title=${title} close=${close} actions=${html`
      <${Button} onClick=${close}>${t("cancel")}<//>
      <${Button} kind=${kind} disabled=${!ready} onClick=${go} data-key="confirm" autofocus=${!word}>${yes}<//>`}>
    <p>${text}</p>
    ${note}
    ${word && html`<label class="field">${t("confirm.type", { word })}
      <input value=${typed} autocomplete="off" spellcheck=${false}
        onInput=${(/** @type {any} */ event) => setTyped(event.target.value)}
        onKeyDown=${(/** @type {KeyboardEvent} */ event) => event.key === "Enter" && ready && go()} /></label>`}
  <//>`;
}

/** Tabs by the pattern of ARIA. @param {{label: string, tabs: {key: string, label: any, why?: string, kind?: string}[], value: string, change: (key: string) => void, kind?: string}} props */
export function Tabs({ label, tabs, value, change, kind = "" }) {
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const all = /** @type {HTMLElement[]} */ ([.../** @type {any} */ (event.currentTarget).querySelectorAll("[role=tab]:not(:disabled)")]);
    const next = all[(all.indexOf(/** @type {any} */ (document.activeElement)) + step + all.length) % all.length];
    next?.focus();
    next?.click();
    event.preventDefault();
  };
  return html`<div class="tabs ${kind}" role="tablist" aria-label=${label} onKeyDown=${key}>${tabs.map((tab) => html`
    <button type="button" role="tab" key=${tab.key} data-key=${tab.key} class=${tab.kind ?? ""} aria-selected=${tab.key === value}
      tabindex=${tab.key === value ? 0 : -1} disabled=${!!tab.why || null} title=${tab.why || null}
      onClick=${() => change(tab.key)}>${tab.label}</button>`)}</div>`;
}

/** What a panel shows while it loads, when it failed, and when there is nothing.
 * @param {{state: Loaded<any>, children: (data: any) => any, empty?: (data: any) => boolean, nothing?: any}} props */
export function Panel({ state, children, empty, nothing }) {
  if (state.error) {
    const error = state.error;
    const key = error instanceof ApiError && error.status === 403 ? "forbidden"
      : error instanceof ApiError && (error.status === 502 || error.status === 0) ? "unreachable" : "failed";
    return html`<div class="note ${key === "forbidden" ? "" : "bad"}" role="alert"><strong>${t(`panel.${key}`)}</strong>
      ${error.message && html`<p>${error.message}</p>`}${error.step && html`<p>${t("next")}: ${error.step}</p>`}</div>`;
  }
  if (state.data === undefined) return state.slow ? html`<div class="skeleton" aria-busy="true" aria-label=${t("panel.loading")}><i /><i /><i /></div>` : null;
  if (empty?.(state.data)) return html`<div class="empty">${nothing}</div>`;
  return children(state.data);
}

/** @template T @typedef {{data: T | undefined, error: any, slow: boolean, again: () => void}} Loaded */

/** Load something whenever `keys` change, and every `every` ms. What is shown stays until the new one is there.
 * @param {() => Promise<any>} work @param {any[]} keys @param {number} [every] @returns {Loaded<any>} */
export function useLoad(work, keys, every = 0) {
  const [state, setState] = useState(/** @type {any} */ ({ data: undefined, error: null, slow: false }));
  const [round, setRound] = useState(0);
  const place = useRef("");
  const where = JSON.stringify(keys);
  useEffect(() => {
    let gone = false;
    const moved = place.current !== where;
    place.current = where;
    if (moved) setState({ data: undefined, error: null, slow: false });
    const slow = setTimeout(() => !gone && setState((/** @type {any} */ s) => ({ ...s, slow: true })), 300);
    work().then((data) => !gone && setState({ data, error: null, slow: false }),
      (error) => !gone && setState({ data: undefined, error, slow: false })).finally(() => clearTimeout(slow));
    return () => { gone = true; clearTimeout(slow); };
  }, [where, round]);
  useEffect(() => {
    if (!every) return undefined;
    const timer = setInterval(() => !document.hidden && setRound((n) => n + 1), every);
    return () => clearInterval(timer);
  }, [where, every]);
  return { ...state, again: () => setRound((n) => n + 1) };
}

/** @param {{part: number, label: string}} props `part`: 0 to 1 */
export function Progress({ part, label }) {
  return html`<progress class="progress" max="1" value=${part} aria-label=${label}></progress>`;
}

/** A file for the administrator's own disk. @param {string} name @param {BlobPart} content @param {string} [type] */
export function save(name, content, type = "text/plain") {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** @param {string} base64 */
export function decoded(base64) {
  return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
}

/** @param {File} file @returns {Promise<string>} base64 */
export function encoded(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(String(reader.result).split(",")[1] ?? "");
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });
}
