/** What is told inside the live stream: `emsg` boxes between its fragments (ISO/IEC 23009-1), and captions made of them. */

const SCHEME = "urn:warmtalk:live:1";
const LONGEST = 80; // characters of a caption, a word more or less: two lines
const KEPT_S = 60; // captions that have passed stay in the track for this long

/** Finds events in a stream that comes in parts of any size; keeps no more of it than a box's header. */
export class EventReader {
  #head = new Uint8Array(); // of a box, or a whole box that is wanted
  #skip = 0; // bytes of the box before that are still to come

  /** [{kind, message}] that the part completes. */
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

/** Version 1: 12 bytes of header, 20 of times, two names that end in 0, and the message. */
function eventOf(box) {
  if (box[8] !== 1) return null;
  const names = box.indexOf(0, 32);
  const message = box.indexOf(0, names + 1) + 1;
  const text = (from, to) => new TextDecoder().decode(box.subarray(from, to));
  return text(32, names) === SCHEME ? { kind: text(names + 1, message - 1), message: JSON.parse(text(message)) } : null;
}

/**
 * Captions as cues of the video's own text track: the browser shows each when it is due on the video's clock.
 * Events: "change" whenever another text, or none, is due.
 */
export class Captions extends EventTarget {
  #video;
  #track;
  #known = new Map(); // connection and id → cues

  constructor(video) {
    super();
    this.#video = video;
    this.#track = video.addTextTrack("captions", "Captions");
    this.#track.mode = "hidden"; // timed by the browser, drawn by the page
    this.#track.addEventListener("cuechange", () => this.dispatchEvent(new Event("change")));
    video.addEventListener("webkitbeginfullscreen", () => (this.#track.mode = "showing")); // a phone's own player hides the page
    video.addEventListener("webkitendfullscreen", () => (this.#track.mode = "hidden"));
  }

  /** What is due now: {text, sentence}, the sentence that the text is a part of; both "" where nothing is. */
  get now() {
    const cue = [...(this.#track.activeCues ?? [])].at(-1);
    return { text: cue?.text ?? "", sentence: cue?.sentence ?? "" };
  }

  /** A caption of the stream whose 0 stands at `offset` seconds of the video; a later one of the same id replaces it. */
  tell(caption, offset) {
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

  /** Another stream is shown. */
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

/** A long sentence in parts of about the same length: they change where their words are heard, or else by their letters. */
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
    // a part begins where that is nearest to its even share, so that no word is left over for a part of its own
    const begins = out.length < most && passed + unit.text.length / 2 >= (out.length * text.length) / most;
    if (begins) out.push({ ...unit, start: out.length ? unit.start : start_s });
    else out.at(-1).text += ` ${unit.text}`;
    passed += unit.text.length + 1;
  }
  return out.map((part, k) => ({ ...part, end: out[k + 1]?.start ?? end_s }));
}
