// XML as text with places: an edit changes the characters that it means, and leaves comments and layout alone.

/** @typedef {{name: string, value: string, start: number, end: number}} Attribute */
/** @typedef {{tag: string, attributes: Attribute[], children: Element[], parent: Element | null, start: number, openEnd: number,
 *   closeStart: number, end: number, empty: boolean}} Element `openEnd`: after the start tag; `closeStart`: where the end tag begins */

const ENTITIES = /** @type {Record<string, string>} */ ({ lt: "<", gt: ">", amp: "&", quot: '"', apos: "'" });

/** @param {string} text */
export function plain(text) {
  return text.replace(/&(?:#x([\da-f]+)|#(\d+)|(\w+));/gi, (whole, hex, decimal, name) =>
    hex ? String.fromCodePoint(parseInt(hex, 16)) : decimal ? String.fromCodePoint(Number(decimal)) : ENTITIES[name] ?? whole);
}

/** @param {string} text */
export function quoted(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll('"', "&quot;");
}

const TOKEN = /<!--[\s\S]*?-->|<!\[CDATA\[[\s\S]*?\]\]>|<\?[\s\S]*?\?>|<!(?:[^<>[\]]|\[[\s\S]*?\])*>|<\/\s*([\w:.-]+)\s*>|<([\w:.-]+)((?:\s+[\w:.-]+\s*=\s*(?:"[^"]*"|'[^']*'))*)\s*(\/?)>/g;
const ATTRIBUTE = /([\w:.-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')/g;

/** The tree of a document; null when its tags do not fit. @param {string} text @returns {Element | null} */
export function parse(text) {
  /** @type {Element | null} */
  let root = null;
  /** @type {Element | null} */
  let open = null;
  for (const found of text.matchAll(TOKEN)) {
    const [whole, closing, tag, attributes, slash] = found;
    const at = found.index;
    if (closing !== undefined) {
      if (!open || open.tag !== closing) return null;
      open.closeStart = at;
      open.end = at + whole.length;
      open = open.parent;
    } else if (tag !== undefined) {
      const base = at + 1 + tag.length;
      const element = /** @type {Element} */ ({
        tag, parent: open, children: [], start: at, openEnd: at + whole.length, closeStart: at + whole.length,
        end: at + whole.length, empty: slash === "/",
        attributes: [...(attributes ?? "").matchAll(ATTRIBUTE)].map((each) => ({
          name: each[1], value: plain(each[2] ?? each[3] ?? ""), start: base + each.index, end: base + each.index + each[0].length,
        })),
      });
      if (open) open.children.push(element);
      else if (root) return null;
      else root = element;
      if (!element.empty) open = element;
    }
  }
  return open ? null : root;
}

/** @param {Element} element @param {string} name */
export function value(element, name) {
  return element.attributes.find((each) => each.name === name)?.value ?? "";
}

/** Elements of that name below one, in the order of the file. @param {Element | null} element @param {string} tag @returns {Element[]} */
export function all(element, tag) {
  return element ? element.children.flatMap((each) => [...(each.tag === tag ? [each] : []), ...all(each, tag)]) : [];
}

/** @param {string} text @param {number} start @param {number} end @param {string} by */
const splice = (text, start, end, by) => text.slice(0, start) + by + text.slice(end);

/** Give an attribute a value; an empty one takes it away. @param {string} text @param {Element} element @param {string} name @param {string} to */
export function setAttribute(text, element, name, to) {
  const known = element.attributes.find((each) => each.name === name);
  if (known && to === "") return removeAttribute(text, known);
  if (known) return splice(text, known.start, known.end, `${name}="${quoted(to)}"`);
  if (to === "") return text;
  const at = element.attributes.at(-1)?.end ?? element.start + 1 + element.tag.length;
  return splice(text, at, at, ` ${name}="${quoted(to)}"`);
}

/** @param {string} text @param {Attribute} attribute */
export function removeAttribute(text, attribute) {
  const start = /\s*$/.exec(text.slice(0, attribute.start))?.index ?? attribute.start;
  return splice(text, start, attribute.end, "");
}

/** The indentation of the line on which something begins. @param {string} text @param {number} at */
function indent(text, at) {
  const line = text.lastIndexOf("\n", at - 1) + 1;
  return /^[ \t]*/.exec(text.slice(line, at))?.[0] ?? "";
}

/** Put an element at the end of another one. @param {string} text @param {Element} parent @param {string} child */
export function insert(text, parent, child) {
  const outer = indent(text, parent.start), inner = `${outer} `;
  const block = child.split("\n").join(`\n${inner}`);
  if (parent.empty) {
    const open = text.slice(parent.start, parent.openEnd).replace(/\s*\/>$/, ">");
    return splice(text, parent.start, parent.end, `${open}\n${inner}${block}\n${outer}</${parent.tag}>`);
  }
  const last = parent.children.at(-1);
  if (last) return splice(text, last.end, last.end, `\n${indent(text, last.start)}${block}`);
  const rest = text.slice(parent.openEnd, parent.closeStart).trimEnd();
  return splice(text, parent.openEnd, parent.closeStart, `${rest}\n${inner}${block}\n${outer}`);
}

/** Take an element and its line away. @param {string} text @param {Element} element */
export function remove(text, element) {
  const before = /\n?[ \t]*$/.exec(text.slice(0, element.start))?.index ?? element.start;
  return splice(text, before, element.end, "");
}

/** What the schema allows in an element: its description, found from the root. @param {any} schema @param {Element} element @returns {any} */
export function shape(schema, element) {
  if (!element.parent) return element.tag === schema.root ? schema.element : null;
  return shape(schema, element.parent)?.children[element.tag] ?? null;
}
