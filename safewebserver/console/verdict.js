// What the servers say of a module, put together in one verdict. Pure: rows in, words out.

/** @typedef {{module: string, mode: string, state: string, color: string, since: number, running: boolean,
 *   configured: boolean, degraded: boolean, failover: string, uptodate: string, encryption: string, signature: string,
 *   stamp: string, down: string[], shares: Record<string, string>, virtual: string[], replicated: string[],
 *   verdict: {kind: string, since: number, reason: string, next_step: string},
 *   reintegration: null | {files: number, files_total: number, bytes: number, bytes_total: number,
 *     bytes_per_second: number, seconds_left: number | null, kind: string}}} Row */
/** @typedef {{node: string, reachable: boolean, problem: null | {kind: string, text: string, next_step: string},
 *   version: string, cluster: string, configured: boolean, ahead: number, at: number, modules: Record<string, Row>}} Server */
/** @typedef {{node: string, reachable: boolean, at: number, row: Row}} Place */
/** @typedef {{kind: "protected" | "degraded" | "risk" | "stopped" | "unknown", key: string, values: Record<string, unknown>,
 *   since: number, serving: string[], step: null | {key: string, node: string, action: string[]}}} Verdict */

export const RANK = { risk: 0, degraded: 1, unknown: 2, stopped: 3, protected: 4 };
const SERVING = ["PRIM", "ALONE", "UP"];

/** Where a module is installed. @param {Record<string, Server>} nodes @param {string[]} order @param {string} module
 * @returns {Place[]} */
export function places(nodes, order, module) {
  return order.filter((name) => nodes[name]?.modules[module])
    .map((name) => ({ node: name, reachable: nodes[name].reachable, at: nodes[name].at, row: nodes[name].modules[module] }));
}

/** @param {Place[]} all @returns {Verdict} */
export function judge(all) {
  const seen = all.filter((each) => each.reachable);
  const lost = all.filter((each) => !each.reachable);
  const mirror = all.some((each) => each.row.mode === "mirror");
  const serving = seen.filter((each) => SERVING.includes(each.row.state) && each.row.running);
  const green = serving.filter((each) => each.row.color === "green");
  const since = Math.max(0, ...seen.map((each) => each.row.since));
  const verdict = mirror ? pair(seen, serving) : farm(seen, green, serving);
  if (lost.length && verdict.kind === "stopped") {
    return { ...verdict, kind: "unknown", key: "unknown", values: { node: lost[0].node }, since: lost[0].at, step: null };
  }
  if (lost.length && verdict.kind === "protected" && !mirror) {
    return { ...verdict, kind: "degraded", key: "unreachable", values: { node: lost[0].node }, since: lost[0].at };
  }
  return { since, ...verdict };
}

/** @param {Verdict["kind"]} kind @param {string} key @param {Record<string, unknown>} values @param {Place[]} serving
 * @param {Verdict["step"]} step */
function made(kind, key, values, serving, step = null) {
  const since = Math.max(0, ...serving.map((each) => each.row.since));
  return { kind, key, values, serving: serving.map((each) => each.node), step, ...(serving.length ? { since } : {}) };
}

/** @param {Place[]} seen @param {Place[]} serving @returns {any} */
function pair(seen, serving) {
  const alone = seen.filter((each) => each.row.state === "ALONE" && each.row.running);
  const [first] = serving;
  const second = seen.find((each) => each.row.state === "SECOND" && each.row.running);
  const module = seen[0]?.row.module ?? "";
  if (alone.length > 1) return made("risk", "split", {}, alone);
  if (first?.row.degraded) {
    return made("risk", "replication", { node: first.node }, [first],
      { key: "restart", node: first.node, action: ["stopstart", "-m", module] });
  }
  if (first && first.row.color !== "green") return made("degraded", "moving", { node: first.node }, [first]);
  if (first && second) {
    if (second.row.color === "magenta") return made("degraded", "copying", { node: second.node }, [first]);
    if (first.row.state === "PRIM" && second.row.color === "green") {
      const off = [first, second].find((each) => each.row.failover === "off");
      return off
        ? made("degraded", "failover_off", { node: first.node, other: second.node }, [first],
          { key: "failover_on", node: off.node, action: ["failover", "on", "-m", module] })
        : made("protected", "pair", { node: first.node, other: second.node }, [first]);
    }
    return made("degraded", "moving", { node: first.node }, [first]);
  }
  if (first?.row.state === "PRIM") {
    // Its heartbeats reach the secondary, only its web service does not answer us.
    return made(first.row.verdict.kind === "protected" ? "protected" : "degraded", "pair_unseen", { node: first.node }, [first]);
  }
  if (first) {
    const stopped = seen.find((each) => each.row.state === "STOP");
    const waits = seen.find((each) => each.row.state === "WAIT");
    if (stopped) {
      return made("degraded", "alone_stopped", { node: first.node, other: stopped.node }, [first],
        { key: "start", node: stopped.node, action: ["start", "-m", module] });
    }
    if (waits) return made("degraded", "alone_waits", { node: first.node, other: waits.node, what: waits.row.down[0] ?? "" }, [first]);
    return made("degraded", "alone", { node: first.node }, [first]);
  }
  const fresh = seen.find((each) => each.row.verdict.reason.includes("never been started"));
  const waits = seen.find((each) => each.row.state === "WAIT");
  if (waits && waits.row.color === "magenta") return made("stopped", "starting", { node: waits.node }, []);
  if (waits && waits.row.uptodate === "down") {
    const better = seen.find((each) => each !== waits && each.row.state === "STOP" && each.row.uptodate === "up");
    return { ...made("risk", "waits_data", { node: waits.node }, [],
      better ? { key: "start", node: better.node, action: ["start", "-m", module] } : null), since: waits.row.since };
  }
  if (waits) return { ...made("stopped", "waits", { node: waits.node, what: waits.row.down[0] ?? "" }, []), since: waits.row.since };
  if (second) return { ...made("stopped", "starting", { node: second.node }, []), since: second.row.since };
  if (!seen.some((each) => each.row.configured)) return made("stopped", "unconfigured", {}, []);
  if (fresh) return made("stopped", "fresh", {}, []);
  const best = seen.find((each) => each.row.uptodate === "up") ?? seen[0];
  return made("stopped", "stopped", {}, [],
    best ? { key: "start", node: best.node, action: ["start", "-m", module] } : null);
}

/** @param {Place[]} seen @param {Place[]} green @param {Place[]} serving @returns {any} */
function farm(seen, green, serving) {
  const module = seen[0]?.row.module ?? "";
  const missing = seen.filter((each) => !green.includes(each));
  if (!seen.some((each) => each.row.configured)) return made("stopped", "unconfigured", {}, []);
  if (!green.length) {
    if (serving.length || seen.some((each) => each.row.color === "magenta")) {
      return made("stopped", "starting", { node: (serving[0] ?? seen[0]).node }, []);
    }
    return made("stopped", "stopped", {}, [],
      seen[0] ? { key: "start", node: seen[0].node, action: ["start", "-m", module] } : null);
  }
  if (seen[0].row.mode !== "farm") return made("protected", "light", { node: green[0].node }, green);
  if (missing.length) {
    const stopped = missing.find((each) => each.row.state === "STOP");
    return made("degraded", green.length === 1 ? "farm_one" : "farm_part",
      { node: green[0].node, count: green.length, all: seen.length, missing: missing.map((each) => each.node).join(", ") },
      green, stopped ? { key: "start", node: stopped.node, action: ["start", "-m", module] } : null);
  }
  return made(green.length > 1 ? "protected" : "degraded", green.length > 1 ? "farm" : "farm_one",
    { node: green[0].node, count: green.length, all: seen.length, missing: "" }, green);
}

/** What differs between servers that should be equal. @param {Record<string, Server>} nodes @param {string[]} order */
export function differences(nodes, order) {
  const seen = order.map((name) => nodes[name]).filter((each) => each?.reachable);
  const found = [];
  if (new Set(seen.map((each) => each.version)).size > 1) found.push({ key: "versions", values: {} });
  if (new Set(seen.map((each) => each.cluster)).size > 1) found.push({ key: "cluster", values: {} });
  const ahead = seen.filter((each) => Math.abs(each.ahead) > 2);
  for (const each of ahead) found.push({ key: "clock", values: { node: each.node, seconds: Math.round(each.ahead) } });
  const modules = new Set(seen.flatMap((each) => Object.keys(each.modules)));
  for (const module of modules) {
    const signatures = new Set(seen.map((each) => each.modules[module]?.signature).filter(Boolean));
    if (signatures.size > 1) found.push({ key: "module", values: { module } });
  }
  return found;
}
