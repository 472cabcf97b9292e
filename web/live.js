/**
 * Plays a session at its live edge and reconnects automatically: over WebRTC if the server and the network allow it,
 * otherwise an endless fragmented MP4, fetched and fed to a media source.
 *
 * A media source instead of `<video src>`: measured in Chromium (tests/browser), a plain element plays about a second
 * behind, cannot seek to the live edge, and starts from black after each interruption.
 * Events: "state" {state: connecting|live|lost|ended, failure?, retryMs?}; "first-frame" {ms}; "stream-event" {kind, message, offset}:
 * an event of the stream (stream-events.js) and the position of the stream's time 0 on the video's clock; "source-changing" while the
 * element still shows the old picture; "source-changed" after it has a new source.
 */

import { Backoff, Failure, failureOf, pause } from "./api.js";
import { Unavailable, Peer } from "./whep.js";
import { EventReader } from "./stream-events.js";

const BEHIND_S = 0.22; // buffer after a seek to the live edge: less stutters, more adds delay
const LATE_S = 0.42; // if the smallest buffer within a second exceeds this, play slightly faster (fragments last 160 ms)
const LOST_S = 1.6; // seek to the live edge beyond this delay
const SILENCE_MS = 8000; // reconnect after this long without data
const KEEP_S = 20; // of played media that stay in the buffer
const TICK_MS = 100;
const TICKS_PER_S = 1000 / TICK_MS;

export class LivePlayer extends EventTarget {
  #video;
  #find = null; // opens the session and returns its URL
  #run = 0; // identifies the current stream; an older run stops
  #wake = () => {};
  #abort = new AbortController();
  #source = null;
  #buffer = null;
  #queue = [];
  #recent = []; // delays of the last second
  #shown = false; // whether this session has been shown; then a break is "lost", not "connecting"
  #via; // "mp4" or "webrtc" forces a transport; null: WebRTC until it fails once
  #peer = null;

  /** via: "mp4", "webrtc", or null for automatic. */
  constructor(video, via = null) {
    super();
    this.#video = video;
    this.#via = ["mp4", "webrtc"].includes(via) ? via : null;
    addEventListener("pagehide", () => this.#peer?.close());
    setInterval(() => this.#follow(), TICK_MS);
    document.addEventListener("visibilitychange", () => document.hidden || this.#follow(true));
  }

  /** Seconds from the moment a frame is due until it is shown. */
  get behind() {
    return this.#peer ? this.#peer.behind : Math.max(0, Math.min(...this.#recent));
  }

  /** The transport in use: "webrtc", "mp4", or "" before the first frame. */
  get way() {
    return this.#peer ? "webrtc" : this.#buffer ? "mp4" : "";
  }

  /** Play another stream. find: returns the URL, called before each connection; may throw Failure. */
  play(find) {
    this.#find = find;
    this.#announceChange();
    this.#shown = false;
    this.#close();
    this.#connect(++this.#run);
  }

  /** Reconnect now. */
  retry() {
    this.#wake();
  }

  #announceChange() {
    this.dispatchEvent(new Event("source-changing"));
  }

  #setState(state, detail = {}) {
    this.#shown ||= state === "live";
    this.dispatchEvent(new CustomEvent("state", { detail: { state, ...detail } }));
  }

  async #connect(run) {
    const backoff = new Backoff();
    while (run === this.#run) {
      this.#setState(this.#shown ? "lost" : "connecting");
      let failure = new Failure("Connection lost.", "");
      try {
        await this.#show(run, () => backoff.reset());
      } catch (error) {
        if (error instanceof Failure) failure = error;
      }
      if (run !== this.#run) return;
      if (["session_closed", "reset_needed"].includes(failure.code)) return this.#setState("ended", { failure }); // for good
      const retryMs = backoff.take();
      this.#setState("lost", { failure, retryMs });
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
        if (this.#via === "webrtc" || !(error instanceof Unavailable)) throw error;
        if (error.status !== 429) this.#via = "mp4"; // until the page is closed; 429 (full) may pass
      }
    }
    if (run === this.#run) await this.#stream(run, url, begun, startedMs);
  }

  /** One WebRTC connection until it ends. Throws Unavailable if no frame arrives over it. */
  async #watch(run, url, begun, startedMs) {
    const peer = await Peer.connect(url, this.#abort.signal);
    if (run !== this.#run) return peer.close();
    this.#announceChange();
    this.#queue.length = 0;
    this.#buffer = this.#source = null;
    this.#peer = peer;
    this.#video.srcObject = peer.stream;
    this.#video.playbackRate = 1;
    this.dispatchEvent(new Event("source-changed"));
    let offset = null; // offset of stream time on the video's clock
    peer.addEventListener("stream-event", ({ detail: { kind, message, seenS } }) => {
      offset ??= this.#video.currentTime - seenS;
      this.dispatchEvent(new CustomEvent("stream-event", { detail: { kind, message, offset } }));
    });
    this.#video.addEventListener("loadeddata", () => {
      if (peer !== this.#peer) return;
      begun();
      this.#setState("live");
      this.dispatchEvent(new CustomEvent("first-frame", { detail: { ms: performance.now() - startedMs } }));
    }, { once: true });
    try {
      await peer.ended;
    } finally {
      if (peer === this.#peer) this.#announceChange(); // the element turns black when the connection closes
      peer.close();
      if (peer === this.#peer) this.#peer = null;
    }
    if (run === this.#run && !peer.seen) throw new Unavailable("No video arrived over WebRTC.", "Open the page with ?via=mp4.");
  }

  /** One HTTP connection until it ends. Its timeline starts at 0 and is appended after what was played before. */
  async #stream(run, url, begun, startedMs) {
    const abort = this.#abort;
    let timer = setTimeout(() => abort.abort(), SILENCE_MS * 2); // the first response may wait for a model to load
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
        this.#setState("live");
        this.dispatchEvent(new CustomEvent("first-frame", { detail: { ms: performance.now() - startedMs } }));
      }
    } finally {
      clearTimeout(timer);
      abort.abort();
    }
  }

  async #open(type) {
    const Source = window.MediaSource ?? window.ManagedMediaSource;
    if (!Source?.isTypeSupported(type)) throw new Failure("This browser cannot play the video.", "Use a current browser.");
    if (this.#buffer && this.#source.readyState === "open") {
      this.#queue.length = 0;
      if (this.#buffer.updating) await new Promise((resolve) => this.#buffer.addEventListener("updateend", resolve, { once: true }));
      this.#buffer.abort();
      this.#buffer.changeType(type);
      const { buffered, currentTime } = this.#video;
      this.#buffer.timestampOffset = Math.max(currentTime, buffered.length ? buffered.end(buffered.length - 1) : 0);
      return;
    }
    this.#announceChange();
    this.#source = new Source();
    this.#video.srcObject = null;
    this.#video.src = URL.createObjectURL(this.#source);
    this.dispatchEvent(new Event("source-changed"));
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
    for (const event of events.push(bytes)) this.dispatchEvent(new CustomEvent("stream-event", { detail: { ...event, offset } }));
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
        this.#abort.abort(); // the buffer is full or broken: reconnect
        this.#buffer = null;
      }
    }
  }

  /** Keep playback at the live edge. */
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
    this.#recent = [...this.#recent, behind].slice(-TICKS_PER_S);
    const least = this.#recent.length < TICKS_PER_S ? BEHIND_S : Math.min(...this.#recent);
    video.playbackRate = least > LATE_S ? 1.06 : behind < 0.06 ? 0.95 : 1;
    if (video.paused && end - start > BEHIND_S) this.#start();
  }

  #start() {
    this.#video.play().catch(({ name }) => name === "NotAllowedError" && (this.#video.muted = true)); // "Turn sound on" stays visible
  }
}

const joined = (...parts) => {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole;
};

/** The MIME type of an init segment once its moov box is complete, "" before. Offsets: ISO/IEC 14496-12 and -15. */
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
