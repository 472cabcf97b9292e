/**
 * The replay dialog: the session as one seekable file, with captions and a list of its utterances.
 *
 * The file is requested with its size at the moment of opening, so its ranges stay consistent while the session grows.
 */

import { Failure, address, getJson } from "./api.js";

const $ = (id) => document.getElementById(id);
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

export class Replay {
  #live; // the live video element, muted while the replay is open
  #session = "";
  #lines = []; // one per utterance: {start_s, button}
  #opened = 0; // counts openings; responses for an earlier one are ignored
  #wasMuted = true;

  constructor(live) {
    this.#live = live;
    for (const button of document.querySelectorAll("[data-replay]")) button.addEventListener("click", () => this.open());
    $("replay").addEventListener("close", () => this.#closed());
    $("replay").addEventListener("click", (event) => event.target === $("replay") && $("replay").close());
    $("replay-video").addEventListener("loadeddata", () => this.#say(""));
    $("replay-video").addEventListener("error", () => this.#failed());
    $("replay-video").addEventListener("timeupdate", () => this.#follow());
    $("replay-video").addEventListener("seeking", () => this.#follow());
    $("replay-again").addEventListener("click", () => this.#load());
  }

  /** A new session has started; there is nothing to replay yet. */
  forget() {
    this.#session = "";
    this.#offer(false);
  }

  /** Show the replay buttons if the session has video. */
  async look(session) {
    this.#session = session;
    const facts = await getJson(`sessions/${session}`).catch(() => null);
    if (facts && session === this.#session) this.#offer(facts.frames > 0);
  }

  #offer(on) {
    for (const way of document.querySelectorAll("[data-replay], [data-recorded]")) way.hidden = !on;
  }

  open() {
    this.#wasMuted = this.#live.muted;
    this.#live.muted = true;
    $("replay").showModal();
    $("replay-video").focus();
    return this.#load();
  }

  async #load() {
    const opened = ++this.#opened;
    const video = $("replay-video");
    this.#say("Loading the replay");
    try {
      const facts = await getJson(`sessions/${this.#session}`);
      if (opened !== this.#opened) return;
      if (!facts.frames) throw new Failure("Nothing has been said yet.", "Say something first.");
      const { size } = facts;
      $("replay-facts").textContent = clock(facts.duration_s);
      $("replay-download").href = address(`sessions/${this.#session}/download.mp4`, { size });
      $("replay-download").download = `${this.#session}.mp4`;
      this.#list(facts.utterances.filter(({ start_s, end_s }) => (end_s ?? facts.duration_s) > start_s)); // skip utterances without video
      this.#captions(size);
      video.src = $("replay-download").href;
      await video.play();
    } catch (failure) {
      if (opened === this.#opened && failure instanceof Failure) this.#say(failure.message, failure.remedy, true);
    }
  }

  /** A new track per opening: a track element keeps the cues of its first URL. */
  #captions(size) {
    const src = address(`sessions/${this.#session}/captions.vtt`, { size });
    const track = Object.assign(document.createElement("track"), { kind: "captions", label: "Captions", srclang: "en", src, default: true });
    $("replay-video").replaceChildren(track);
  }

  #list(utterances) {
    this.#lines = utterances.map(({ text, start_s, interrupted, sentences = [] }) => {
      const button = Object.assign(document.createElement("button"), { type: "button", className: "quiet line" });
      const time = Object.assign(document.createElement("span"), { className: "line-time", textContent: clock(start_s) });
      const words = Object.assign(document.createElement("span"), { className: "line-text", dir: "auto" });
      const heard = interrupted && sentences.length ? sentences.map((sentence) => sentence.text).join(" ") : text.trim();
      words.textContent = heard ? `${heard}${interrupted ? " —" : ""}` : "A recording";
      button.append(time, words);
      button.addEventListener("click", () => {
        $("replay-video").currentTime = start_s;
        $("replay-video").play().catch(() => {});
      });
      return { start_s, button };
    });
    $("replay-lines").replaceChildren(
      ...this.#lines.map(({ button }) => {
        const item = document.createElement("li");
        item.append(button);
        return item;
      }),
    );
    this.#follow();
  }

  /** Highlight the utterance being played. */
  #follow() {
    const now = $("replay-video").currentTime + 0.02; // a seek may land slightly before its target
    const current = this.#lines.findLast(({ start_s }) => start_s <= now);
    for (const line of this.#lines) {
      if ((line === current) === line.button.hasAttribute("aria-current")) continue;
      if (line !== current) {
        line.button.removeAttribute("aria-current");
        continue;
      }
      line.button.setAttribute("aria-current", "true");
      line.button.scrollIntoView({ block: "nearest" });
    }
  }

  #say(title, text = "", failed = false) {
    $("replay-status").hidden = !title;
    $("replay-title").textContent = title;
    $("replay-text").textContent = text;
    $("replay-again").hidden = !failed;
    $("replay-status").querySelector(".spinner").hidden = failed;
  }

  async #failed() {
    if (!$("replay-video").getAttribute("src")) return; // the dialog was closed
    const opened = this.#opened;
    const facts = await getJson(`sessions/${this.#session}`).catch((failure) => failure);
    if (opened !== this.#opened) return;
    if (facts instanceof Failure) this.#say(facts.message, facts.remedy, true);
    else this.#say("The video could not be loaded.", "The server may be busy. Try again in a moment.", true);
  }

  #closed() {
    this.#opened++;
    const video = $("replay-video");
    video.pause();
    video.removeAttribute("src");
    video.load(); // releases the connection
    video.replaceChildren();
    this.#live.muted = this.#wasMuted;
  }
}
