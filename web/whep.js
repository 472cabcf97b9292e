/**
 * One WebRTC connection that plays a session (WHEP), from the offer until the connection is lost.
 *
 * Measured in Chromium: about 0.1 s behind, where a media source is 0.2 to 0.4 s behind (live.js). Needs UDP.
 */

import { Failure, failureOf } from "./api.js";

const GATHER_MS = 500; // wait for ICE candidates; host candidates arrive at once
const ANSWER_MS = 16_000; // the first answer may wait for a model to load
const CONNECT_MS = 2000; // from the answer to the first packet; longer means that UDP is blocked
const STALL_MS = 2000; // without a packet; the idle loop also sends 25 frames per second
const UNSEEN_MS = 5000; // packets arrive but no frame is decoded; hidden tabs may not decode
const TICK_MS = 500;
const HELD_S = 0.08; // the server sends a frame this long after it is due

/** WebRTC is not available here; another transport may be. */
export class Unavailable extends Failure {}

export class Peer extends EventTarget {
  stream = new MediaStream();
  behind = HELD_S + 0.05; // seconds from due to shown, over the last half second
  seen = false; // whether a frame was decoded
  #connection;
  #resource = "";
  #over = () => {};
  #timer = 0;
  #last = { packets: 0, cameMs: 0, decoded: 0, seenMs: 0, delay: 0, count: 0 };

  /** Resolves when the connection has ended. */
  ended = new Promise((resolve) => (this.#over = resolve));

  /** Connect. url: the session's WHEP endpoint. Throws Failure, Unavailable. */
  static async connect(url, abort) {
    const signal = AbortSignal.any([abort, AbortSignal.timeout(ANSWER_MS)]);
    const codecs = window.RTCPeerConnection && RTCRtpReceiver.getCapabilities?.("video")?.codecs;
    const h264 = codecs?.filter(({ mimeType }) => mimeType === "video/H264" || mimeType === "video/rtx");
    if (!h264?.some(({ mimeType }) => mimeType === "video/H264")) throw new Unavailable("This browser has no WebRTC with H.264.");
    const answer = await fetch(url, { method: "OPTIONS", cache: "no-store", signal });
    if (answer.status === 405 || (answer.ok && !answer.headers.get("Allow")?.includes("POST"))) throw new Unavailable("This server has no WebRTC.", "Install the extra [webrtc] on the server.");
    if (!answer.ok) throw await failureOf(answer);
    const peer = new Peer(iceServers(answer.headers.get("Link") ?? ""), h264);
    try {
      await peer.#open(url, signal);
    } catch (error) {
      peer.close();
      throw error;
    }
    return peer;
  }

  constructor(iceServers, codecs) {
    super();
    this.#connection = new RTCPeerConnection({ iceServers });
    for (const kind of ["video", "audio"]) {
      const transceiver = this.#connection.addTransceiver(kind, { direction: "recvonly" });
      if (kind === "video") transceiver.setCodecPreferences?.(codecs);
      this.stream.addTrack(transceiver.receiver.track);
    }
    this.#connection.createDataChannel("events").addEventListener("message", ({ data }) => this.#emit(JSON.parse(data)));
    this.#connection.addEventListener("connectionstatechange", () => ["failed", "closed"].includes(this.#connection.connectionState) && this.#over());
  }

  close() {
    clearInterval(this.#timer);
    this.#connection.close();
    this.#over();
    if (this.#resource) fetch(this.#resource, { method: "DELETE", keepalive: true }).catch(() => {}); // it may be gone already
    this.#resource = "";
  }

  async #open(url, signal) {
    await this.#connection.setLocalDescription();
    await this.#until("icegatheringstatechange", () => this.#connection.iceGatheringState === "complete", GATHER_MS);
    const answer = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/sdp" },
      body: this.#connection.localDescription.sdp,
      signal,
    });
    if (answer.status === 429 || answer.status === 501) {
      const { message, remedy, code, status } = await failureOf(answer);
      throw new Unavailable(message, remedy, code, status);
    }
    if (!answer.ok) throw await failureOf(answer);
    this.#resource = `${url.split("?")[0]}/${answer.headers.get("Location").split("/").pop()}${new URL(url).search}`;
    await this.#connection.setRemoteDescription({ type: "answer", sdp: await answer.text() });
    const track = this.stream.getVideoTracks()[0]; // muted until the first packet arrives
    if (!(await until(track, "unmute", () => !track.muted, CONNECT_MS))) throw new Unavailable("No WebRTC connection.", "The network may block UDP.");
    this.#last.cameMs = this.#last.seenMs = performance.now();
    this.#timer = setInterval(() => this.#look(), TICK_MS);
  }

  #until(event, done, ms) {
    return until(this.#connection, event, done, ms);
  }

  /** Check that frames still arrive, and measure the delay. */
  async #look() {
    const stats = [...(await this.#connection.getStats()).values()];
    const video = stats.find(({ type, kind }) => type === "inbound-rtp" && kind === "video");
    const pair = stats.find(({ type, nominated, state }) => type === "candidate-pair" && nominated && state === "succeeded");
    const last = this.#last;
    const nowMs = performance.now();
    const { packetsReceived: packets = 0, framesDecoded: decoded = 0, jitterBufferDelay: delay = 0, jitterBufferEmittedCount: count = 0 } = video ?? {};
    if (packets > last.packets) Object.assign(last, { packets, cameMs: nowMs });
    if (decoded > last.decoded || document.hidden) Object.assign(last, { decoded, seenMs: nowMs });
    if (count > last.count) {
      this.behind = HELD_S + (delay - last.delay) / (count - last.count) + (pair?.currentRoundTripTime ?? 0) / 2;
      Object.assign(last, { delay, count });
    }
    this.seen ||= decoded > 0;
    if (nowMs - last.cameMs > STALL_MS || nowMs - last.seenMs > UNSEEN_MS) this.#over();
  }

  #emit({ type, now_s, ...rest }) {
    if (type === "ended") {
      this.#resource = ""; // the server has closed it already
      if (this.seen) this.#over(); // do not wait for the stall timeout
    }
    const seenS = now_s - (this.behind - HELD_S); // now_s: stream time being sent
    this.dispatchEvent(new CustomEvent("stream-event", { detail: { kind: type, message: rest[type], seenS } }));
  }
}

/** Wait until done() holds, checked on each event. Returns whether it did in time. */
async function until(target, event, done, ms) {
  if (done()) return true;
  return new Promise((resolve) => {
    const look = (late) => {
      if (!late && !done()) return;
      clearTimeout(timer);
      target.removeEventListener(event, changed);
      resolve(done());
    };
    const changed = () => look(false);
    const timer = setTimeout(() => look(true), ms);
    target.addEventListener(event, changed);
  });
}

/** The ICE servers in a Link header (RFC 9725, 4.6), for RTCPeerConnection. */
export function iceServers(header) {
  const value = (text, name) => text.match(new RegExp(`;\\s*${name}="((?:[^"\\\\]|\\\\.)*)"`))?.[1].replace(/\\(.)/g, "$1");
  return [...header.matchAll(/<([^>]*)>((?:;\s*[\w-]+="(?:[^"\\]|\\.)*")*)/g)]
    .filter(([, , rest]) => value(rest, "rel") === "ice-server")
    .map(([, urls, rest]) => {
      const [username, credential] = [value(rest, "username"), value(rest, "credential")];
      return username === undefined ? { urls } : { urls, username, credential };
    });
}
