/**
 * What was said so far, once more: the session as one file, seekable, with its captions and its lines beside it.
 *
 * The file is asked for as it is at the moment of opening (`size`): its ranges fit together while the session goes on.
 */

import { Failure, address, getJson } from "./api.js";

const $ = (id) => document.getElementById(id);
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

export class Replay {
  #live; // the element of the live picture: silent while the replay is open
  #session = "";
  #lines = []; // of the transcript: {start_s, button}
  #opened = 0; // how often it was: what an earlier opening still waits for is of no interest
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

  /** Another session has begun, in which there is nothing to be seen yet. */
  forget() {
    this.#session = "";
    this.#offer(false);
  }

  /** Offer the replay of a session if there is something to be seen in it; the server knows it. */
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
    this.#say("Putting the pieces together");
    try {
      const facts = await getJson(`sessions/${this.#session}`);
      if (opened !== this.#opened) return;
      if (!facts.frames) throw new Failure("Nothing has been said yet.", "Say something first.");
      const { size } = facts;
      $("replay-facts").textContent = clock(facts.duration_s);
      $("replay-download").href = address(`sessions/${this.#session}/download.mp4`, { size });
      $("replay-download").download = `${this.#session}.mp4`;
      this.#list(facts.utterances.filter(({ start_s, end_s }) => (end_s ?? facts.duration_s) > start_s)); // some gave no frame
      this.#captions(size);
      video.src = $("replay-download").href;
      await video.play();
    } catch (failure) {
      if (opened === this.#opened && failure instanceof Failure) this.#say(failure.message, failure.remedy, true);
    }
  }

  /** A track of its own for each opening: an element keeps the cues of its first address. */
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

  /** Mark the line that is being said. */
  #follow() {
    const now = $("replay-video").currentTime + 0.02; // a seek may end a moment before what it was asked for
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
    $("replay-veil").hidden = !title;
    $("replay-title").textContent = title;
    $("replay-text").textContent = text;
    $("replay-again").hidden = !failed;
    $("replay-veil").querySelector(".spinner").hidden = failed;
  }

  async #failed() {
    if (!$("replay-video").getAttribute("src")) return; // it was closed
    const opened = this.#opened;
    const facts = await getJson(`sessions/${this.#session}`).catch((failure) => failure);
    if (opened !== this.#opened) return;
    if (facts instanceof Failure) this.#say(facts.message, facts.remedy, true);
    else this.#say("The video could not be loaded.", "The server may be busy: try again in a moment.", true);
  }

  #closed() {
    this.#opened++;
    const video = $("replay-video");
    video.pause();
    video.removeAttribute("src");
    video.load(); // gives the connection back
    video.replaceChildren();
    this.#live.muted = this.#wasMuted;
  }
}
