/** Records the microphone as a WAV file, with its level while it records. Knows nothing of the page. */

export class Recorder {
  #chunks = [];
  #samples = 0;

  /** level(0 to 1) is called some 90 times a second. Throws where there is no microphone or no permission. */
  static async start(level) {
    const recorder = new Recorder();
    recorder.stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, noiseSuppression: true, channelCount: 1 } });
    recorder.context = new AudioContext();
    await recorder.context.audioWorklet.addModule(new URL("recorder.worklet.js", import.meta.url));
    recorder.node = new AudioWorkletNode(recorder.context, "recorder", { numberOfOutputs: 0 });
    recorder.node.port.onmessage = ({ data }) => {
      recorder.#chunks.push(data);
      recorder.#samples += data.length;
      level(loudness(data));
    };
    recorder.context.createMediaStreamSource(recorder.stream).connect(recorder.node);
    await recorder.context.resume();
    return recorder;
  }

  get seconds() {
    return this.#samples / this.context.sampleRate;
  }

  /** The recording as the bytes of a WAV file. */
  stop() {
    for (const track of this.stream.getTracks()) track.stop();
    this.context.close();
    return wav(this.#chunks, this.#samples, this.context.sampleRate);
  }
}

/** 0 at −54 dB and below, 1 at 0 dB. */
const loudness = (samples) => {
  const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
  return Math.min(1, Math.max(0, 1 + Math.log10(power + 1e-9) / 5.4));
};

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
