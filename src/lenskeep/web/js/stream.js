// The device's events over a fetch that stays open, because EventSource cannot carry a token. It comes back by itself
// and goes on after the last event that was seen.

import { ask } from "./api.js";

const SILENCE_MS = 40000; // a sign of life is promised every 15 s
const PAUSE_MS_MAX = 10000;

/** Split text/event-stream as it comes: `feed(text)` returns the events that are complete. */
export class Splitter {
  constructor() {
    this.rest = "";
    this.lastId = "";
  }

  feed(text) {
    const blocks = (this.rest + text).split("\n\n");
    this.rest = blocks.pop();
    return blocks.map((block) => this.read(block)).filter((event) => event !== null);
  }

  read(block) {
    const data = [];
    for (const line of block.split("\n")) {
      const colon = line.indexOf(":");
      const value = line.slice(colon + 1).replace(/^ /, "");
      if (line.startsWith("id:")) this.lastId = value;
      if (line.startsWith("data:")) data.push(value);
    }
    try {
      return data.length ? JSON.parse(data.join("\n")) : null;
    } catch {
      return null; // cut off in the middle when the line broke
    }
  }
}

export class EventLine {
  /** `opened()` each time the line stands; `heard(event)` for every event. */
  constructor(opened, heard) {
    this.opened = opened;
    this.heard = heard;
    this.open = false;
    this.lastId = "";
    this.ending = null;
  }

  start() {
    if (!this.ending) this.keep((this.ending = new AbortController()));
  }

  stop() {
    this.ending?.abort();
    this.ending = null;
    this.open = false;
  }

  async keep(ending) {
    let pause = 500;
    while (!ending.signal.aborted) {
      const begun = performance.now();
      try {
        await this.read(ending.signal);
      } catch {
        // refused or broken: the status poll says which, here it is only tried again
      }
      this.open = false;
      pause = performance.now() - begun > PAUSE_MS_MAX ? 500 : Math.min(pause * 2, PAUSE_MS_MAX);
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  async read(signal) {
    const silence = new AbortController();
    const stop = () => silence.abort();
    signal.addEventListener("abort", stop);
    let timer = setTimeout(stop, SILENCE_MS);
    try {
      const headers = { Accept: "text/event-stream", ...(this.lastId ? { "Last-Event-ID": this.lastId } : {}) };
      const answer = await ask("/v1/events", { headers, signal: silence.signal, patience: 0 });
      this.open = true;
      this.opened();
      const splitter = new Splitter();
      const reader = answer.body.getReader();
      const decoder = new TextDecoder();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(timer);
        timer = setTimeout(stop, SILENCE_MS);
        for (const event of splitter.feed(decoder.decode(value, { stream: true }))) this.heard(event);
        if (splitter.lastId) this.lastId = splitter.lastId;
      }
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop);
    }
  }
}
