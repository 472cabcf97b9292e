/** The recording bar: one recording from click to click, or hands-free, one recording per turn. */

import { Recorder, Turns } from "./microphone.js";

const LONGEST_RECORDING_S = 120;
const SHORTEST_S = 0.3;
const HANDS_FREE = "warmtalk-hands-free";
const BAR_PX = 8; // canvas pixels per bar of the waveform; half of them are the bar
const BLOCKS = 4; // audio blocks per bar
const $ = (id) => document.getElementById(id);

/** Events: "change" when recording starts, stops or waits; "recorded" {seconds, body} with a WAV file; "turn-started" in hands-free mode; "error" {title, text}. */
export class Listening extends EventTarget {
  #recorder = null;
  #starts = false; // waiting for permission: ignore further clicks
  #turns = null; // hands-free
  #wave = [];

  constructor() {
    super();
    $("hands-free").checked = localStorage.getItem(HANDS_FREE) === "on";
    $("hands-free").addEventListener("change", () => {
      localStorage.setItem(HANDS_FREE, $("hands-free").checked ? "on" : "off");
      this.#turns = $("hands-free").checked ? new Turns() : null;
      this.#recorder?.trim();
      if (this.#recorder) this.#show(true);
    });
    $("mic").addEventListener("click", () => this.start());
    $("recording-cancel").addEventListener("click", () => this.finish(false));
  }

  get on() {
    return this.#recorder !== null;
  }

  get handsFree() {
    return this.#turns !== null;
  }

  async start() {
    if (this.#starts || this.on) return;
    this.#starts = true;
    this.#wave.length = 0;
    try {
      this.#recorder = await Recorder.start((...block) => this.#heard(...block));
    } catch (error) {
      const denied = error.name === "NotAllowedError";
      const elsewhere = window.isSecureContext ? "Connect a microphone and try again." : "Browsers allow the microphone on https and localhost only.";
      this.#tell("error", {
        title: denied ? "Microphone access is blocked." : "No microphone found.",
        text: denied ? "Allow it in the browser's site settings and try again." : elsewhere,
      });
      return;
    } finally {
      this.#starts = false;
    }
    this.#turns = $("hands-free").checked ? new Turns() : null;
    this.#show(true);
    Object.assign($("wave"), { width: 2 * $("wave").clientWidth, height: 2 * $("wave").clientHeight });
    $("send").focus();
  }

  /** Release the microphone. sent: send what was recorded; in hands-free mode only a turn in progress. */
  finish(sent) {
    const recorder = this.#recorder;
    const hadFocus = $("recording").matches(":has(:focus-visible)");
    const said = !this.#turns || this.#turns.speaks;
    this.#recorder = null;
    this.#show(false);
    if (hadFocus) $("mic").focus(); // the recording bar, which had the focus, is hidden
    const { seconds } = recorder;
    const body = recorder.stop();
    if (!sent || !said) return;
    if (seconds < SHORTEST_S) this.#tell("error", { title: "Recording too short.", text: "Record at least one word." });
    else this.#tell("recorded", { seconds, body });
  }

  #tell(kind, detail = {}) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }

  #show(on) {
    $("recording").hidden = !on;
    $("message").hidden = on;
    $("mic").hidden = on;
    this.#say();
    const does = !on ? "Send" : this.#turns ? "Stop listening" : "Stop and send the recording";
    for (const attribute of ["aria-label", "title"]) $("send").setAttribute(attribute, does);
    $("send").querySelector("use").setAttribute("href", `web/icons.svg#${on && this.#turns ? "stop" : "send"}`);
    this.#tell("change");
  }

  #say() {
    const waits = Boolean(this.#turns && !this.#turns.speaks);
    const seconds = this.#recorder?.seconds ?? 0;
    $("recording").classList.toggle("waits", waits);
    const words = waits ? "Listening" : `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
    if ($("recording-time").textContent !== words) $("recording-time").textContent = words;
  }

  #heard(level, db, seconds) {
    if (!this.#recorder) return;
    $("level").value = level;
    this.#draw(level);
    if (this.#turns) this.#turn(this.#turns.push(db, seconds));
    this.#say();
    if (!this.#turns && this.#recorder.seconds > LONGEST_RECORDING_S) this.finish(true);
  }

  #turn(change) {
    if (change === "begin") this.#tell("turn-started");
    if (change === "end") {
      const { seconds } = this.#recorder;
      this.#tell("recorded", { seconds, body: this.#recorder.take() });
    }
    if (!this.#turns.speaks) this.#recorder.trim();
  }

  #draw(level) {
    const canvas = $("wave");
    const context = canvas.getContext("2d");
    const bars = Math.floor(canvas.width / BAR_PX);
    this.#wave = [...this.#wave, level].slice(-BLOCKS * Math.max(bars, 1));
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = getComputedStyle(canvas).color;
    for (let k = 0; k < bars; k++) {
      const end = this.#wave.length - BLOCKS * (bars - 1 - k);
      const height = Math.max(...this.#wave.slice(Math.max(0, end - BLOCKS), Math.max(0, end)), 0);
      const tall = Math.max(4, height * canvas.height);
      context.fillRect(k * BAR_PX, (canvas.height - tall) / 2, BAR_PX / 2, tall);
    }
  }
}
