// The stream of events: one for all pages of a browser, which has few connections to a server.
// The page that leads reads it and tells the others; when it goes, or is silent, another one leads.
import { HEADER } from "./api.js";

const BEAT = 1000;
const SILENT = 3500;
const DEAD = 25000;

/** Server-sent events in a text that comes in pieces. */
export class Parser {
  constructor() {
    this.rest = "";
  }

  /** @param {string} text @returns {{type: string, data: string, id: string}[]} */
  feed(text) {
    const blocks = (this.rest + text).split("\n\n");
    this.rest = blocks.pop() ?? "";
    const found = [];
    for (const block of blocks) {
      let type = "message", id = "";
      const data = [];
      for (const line of block.split("\n")) {
        if (line.startsWith("event: ")) type = line.slice(7);
        else if (line.startsWith("data: ")) data.push(line.slice(6));
        else if (line.startsWith("id: ")) id = line.slice(4);
      }
      if (data.length) found.push({ type, data: data.join("\n"), id });
    }
    return found;
  }
}

export class Stream {
  /** @param {{event: (type: string, data: any) => void, state: (up: boolean) => void, snapshot: () => any, login: () => void}} ears */
  constructor(ears) {
    this.ears = ears;
    this.id = crypto.getRandomValues(new Uint32Array(1))[0];
    this.leads = false;
    this.stopped = false;
    this.last = "";
    this.heard = 0;
    this.wait = 1000;
    /** @type {AbortController | null} */
    this.reading = null;
    this.channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("safekit") : null;
    if (this.channel) this.channel.onmessage = (event) => this.told(event.data);
    this.timer = setInterval(() => this.beat(), BEAT);
    addEventListener("pagehide", () => this.leads && this.channel?.postMessage({ kind: "bye" }));
    this.heard = performance.now();
    if (this.channel) {
      this.channel.postMessage({ kind: "hello" });
      setTimeout(() => !this.known && !this.leads && this.lead(), 150);
    } else this.lead();
  }

  lead() {
    if (this.stopped || this.leads) return;
    this.leads = true;
    this.channel?.postMessage({ kind: "lead", id: this.id });
    void this.run();
  }

  follow() {
    this.leads = false;
    this.reading?.abort();
  }

  stop() {
    this.stopped = true;
    this.follow();
    clearInterval(this.timer);
    this.channel?.close();
  }

  beat() {
    if (this.leads) {
      this.channel?.postMessage({ kind: "beat", id: this.id });
      if (performance.now() - this.heard > DEAD) this.reading?.abort();
    } else if (performance.now() - this.heard > SILENT && !document.hidden) this.lead();
  }

  /** @param {any} message */
  told(message) {
    switch (message.kind) {
      case "hello":
        if (this.leads) this.channel?.postMessage({ kind: "event", type: "snapshot", data: this.ears.snapshot() });
        break;
      case "lead":
      case "beat":
        // Who spoke last leads; two at the same moment: the smaller number.
        if (this.leads && (message.kind === "lead" || message.id < this.id)) this.follow();
        if (!this.leads) this.heard = performance.now();
        this.known = true;
        break;
      case "bye":
        this.heard = -Infinity;
        setTimeout(() => this.beat(), Math.random() * 200);
        break;
      case "event":
        if (!this.leads) {
          this.known = true;
          if (message.id) this.last = message.id;
          if (message.data !== null) this.ears.event(message.type, message.data);
        }
        break;
      case "state":
        if (!this.leads) this.ears.state(message.up);
        break;
    }
  }

  /** @param {boolean} up */
  say(up) {
    this.ears.state(up);
    this.channel?.postMessage({ kind: "state", up });
  }

  async run() {
    while (this.leads && !this.stopped) {
      this.reading = new AbortController();
      try {
        await this.read(this.reading.signal);
      } catch {
        // The connection broke; what was missed comes with the next one.
      }
      if (!this.leads || this.stopped) return;
      this.say(false);
      await new Promise((done) => setTimeout(done, this.wait));
      this.wait = Math.min(this.wait * 2, 8000);
    }
  }

  /** @param {AbortSignal} signal */
  async read(signal) {
    const headers = { ...HEADER, Accept: "text/event-stream", ...(this.last ? { "Last-Event-ID": this.last } : {}) };
    const answer = await fetch("/api/v1/events", { headers, signal, cache: "no-store" });
    if (answer.status === 401) {
      this.ears.login();
      this.stop();
      return;
    }
    if (!answer.ok || !answer.body) return;
    this.heard = performance.now();
    this.wait = 1000;
    this.say(true);
    const parser = new Parser();
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      this.heard = performance.now();
      for (const event of parser.feed(value)) {
        if (event.type === "ended") {
          this.ears.login();
          this.stop();
          return;
        }
        const data = JSON.parse(event.data);
        if (event.id) this.last = event.id;
        this.ears.event(event.type, data);
        this.channel?.postMessage({ kind: "event", type: event.type, data, id: event.id });
      }
    }
  }
}
