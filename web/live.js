/**
 * Plays a session at its live edge, and reconnects by itself: over WebRTC where the server has it and the network lets it
 * through, else an endless fragmented MP4, fetched and fed to a media source.
 *
 * A media source and not `<video src>`: measured in Chromium (tests/browser), a plain element plays about a second
 * behind, cannot be brought back to the edge, and starts from black after each break.
 * Events: "state" {state: connecting|live|lost|ended, failure?, retryMs?}, "first" {ms}, "told" {kind, message, offset}: what
 * the stream says beside its pictures (stream-events.js), and where its 0 stands on the video's clock, "anew" when that begins anew
 * with another source, "leaving" while the element still shows the picture that it is about to lose.
 */

import { Backoff, Failure, failureOf, pause } from "./api.js";
import { NoWay, Peer } from "./whep.js";
import { EventReader } from "./stream-events.js";

const BEHIND_S = 0.22; // what is buffered ahead of the picture after a jump: less stutters, more is late
const LATE_S = 0.42; // pieces come 160 ms at a time: if the least of a second stays above this, play a little faster
const LOST_S = 1.6; // from here on jump to the edge
const SILENCE_MS = 8000; // a stream that sends nothing for this long is dead
const KEEP_S = 20; // of what was played
const TICK_MS = 100;
const SECOND = 1000 / TICK_MS; // ticks

export class LivePlayer extends EventTarget {
  #video;
  #find = null; // opens the session, gives the address
  #run = 0; // another one for each address and each forced retry
  #wake = () => {};
  #abort = new AbortController();
  #source = null;
  #buffer = null;
  #queue = [];
  #recent = []; // how far behind it was in the last second
  #shown = false; // whether this session was seen: it is lost, then, and not on its way
  #via; // mp4 or webrtc: that way alone; null: WebRTC until it has failed once
  #peer = null;

  /** via: mp4, webrtc, or whatever is best. */
  constructor(video, via = null) {
    super();
    this.#video = video;
    this.#via = ["mp4", "webrtc"].includes(via) ? via : null;
    addEventListener("pagehide", () => this.#peer?.close());
    setInterval(() => this.#follow(), TICK_MS);
    document.addEventListener("visibilitychange", () => document.hidden || this.#follow(true));
  }

  /** Seconds from a picture being due to its being seen: what comes ahead of its time waits in the buffer. */
  get behind() {
    return this.#peer ? this.#peer.behind : Math.max(0, Math.min(...this.#recent));
  }

  /** How the picture comes: webrtc, mp4, or "" before. */
  get way() {
    return this.#peer ? "webrtc" : this.#buffer ? "mp4" : "";
  }

  /** Show another stream. find: asked for the address before each connection; may throw Failure. */
  play(find) {
    this.#find = find;
    this.#leave();
    this.#shown = false;
    this.#close();
    this.#connect(++this.#run);
  }

  /** Do not wait for the next try. */
  retry() {
    this.#wake();
  }

  #leave() {
    this.dispatchEvent(new Event("leaving"));
  }

  #tell(state, detail = {}) {
    this.#shown ||= state === "live";
    this.dispatchEvent(new CustomEvent("state", { detail: { state, ...detail } }));
  }

  async #connect(run) {
    const backoff = new Backoff();
    while (run === this.#run) {
      this.#tell(this.#shown ? "lost" : "connecting");
      let failure = new Failure("The picture broke off.", "The page tries again by itself.");
      try {
        await this.#show(run, () => backoff.reset());
      } catch (error) {
        if (error instanceof Failure) failure = error;
      }
      if (run !== this.#run) return;
      if (failure.code === "session_closed") return this.#tell("ended", { failure }); // nothing more will come
      const retryMs = backoff.take();
      this.#tell("lost", { failure, retryMs });
      await Promise.race([pause(retryMs), new Promise((resolve) => (this.#wake = resolve))]);
    }
  }

  async #show(run, begun) {
    this.#abort = new AbortController();
    const startedMs = performance.now();
    const url = await this.#find();
    if (this.#via !== "mp4") {
      try {
        return await this.#watch(run, url.replace("live.mp4", "whep"), begun, startedMs);
      } catch (error) {
        if (this.#via === "webrtc" || !(error instanceof NoWay)) throw error;
        if (error.status !== 429) this.#via = "mp4"; // for as long as the page is open; where it was full, only now
      }
    }
    if (run === this.#run) await this.#stream(run, url, begun, startedMs);
  }

  /** One WebRTC connection, until it ends. Throws NoWay where no picture comes over it. */
  async #watch(run, url, begun, startedMs) {
    const peer = await Peer.connect(url, this.#abort.signal);
    if (run !== this.#run) return peer.close();
    this.#leave();
    this.#queue.length = 0;
    this.#buffer = this.#source = null;
    this.#peer = peer;
    this.#video.srcObject = peer.stream;
    this.#video.playbackRate = 1;
    this.dispatchEvent(new Event("anew"));
    let offset = null; // of the stream's times on the video's clock
    peer.addEventListener("told", ({ detail: { kind, message, seenS } }) => {
      offset ??= this.#video.currentTime - seenS;
      this.dispatchEvent(new CustomEvent("told", { detail: { kind, message, offset } }));
    });
    this.#video.addEventListener("loadeddata", () => {
      if (peer !== this.#peer) return;
      begun();
      this.#tell("live");
      this.dispatchEvent(new CustomEvent("first", { detail: { ms: performance.now() - startedMs } }));
    }, { once: true });
    try {
      await peer.ended;
    } finally {
      if (peer === this.#peer) this.#leave(); // a connection that closes takes its picture with it
      peer.close();
      if (peer === this.#peer) this.#peer = null;
    }
    if (run === this.#run && !peer.seen) throw new NoWay("No picture came over WebRTC.", "Use the page with ?via=mp4.");
  }

  /** One connection over HTTP, until it ends. Its timeline starts at 0: it is put behind what was played before. */
  async #stream(run, url, begun, startedMs) {
    const abort = this.#abort;
    let timer = setTimeout(() => abort.abort(), SILENCE_MS * 2); // the first answer may wait for a model
    try {
      const answer = await fetch(url, { signal: abort.signal, cache: "no-store" });
      if (!answer.ok) throw await failureOf(answer);
      const reader = answer.body.getReader();
      const events = new EventReader();
      let head = new Uint8Array();
      for (let first = true; ; ) {
        const { done, value } = await reader.read();
        if (done || run !== this.#run) return;
        clearTimeout(timer);
        timer = setTimeout(() => abort.abort(), SILENCE_MS);
        if (!first) {
          this.#append(value, events);
          continue;
        }
        head = joined(head, value);
        const type = mimeType(head);
        if (!type) continue;
        first = false;
        await this.#open(type);
        if (run !== this.#run) return;
        this.#append(head, events);
        begun();
        this.#tell("live");
        this.dispatchEvent(new CustomEvent("first", { detail: { ms: performance.now() - startedMs } }));
      }
    } finally {
      clearTimeout(timer);
      abort.abort();
    }
  }

  async #open(type) {
    const Source = window.MediaSource ?? window.ManagedMediaSource;
    if (!Source?.isTypeSupported(type)) throw new Failure("This browser cannot play the picture.", "Use a current one.");
    if (this.#buffer && this.#source.readyState === "open") {
      this.#queue.length = 0;
      if (this.#buffer.updating) await new Promise((resolve) => this.#buffer.addEventListener("updateend", resolve, { once: true }));
      this.#buffer.abort();
      this.#buffer.changeType(type);
      const { buffered, currentTime } = this.#video;
      this.#buffer.timestampOffset = Math.max(currentTime, buffered.length ? buffered.end(buffered.length - 1) : 0);
      return;
    }
    this.#leave();
    this.#source = new Source();
    this.#video.srcObject = null;
    this.#video.src = URL.createObjectURL(this.#source);
    this.dispatchEvent(new Event("anew"));
    await new Promise((resolve) => this.#source.addEventListener("sourceopen", resolve, { once: true }));
    URL.revokeObjectURL(this.#video.src);
    this.#buffer = this.#source.addSourceBuffer(type);
    this.#buffer.addEventListener("updateend", () => this.#feed());
  }

  #close() {
    this.#abort.abort();
    this.#wake();
    this.#peer?.close();
    this.#queue.length = 0;
    this.#buffer = this.#source = null;
  }

  #append(bytes, events) {
    this.#queue.push(bytes);
    const offset = this.#buffer?.timestampOffset ?? 0;
    for (const told of events.push(bytes)) this.dispatchEvent(new CustomEvent("told", { detail: { ...told, offset } }));
    this.#feed();
  }

  #feed() {
    const buffer = this.#buffer;
    if (!buffer || buffer.updating || this.#source.readyState !== "open") return;
    const { buffered, currentTime } = this.#video;
    if (buffered.length && currentTime - buffered.start(0) > 2 * KEEP_S) {
      buffer.remove(0, currentTime - KEEP_S);
    } else if (this.#queue.length) {
      const next = joined(...this.#queue.splice(0));
      try {
        buffer.appendBuffer(next);
      } catch {
        this.#abort.abort(); // a full or broken buffer: begin anew
        this.#buffer = null;
      }
    }
  }

  /** Keep the picture at the live edge, whatever the network and the browser's clock do. */
  #follow(jump = false) {
    const video = this.#video;
    const { buffered } = video;
    if (this.#peer && video.paused) this.#start();
    if (this.#peer || !buffered.length) return;
    const start = buffered.start(buffered.length - 1);
    const end = buffered.end(buffered.length - 1);
    const behind = end - video.currentTime;
    if (video.currentTime < start || behind > LOST_S || (jump && behind > 2 * LATE_S)) {
      video.currentTime = Math.max(start, end - BEHIND_S);
      this.#recent.length = 0;
    }
    this.#recent = [...this.#recent, behind].slice(-SECOND);
    const least = this.#recent.length < SECOND ? BEHIND_S : Math.min(...this.#recent);
    video.playbackRate = least > LATE_S ? 1.06 : behind < 0.06 ? 0.95 : 1;
    if (video.paused && end - start > BEHIND_S) this.#start();
  }

  #start() {
    this.#video.play().catch(({ name }) => name === "NotAllowedError" && (this.#video.muted = true)); // the click to unmute stays
  }
}

const joined = (...parts) => {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole;
};

/** The media type of an init segment, once its moov box is whole; "" before. Offsets: ISO/IEC 14496-12 and -15. */
export function mimeType(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const name = (at) => String.fromCharCode(...bytes.subarray(at + 4, at + 8));
  for (let at = 0; at + 8 <= bytes.length; at += Math.max(8, view.getUint32(at))) {
    if (name(at) !== "moov" || at + view.getUint32(at) > bytes.length) continue;
    const text = new TextDecoder("latin1").decode(bytes.subarray(at, at + view.getUint32(at)));
    const avcc = at + text.indexOf("avcC") + 5; // past the name and the version
    const profile = [...bytes.subarray(avcc, avcc + 3)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    return `video/mp4; codecs="avc1.${profile}${text.includes("mp4a") ? ", mp4a.40.2" : ""}"`;
  }
  return "";
}
