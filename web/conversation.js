/** The messages on the page, and the requests that answer them. */

import { Backoff, Failure, getJson, pause, postJson } from "./api.js";

const POLL_MS = 500;
const TAGS = { mic: "recording", sound: "say", heard: "spoken" }; // by how a message was sent
const $ = (id) => document.getElementById(id);

const element = (tag, name = "", text = "") => Object.assign(document.createElement(tag), { className: name, textContent: text });
const icon = (name) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `web/icons.svg#${name}`);
  svg.append(use);
  return svg;
};

/** Animated dots; screen readers read `words`. */
const typing = (words) => {
  const dots = element("span", "typing");
  dots.append(element("i"), element("i"), element("i"), element("span", "visually-hidden", words));
  return dots;
};

/**
 * Events: "job" {status, key, chat, latency, of, done} whenever a job changes, "sent" when a message is sent, "fresh" when the
 * user asks for a new chat, "warnings" with sentences about what was not spoken. `status`, `key` and `chat` (whether a
 * language model answers) describe the most advanced job; `latency` and `done` describe the job of bubble `of`.
 */
export class Conversation extends EventTarget {
  #log = $("log");
  #session = "";
  #jobs = new Map(); // bubble → latest status of its job
  #heard = ""; // the sentence being spoken
  #stays = true; // scrolled to the end

  constructor() {
    super();
    this.#log.addEventListener("scroll", () => (this.#stays = this.#atEnd()));
    new ResizeObserver(() => this.#stays && this.#toEnd()).observe(this.#log);
  }

  /** Show another session's messages. */
  async open(session) {
    this.#session = session;
    this.#jobs.clear(); // running jobs belong to the previous session
    this.#changed();
    this.#log.replaceChildren($("empty"));
    $("empty").hidden = false;
    const messages = await getJson(`chat/${session}`).catch(() => []);
    if (session !== this.#session) return;
    for (const { role, content } of messages) this.#bubble(role === "user" ? "user" : "presenter", content);
  }

  /** Highlight the sentence being spoken; "" for none. */
  mark(sentence) {
    if (sentence === this.#heard) return;
    this.#heard = sentence;
    for (const [bubble, job] of this.#jobs) if (job.reply) this.#show(bubble, job);
  }

  /** Send a message: POST /chat, then poll GET /status until it is done. */
  async ask(message, options, symbol = "") {
    const bubble = this.#begin(message, symbol);
    try {
      const started = await postJson("chat", { message, session_id: this.#session, ...options });
      await this.#follow(started.job_id, bubble);
    } catch (failure) {
      this.#fail(bubble, failure, () => this.ask(message, options, symbol));
    } finally {
      this.#end(bubble);
    }
  }

  /** Speak a text without an answer: POST /speak. */
  async say(text, options) {
    await this.#speak(text, "", (session) => postJson("speak", { text, session_id: session, ...options }, { timeout: 0 }));
  }

  /** Play a recording through the face. send(session) → the summary of POST /speak/audio. */
  async record(seconds, send) {
    await this.#speak(`Recording, ${seconds.toFixed(1)} s`, "mic", send);
  }

  /** Transcribe a recording and answer it. understood() → its text. Returns the text, "" if there was no speech. */
  async hear(understood, options) {
    const mine = this.#bubble("user", "");
    mine.append(typing("Transcribing"));
    this.#changed(mine, { status: "thinking" });
    this.dispatchEvent(new Event("sent"));
    let words = null;
    try {
      words = await understood();
    } catch (failure) {
      this.#fail(mine, failure, () => this.hear(understood, options));
    }
    const elsewhere = !mine.isConnected && words !== null; // the page shows another session now
    mine.remove();
    this.#end(mine);
    if (elsewhere) return null;
    if (words) this.ask(words, options, "heard");
    else if (!this.#log.querySelector(".bubble")) $("empty").hidden = false;
    return words;
  }

  async #speak(words, symbol, send) {
    const session = this.#session;
    const bubble = this.#begin(words, symbol || "sound");
    try {
      this.#changed(bubble, { status: "speaking" });
      const summary = await send(session);
      this.#changed(bubble, { status: "done", latency: { ...summary, first_frame_ms: summary.ttff_ms } });
      bubble.remove();
      if (session === this.#session) this.#warn(summary.warnings);
    } catch (failure) {
      this.#fail(bubble, failure, () => this.#speak(words, symbol, send));
    } finally {
      this.#end(bubble);
    }
  }

  #warn(warnings) {
    if (warnings?.length) this.dispatchEvent(new CustomEvent("warnings", { detail: warnings }));
  }

  #begin(text, symbol) {
    $("empty").hidden = true;
    const mine = this.#bubble("user", text);
    if (symbol) {
      const tag = element("span", "tag");
      tag.append(icon(symbol === "sound" ? "sound" : "mic"), TAGS[symbol]);
      mine.append(tag);
    }
    const bubble = this.#bubble("presenter", "");
    bubble.append(typing("The presenter is thinking"));
    bubble.setAttribute("aria-busy", "true"); // screen readers read it once, when it is complete
    this.#changed(bubble, { status: "thinking" });
    this.dispatchEvent(new Event("sent"));
    return bubble;
  }

  #end(bubble) {
    this.#jobs.delete(bubble);
    bubble.removeAttribute("aria-busy");
    this.#changed();
  }

  /** Poll a job until it ends. Keeps polling while the server restarts: jobs survive a restart. */
  async #follow(id, bubble) {
    const backoff = new Backoff(POLL_MS);
    while (bubble.isConnected) {
      await pause(POLL_MS);
      let job;
      try {
        job = await getJson(`status/${id}`);
        backoff.reset();
      } catch (failure) {
        if (!failure.retryable) throw failure;
        await pause(backoff.take());
        continue;
      }
      this.#changed(bubble, job);
      if (job.status === "failed") throw new Failure(job.error.message, job.error.remedy, job.error.code, 200);
      if (job.status === "done") return this.#warn(job.warnings);
    }
  }

  #show(bubble, job) {
    if (!job.reply.trim()) return;
    const stay = this.#atEnd();
    const [before, now, after] = parted(job.reply.trim(), job.status === "speaking" ? this.#heard : "");
    bubble.replaceChildren(before, ...(now ? [element("span", "said now", now)] : []), after);
    if (job.interrupted) {
      const tag = element("span", "tag");
      tag.append(icon("stop"), "interrupted");
      bubble.append(tag);
    }
    if (stay) this.#toEnd();
  }

  #fail(bubble, failure, again) {
    if (!bubble.isConnected) return; // the page shows another session now
    if (bubble.querySelector(".typing")) bubble.remove();
    const failed = this.#bubble("failed", "");
    const over = ["session_closed", "reset_needed"].includes(failure.code); // retrying cannot help
    const retry = Object.assign(element("button", "small", over ? "New chat" : "Try again"), { type: "button" });
    retry.addEventListener("click", () => {
      if (over) return this.dispatchEvent(new Event("fresh"));
      const hadFocus = retry.matches(":focus-visible");
      failed.remove();
      if (hadFocus) $("message").focus();
      again();
    });
    failed.append(element("strong", "", failure.message), failure.remedy ?? "", element("br"), retry);
    this.#toEnd();
  }

  #bubble(kind, text) {
    const bubble = element("div", `bubble ${kind}`, text);
    bubble.dir = "auto";
    $("empty").hidden = true;
    this.#log.append(bubble);
    this.#toEnd();
    return bubble;
  }

  #atEnd() {
    return this.#log.scrollHeight - this.#log.scrollTop - this.#log.clientHeight < 60;
  }

  #toEnd() {
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  #changed(bubble, job) {
    if (bubble && !bubble.isConnected) return; // of another session
    if (bubble) this.#jobs.set(bubble, job);
    const jobs = [...this.#jobs];
    const [key, furthest] = jobs.find(([, { status }]) => status === "speaking") ?? jobs[0] ?? [bubble, { status: "done" }];
    for (const [shown, known] of this.#jobs) if (known.reply) this.#show(shown, known);
    this.dispatchEvent(new CustomEvent("job", { detail: { status: furthest.status, latency: job?.latency, of: bubble, done: job?.status === "done", key, chat: Boolean(furthest.job_id) } }));
  }
}

/** Split a reply into the parts before, in and after the sentence being spoken. */
function parted(reply, heard) {
  const at = heard ? reply.lastIndexOf(heard) : -1;
  return at < 0 ? [reply, "", ""] : [reply.slice(0, at), heard, reply.slice(at + heard.length)];
}
