/** The picture shown while there is no live video: the last frame, or the avatar's poster before the first frame. */

export class LastFrame {
  #video;
  #canvas;
  #avatar = "";
  #awaited = 0; // counts sources; frames of older sources are ignored

  constructor(video, canvas) {
    [this.#video, this.#canvas] = [video, canvas];
  }

  get #kept() {
    return this.#canvas.dataset.of ?? ""; // "frame", "poster" or ""
  }

  /** Capture the current frame before the video loses it. */
  hold() {
    const { videoWidth, videoHeight, srcObject } = this.#video;
    const gone = srcObject && !srcObject.active; // a closed connection shows black
    if (this.#kept === "frame" || gone || !this.#seen) return;
    this.#draw("frame", this.#video, videoWidth, videoHeight);
  }

  /** The video has a new source: remove the picture when its first frame is shown. */
  release() {
    const awaited = ++this.#awaited;
    const seen = () => awaited === this.#awaited && this.#canvas.removeAttribute("data-of");
    if (this.#video.requestVideoFrameCallback) this.#video.requestVideoFrameCallback(seen);
    else this.#video.addEventListener("timeupdate", seen, { once: true });
  }

  /** Set the avatar. Drops the picture of another avatar; shows the poster at `url` if there is no picture. */
  async of(avatar, url) {
    if (avatar !== this.#avatar) this.#canvas.removeAttribute("data-of");
    this.#avatar = avatar;
    if (this.#kept) return;
    const image = Object.assign(new Image(), { src: url });
    try {
      await image.decode();
    } catch {
      return; // there is no poster
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
