/** Events inside the live stream: `emsg` boxes between fragments (ISO/IEC 23009-1), and captions made from them. */

const SCHEME = "urn:warmtalk:live:1";
const LONGEST = 80; // approximate characters per caption: two lines
const KEPT_S = 60; // past captions are removed after this long

/** Finds events in a stream that arrives in parts of any size; buffers only box headers and events. */
export class EventReader {
  #head = new Uint8Array(); // header of the current box, or an event box
  #skip = 0; // remaining bytes of a box that is skipped

  /** Returns the events [{kind, message}] completed by `part`. */
  push(part) {
    const found = [];
    while (part.length) {
      if (this.#skip) {
        const passed = Math.min(this.#skip, part.length);
        this.#skip -= passed;
        part = part.subarray(passed);
        continue;
      }
      const wanted = this.#head.length < 8 ? 8 : size(this.#head);
      const taken = Math.min(wanted - this.#head.length, part.length);
      const head = new Uint8Array(this.#head.length + taken);
      head.set(this.#head);
      head.set(part.subarray(0, taken), this.#head.length);
      [this.#head, part] = [head, part.subarray(taken)];
      if (head.length < 8) continue;
      if (String.fromCharCode(...head.subarray(4, 8)) !== "emsg") {
        this.#skip = Math.max(0, size(head) - head.length);
        this.#head = new Uint8Array();
      } else if (head.length === size(head)) {
        const event = eventOf(head);
        if (event) found.push(event);
        this.#head = new Uint8Array();
      }
    }
    return found;
  }
}

const size = (head) => new DataView(head.buffer, head.byteOffset).getUint32(0);

/** emsg version 1: 12 bytes of header, 20 bytes of times, two zero-terminated strings, and the message. */
function eventOf(box) {
  if (box[8] !== 1) return null;
  const names = box.indexOf(0, 32);
  const message = box.indexOf(0, names + 1) + 1;
  const text = (from, to) => new TextDecoder().decode(box.subarray(from, to));
  return text(32, names) === SCHEME ? { kind: text(names + 1, message - 1), message: JSON.parse(text(message)) } : null;
}

/**
 * Captions as cues of the video's text track, so the browser times them on the video's clock.
 * Events: "change" when the current caption changes.
 */
export class Captions extends EventTarget {
  #video;
  #track;
  #known = new Map(); // stream offset and caption id → cues

  constructor(video) {
    super();
    this.#video = video;
    this.#track = video.addTextTrack("captions", "Captions");
    this.#track.mode = "hidden"; // the browser times the cues, the page draws them
    this.#track.addEventListener("cuechange", () => this.dispatchEvent(new Event("change")));
    video.addEventListener("webkitbeginfullscreen", () => (this.#track.mode = "showing")); // a phone's native player hides the page
    video.addEventListener("webkitendfullscreen", () => (this.#track.mode = "hidden"));
  }

  /** The current caption {text, sentence}; text is a part of the sentence. Both "" if there is none. */
  get now() {
    const cue = [...(this.#track.activeCues ?? [])].at(-1);
    return { text: cue?.text ?? "", sentence: cue?.sentence ?? "" };
  }

  /** Add a caption. offset: video time of the stream's time 0. A later caption with the same id replaces it. */
  add(caption, offset) {
    const key = `${offset}/${caption.id}`;
    for (const cue of this.#known.get(key) ?? []) this.#track.removeCue(cue);
    const cues = parts(caption).map(({ text, start, end }) => {
      const cue = new VTTCue(offset + start, offset + Math.max(end, start + 0.04), text);
      return Object.assign(cue, { id: key, sentence: caption.text });
    });
    for (const cue of cues) this.#track.addCue(cue);
    this.#known.set(key, cues);
    this.#forget();
  }

  /** Remove all captions. */
  clear() {
    for (const cues of this.#known.values()) for (const cue of cues) this.#track.removeCue(cue);
    this.#known.clear();
  }

  #forget() {
    for (const [key, cues] of this.#known) {
      if ((cues.at(-1)?.endTime ?? 0) > this.#video.currentTime - KEPT_S) continue;
      for (const cue of cues) this.#track.removeCue(cue);
      this.#known.delete(key);
    }
  }
}

/** Split a long sentence into parts of similar length, timed by its words if known, otherwise by character count. */
export function parts({ text, start_s, end_s, words = [] }) {
  const known = words.map((word) => word.text).join(" ") === text;
  let letters = 0;
  const units = known
    ? words.map((word) => ({ text: word.text, start: word.start_s }))
    : text.split(/\s+/).map((token) => {
        const start = start_s + ((end_s - start_s) * letters) / text.length;
        letters += token.length + 1;
        return { text: token, start };
      });
  const most = Math.max(1, Math.ceil(text.length / LONGEST));
  const out = [];
  let passed = 0;
  for (const unit of units) {
    // start a part at the word nearest to its even share, so that no single word is left over
    const begins = out.length < most && passed + unit.text.length / 2 >= (out.length * text.length) / most;
    if (begins) out.push({ ...unit, start: out.length ? unit.start : start_s });
    else out.at(-1).text += ` ${unit.text}`;
    passed += unit.text.length + 1;
  }
  return out.map((part, k) => ({ ...part, end: out[k + 1]?.start ?? end_s }));
}
