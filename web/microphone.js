/** The microphone: sound as WAV files, its level while it records, and where turns begin and end. Knows nothing of the page. */

const BEGIN_S = 0.12; // of sound, for a turn to begin: a click is shorter
const END_S = 0.7; // of silence, for it to end: longer than the pauses within a sentence
const BEFORE_S = 0.5; // of what was before a turn goes with it: the first sound may be soft
const LONGEST_TURN_S = 30;
const ABOVE_DB = 12; // louder than the background by so much is speech
const SOFTEST_DB = -50; // below full scale; the browser has taken noise away already
const FLOOR_DB = [-80, -38]; // the background lies within
const FLOOR_RISE_DB_S = 4; // how fast it is believed to have become louder; it becomes softer at once

export class Recorder {
  #chunks = [];
  #samples = 0;

  /**
   * heard(level from 0 to 1, decibels below full scale, seconds) is called with each block, some 90 times a second.
   * Throws where there is no microphone or no permission.
   */
  static async start(heard) {
    const recorder = new Recorder();
    recorder.stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, noiseSuppression: true, channelCount: 1 } });
    recorder.context = new AudioContext();
    try {
      await recorder.#listen(heard);
    } catch (error) {
      recorder.#release();
      throw error;
    }
    return recorder;
  }

  async #listen(heard) {
    const { context, stream } = this;
    await context.audioWorklet.addModule(new URL("recorder.worklet.js", import.meta.url));
    this.node = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
    this.node.port.onmessage = ({ data }) => {
      this.#chunks.push(data);
      this.#samples += data.length;
      const db = decibels(data);
      heard(Math.min(1, Math.max(0, 1 + db / 54)), db, data.length / context.sampleRate);
    };
    context.createMediaStreamSource(stream).connect(this.node);
    await context.resume();
  }

  get seconds() {
    return this.#samples / this.context.sampleRate;
  }

  /** What was recorded since the start, or the last `take`, as the bytes of a WAV file. */
  take() {
    const taken = wav(this.#chunks, this.#samples, this.context.sampleRate);
    this.#chunks = [];
    this.#samples = 0;
    return taken;
  }

  /** Forget all but the last moment. */
  trim() {
    while (this.#chunks.length && this.#samples - this.#chunks[0].length >= BEFORE_S * this.context.sampleRate)
      this.#samples -= this.#chunks.shift().length;
  }

  /** Let go of the microphone; the recording so far. */
  stop() {
    this.node.port.onmessage = null;
    this.#release();
    return this.take();
  }

  #release() {
    for (const track of this.stream.getTracks()) track.stop();
    this.context.close();
  }
}

/** Finds where somebody begins to speak and ends, in the loudness of blocks. The background is learnt while nobody does. */
export class Turns {
  #floorDb = FLOOR_DB[1];
  #loudS = 0;
  #quietS = 0;
  #turnS = 0;
  speaks = false;

  /** The loudness of the next block → "begin", "end", or "" where nothing changes. */
  push(db, seconds) {
    const loud = db > Math.max(this.#floorDb + ABOVE_DB, SOFTEST_DB);
    if (!this.speaks) {
      this.#floorDb = Math.min(FLOOR_DB[1], Math.max(FLOOR_DB[0], Math.min(db, this.#floorDb + FLOOR_RISE_DB_S * seconds)));
      this.#loudS = Math.max(0, this.#loudS + (loud ? seconds : -seconds));
      if (this.#loudS < BEGIN_S) return "";
      this.speaks = true;
      this.#quietS = this.#turnS = 0;
      return "begin";
    }
    this.#turnS += seconds;
    this.#quietS = loud ? 0 : this.#quietS + seconds;
    if (this.#quietS < END_S && this.#turnS < LONGEST_TURN_S) return "";
    this.speaks = false;
    this.#loudS = 0;
    return "end";
  }
}

const decibels = (samples) => 10 * Math.log10(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length + 1e-9);

/** 16-bit mono PCM behind a 44-byte RIFF header. */
function wav(chunks, count, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (at, letters) => [...letters].forEach((letter, k) => view.setUint8(at + k, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * count, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const chunk of chunks)
    for (const sample of chunk) {
      view.setInt16(at, Math.max(-1, Math.min(1, sample)) * 32767, true);
      at += 2;
    }
  return new Blob([view], { type: "audio/wav" });
}
