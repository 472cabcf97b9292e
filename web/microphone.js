/** The microphone: recordings as WAV files, the input level, and detection of turns. */

const BEGIN_S = 0.12; // of speech before a turn begins; a click is shorter
const END_S = 0.7; // of silence before a turn ends; longer than pauses within a sentence
const BEFORE_S = 0.5; // pre-roll: the first sound of a turn may be soft
const LONGEST_TURN_S = 30;
const ABOVE_DB = 12; // speech is this much louder than the background
const SOFTEST_DB = -50; // dBFS; the browser's noise suppression has run already
const FLOOR_DB = [-80, -38]; // limits of the background estimate, dBFS
const FLOOR_RISE_DB_S = 4; // how fast the background estimate may rise; it falls at once

export class Recorder {
  #chunks = [];
  #samples = 0;

  /**
   * heard(level from 0 to 1, dBFS, seconds) is called per block, about 90 times per second.
   * Throws if there is no microphone or no permission.
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

  /** The recording since the start or the last `take`, as a WAV file. */
  take() {
    const taken = wav(this.#chunks, this.#samples, this.context.sampleRate);
    this.#chunks = [];
    this.#samples = 0;
    return taken;
  }

  /** Drop everything but the pre-roll. */
  trim() {
    while (this.#chunks.length && this.#samples - this.#chunks[0].length >= BEFORE_S * this.context.sampleRate)
      this.#samples -= this.#chunks.shift().length;
  }

  /** Release the microphone and return the recording. */
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

/** Detects the beginning and end of speech from the loudness of blocks. Estimates the background between turns. */
export class Turns {
  #floorDb = FLOOR_DB[1];
  #loudS = 0;
  #quietS = 0;
  #turnS = 0;
  speaks = false;

  /** Process the loudness of the next block. Returns "begin", "end", or "" if nothing changes. */
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
