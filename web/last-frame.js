/** The picture that stays while no live one is there: the last frame that was seen, or before the first the avatar's poster. */

export class Still {
  #video;
  #canvas;
  #avatar = "";
  #awaited = 0; // counts sources: a frame of one before the last ends nothing

  constructor(video, canvas) {
    [this.#video, this.#canvas] = [video, canvas];
  }

  get #kept() {
    return this.#canvas.dataset.of ?? ""; // frame, poster, or nothing
  }

  /** Keep what the video shows: it is about to lose it. */
  hold() {
    const { videoWidth, videoHeight, srcObject } = this.#video;
    const gone = srcObject && !srcObject.active; // a connection that has ended shows black
    if (this.#kept === "frame" || gone || !this.#seen) return;
    this.#draw("frame", this.#video, videoWidth, videoHeight);
  }

  /** The video has just been given a new source: its first frame replaces what is kept. */
  release() {
    const awaited = ++this.#awaited;
    const seen = () => awaited === this.#awaited && this.#canvas.removeAttribute("data-of");
    if (this.#video.requestVideoFrameCallback) this.#video.requestVideoFrameCallback(seen);
    else this.#video.addEventListener("timeupdate", seen, { once: true });
  }

  /** Whose picture is going to come. What is kept of another goes; where nothing is, the poster at `url` is shown. */
  async of(avatar, url) {
    if (avatar !== this.#avatar) this.#canvas.removeAttribute("data-of");
    this.#avatar = avatar;
    if (this.#kept) return;
    const image = Object.assign(new Image(), { src: url });
    try {
      await image.decode();
    } catch {
      return; // it has none
    }
    if (!this.#kept && avatar === this.#avatar && !this.#seen) this.#draw("poster", image, image.naturalWidth, image.naturalHeight);
  }

  get #seen() {
    return this.#video.videoWidth > 0 && this.#video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA;
  }

  #draw(of, picture, width, height) {
    Object.assign(this.#canvas, { width, height });
    this.#canvas.getContext("2d").drawImage(picture, 0, 0, width, height);
    this.#canvas.dataset.of = of;
  }
}
