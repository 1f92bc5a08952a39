// The editor: as text, or as XML with what the schema allows; mistakes are shown where they are (guide 3.8.1.1).
import { html, useEffect, useRef, useState } from "../lib.js";
import { t } from "../i18n.js";
import { ask, at, query } from "../api.js";
import { Button, Dialog, Icon, Tabs, useLoad } from "../parts.js";
import { me } from "../store.js";
import { all as allElements, insert, parse, remove, removeAttribute, setAttribute, shape, value } from "../xml.js";

/** @type {Promise<any> | null} */
let library = null;
const loadLibrary = () => (library ??= import("../vendor/codemirror.js"));

/** The elements of the schema as CodeMirror's completion wants them. @param {any} schema */
function elements(schema) {
  /** @type {Map<string, any>} */
  const found = new Map();
  const walk = (/** @type {string} */ name, /** @type {any} */ element) => {
    if (found.has(name)) return;
    found.set(name, { name, children: Object.keys(element.children), attributes: Object.keys(element.attributes), top: name === schema.root });
    for (const [child, below] of Object.entries(element.children)) walk(child, below);
  };
  walk(schema.root, schema.element);
  return [...found.values()];
}

/** A text field with line numbers and marks. @param {{text: string, change: (text: string) => void, xml: boolean, schema: any, findings: any[], line: number}} props */
export function TextEditor({ text, change, xml, schema, findings, line }) {
  const host = useRef(/** @type {any} */ (null));
  const view = useRef(/** @type {any} */ (null));
  useEffect(() => {
    let gone = false;
    void loadLibrary().then((cm) => {
      if (gone || !host.current) return;
      const root = host.current.shadowRoot ?? host.current.attachShadow({ mode: "open" });
      const style = cm.HighlightStyle.define([
        { tag: cm.tags.tagName, color: "var(--accent)" }, { tag: cm.tags.attributeName, color: "var(--magenta)" },
        { tag: cm.tags.attributeValue, color: "var(--green)" }, { tag: cm.tags.comment, color: "var(--muted)", fontStyle: "italic" },
      ]);
      const place = document.createElement("div");
      root.replaceChildren(place);
      view.current = new cm.EditorView({
        parent: place, root, doc: text, extensions: [
          cm.lineNumbers(), cm.history(), cm.drawSelection(), cm.highlightActiveLine(), cm.indentOnInput(), cm.bracketMatching(), cm.highlightSelectionMatches(),
          cm.syntaxHighlighting(style), cm.lintGutter(), cm.EditorView.lineWrapping,
          cm.EditorView.contentAttributes.of({ "aria-label": t("editor.text") }),
          ...(xml ? [cm.xml({ elements: schema ? elements(schema) : [], autoCloseTags: true }), cm.autocompletion()] : []),
          cm.keymap.of([...cm.defaultKeymap, ...cm.historyKeymap, ...cm.searchKeymap, ...cm.completionKeymap]),
          cm.EditorView.updateListener.of((/** @type {any} */ update) => update.docChanged && change(update.state.doc.toString())),
          cm.EditorView.theme({
            "&": { height: "56vh", color: "var(--text)", backgroundColor: "var(--surface)", fontSize: "13.5px" }, ".cm-scroller": { fontFamily: "var(--mono)" },
            ".cm-gutters": { backgroundColor: "var(--soft)", color: "var(--muted)", border: "none" }, ".cm-activeLine": { backgroundColor: "color-mix(in srgb, var(--accent-soft) 55%, transparent)" },
            ".cm-activeLineGutter": { backgroundColor: "var(--accent-soft)" }, ".cm-cursor": { borderLeftColor: "var(--text)" },
            "&.cm-focused .cm-selectionBackground, .cm-selectionBackground": { backgroundColor: "color-mix(in srgb, var(--accent) 30%, transparent) !important" },
            ".cm-tooltip": { backgroundColor: "var(--raised)", color: "var(--text)", border: "1px solid var(--line)" },
          }),
        ],
      });
      mark(cm, view.current, findings);
      host.current.dataset.ready = "true";
    });
    return () => { gone = true; view.current?.destroy(); view.current = null; };
  }, [schema]);
  useEffect(() => { void loadLibrary().then((cm) => view.current && mark(cm, view.current, findings)); }, [findings]);
  useEffect(() => {
    if (!line || !view.current) return;
    const place = view.current.state.doc.line(Math.min(line, view.current.state.doc.lines));
    view.current.dispatch({ selection: { anchor: place.from }, scrollIntoView: true });
    view.current.focus();
  }, [line]);
  return html`<div class="editor-host" ref=${host} data-key="text"></div>`;
}

/** @param {any} cm @param {any} view @param {any[]} findings */
function mark(cm, view, findings) {
  const { doc } = view.state;
  view.dispatch(cm.setDiagnostics(view.state, findings.map((each) => {
    const line = doc.line(Math.min(Math.max(each.line, 1), doc.lines));
    return { from: line.from, to: line.to, severity: each.severity, message: each.text };
  })));
}

/** The document as a tree that offers what the schema allows. @param {{text: string, change: (text: string) => void, schema: any}} props */
export function XmlEditor({ text, change, schema }) {
  const [mode, setMode] = useState("view");
  const tree = parse(text);
  if (!tree) return html`<div class="xml-tree"><p class="note bad">${t("editor.notree")}</p></div>`;
  return html`<div class="xml-tree ${mode}"><div class="tools"><${Tabs} label=${t("editor.mode")} value=${mode} change=${setMode} tabs=${["view", "insert", "erase"].map((key) => ({ key, label: t(`editor.${key}`) }))} /></div>
    <ul><${Branch} element=${tree} text=${text} change=${change} schema=${schema} mode=${mode} /></ul></div>`;
}

/** @param {any} props */
function Branch({ element, text, change, schema, mode }) {
  const allowed = schema ? shape(schema, element) : null;
  const erase = (/** @type {Event} */ event, /** @type {string} */ to) => {
    event.stopPropagation();
    change(to);
  };
  const present = new Set(element.attributes.map((/** @type {any} */ each) => each.name));
  return html`<li class=${mode === "erase" && element.parent ? "erasable" : ""} onClick=${mode === "erase" && element.parent ? (/** @type {Event} */ e) => erase(e, remove(text, element)) : null}>
    ${mode === "erase" && element.parent ? html`<button type="button" class="erasable" aria-label=${t("editor.erase.tag", { tag: element.tag })}>${"<"}<span class="xml-name">${element.tag}</span></button>`
      : html`${"<"}<span class="xml-name">${element.tag}</span>`}${element.attributes.map((/** @type {any} */ each) => html` <span class=${mode === "erase" ? "erasable" : ""}
        title=${allowed?.attributes[each.name] ?? ""} onClick=${mode === "erase" ? (/** @type {Event} */ e) => erase(e, removeAttribute(text, each)) : null}>${each.name}="${
        mode === "erase" ? html`<span class="xml-value">${each.value}</span>`
          : html`<input class="xml-value" size=${Math.max(4, each.value.length + 1)} aria-label=${`${element.tag} ${each.name}`} value=${each.value} onChange=${(/** @type {any} */ e) => change(setAttribute(text, element, each.name, e.target.value))} />`}"</span>`)}${">"}
    ${mode === "insert" && allowed && html`<span class="xml-adds">${Object.entries(allowed.attributes).filter(([name]) => !present.has(name)).map(([name, meaning]) => html` <button type="button" class="xml-add attribute-add" title=${meaning}
        onClick=${() => change(setAttribute(text, element, name, example(String(meaning))))}>${name}</button>`)}
      ${Object.keys(allowed.children).map((name) => html` <button type="button" class="xml-add tag-add" onClick=${() => change(insert(text, element, fresh(name, allowed.children[name])))}>${"<"}${name}${">"}</button>`)}</span>`}
    ${element.children.length > 0 && html`<ul>${element.children.map((/** @type {any} */ each, /** @type {number} */ i) => html`<${Branch} key=${`${each.tag}${i}`} element=${each} text=${text} change=${change} schema=${schema} mode=${mode} />`)}</ul>`}</li>`;
}

/** @param {string} meaning */
const example = (meaning) => (/\bon\b.*\boff\b/.test(meaning) ? "on" : /number|integer|whole/i.test(meaning) ? "1" : "?");
/** @param {string} name @param {any} below */
const fresh = (name, below) => `<${name}${below.required.map((/** @type {string} */ each) => ` ${each}="${example(below.attributes[each] ?? "")}"`).join("")}/>`;

/** What a file is for the check: its kind, or nothing. @param {string} path */
export function kindOf(path) {
  return path.endsWith("conf/userconfig.xml") ? "userconfig" : path.endsWith("cluster.xml") ? "cluster" : "";
}

/** Text and Xml with the findings below. @param {{text: string, change: (text: string) => void, kind: string, module: string, xml: boolean}} props */
export function Editor({ text, change, kind, module, xml }) {
  const [mode, setMode] = useState("text");
  const [findings, setFindings] = useState(/** @type {any[]} */ ([]));
  const [line, setLine] = useState(0);
  const schema = useLoad(() => (kind ? ask("GET", `schema/${kind}`) : Promise.resolve(null)), [kind]);
  useEffect(() => {
    if (!kind) return undefined;
    const timer = setTimeout(() => {
      ask("POST", "check", { kind, text, module }).then((data) => setFindings(data.findings), () => setFindings([]));
    }, 350);
    return () => clearTimeout(timer);
  }, [text, kind, module]);
  return html`${xml && html`<div class="tools" role="radiogroup" aria-label=${t("editor.mode")}>${["text", "xml"].map((each) => html`<label class="check"><input type="radio" name="editor-mode" checked=${mode === each} onChange=${() => setMode(each)} /> ${t(`editor.as.${each}`)}</label>`)}</div>`}
    <div class="editor">${schema.data === undefined && !schema.error ? "" : mode === "text"
      ? html`<${TextEditor} text=${text} change=${change} xml=${xml} schema=${schema.data} findings=${findings} line=${line} />`
      : html`<${XmlEditor} text=${text} change=${change} schema=${schema.data} />`}</div>
    ${kind && html`<ul class="findings" aria-live="polite">${!findings.length ? html`<li class="green"><${Icon} shape="green" /> ${t("editor.right")}</li>`
      : findings.map((each) => html`<li class=${each.severity === "error" ? "red" : "magenta"}><button type="button" onClick=${() => { setMode("text"); setLine(0); setTimeout(() => setLine(each.line)); }}><${Icon} shape="warn" />
        ${each.line > 0 && html` <b>${t("editor.line", { line: each.line })}</b>`} ${each.element && html`<code>${"<"}${each.element}${">"}</code> `}${each.text}</button></li>`)}</ul>`}`;
}

/** A file of a server in the editor. @param {{node: string, path: string, close: () => void, saved?: () => void}} props */
export function FileEditor({ node, path, close, saved = () => undefined }) {
  const where = (/** @type {Record<string, string>} */ more = {}) => at(me.value, node, `file${query({ path, ...more })}`);
  const [file, setFile] = useState(/** @type {any} */ (null));
  const [text, setText] = useState("");
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  const [other, setOther] = useState(/** @type {string | null} */ (null));
  const load = () => ask("GET", where()).then((data) => { setFile(data); setText(data.text ?? ""); setOther(null); setProblem(""); },
    (error) => setProblem(error.message));
  useEffect(() => { void load(); }, []);
  const dirty = file !== null && text !== (file.text ?? "");
  const write = async (/** @type {string} */ match) => {
    setBusy(true);
    try {
      const done = await ask("PUT", where(), { text }, { "If-Match": `"${match}"` });
      setFile({ ...file, text, etag: done.etag });
      setOther(null);
      setProblem("");
      saved();
    } catch (error) {
      setProblem(/** @type {any} */ (error).message);
      if (/** @type {any} */ (error).status === 412) ask("GET", where()).then((data) => setOther(data.text ?? ""), () => undefined);
    } finally {
      setBusy(false);
    }
  };
  const leave = () => { if (!dirty || globalThis.confirm(t("editor.leave"))) close(); };
  const xml = path.endsWith(".xml");
  return html`<${Dialog} title=${path.split("/").slice(1).join("/")} label=${path} close=${leave} wide=${true} actions=${html`
      <span class="push muted">${node}${dirty ? ` · ${t("editor.dirty")}` : ""}</span><${Button} onClick=${leave}>${t("close")}<//>
      <${Button} kind=${dirty ? "changed" : "primary"} busy=${busy} disabled=${!dirty} data-key="save-file" onClick=${() => void write(file.etag)}>${t("save")}<//>`}>
    ${problem && html`<p class="note bad" role="alert">${problem}</p>`}
    ${other !== null && html`<div class="note warn"><p>${t("editor.meanwhile")}</p><details><summary>${t("editor.theirs")}</summary><pre class="output">${other}</pre></details>
      <${Button} kind="small" onClick=${() => void load()}>${t("editor.take")}<//> <${Button} kind="small danger" onClick=${() => void write("*")}>${t("editor.mine")}<//></div>`}
    ${file && (file.text === undefined ? html`<p class="note">${t("editor.binary")}</p>`
      : html`<${Editor} text=${text} change=${setText} kind=${path.startsWith("modules/") || path.includes("/conf/userconfig.xml") ? kindOf(path) : ""} module=${path.startsWith("modules/") ? path.split("/")[1] : ""} xml=${xml} />`)}<//>`;
}
