/** The settings: avatar, voice, pace, enhancement, and the upload of an avatar. Kept in the browser. */

import { Failure, address, getJson } from "./api.js";

const $ = (id) => document.getElementById(id);
const KEY = "warmtalk-settings";
const STEP_NAMES = { upload: "Uploading" };

const stored = () => {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
};

/** Events: "avatar" when another one is chosen. */
export class Settings extends EventTarget {
  #values = { avatar_id: "", voice: "", speed: 1, enhance: null, ...stored() };

  constructor() {
    super();
    $("open-settings").addEventListener("click", () => this.open());
    $("settings").addEventListener("click", (event) => event.target === $("settings") && $("settings").close());
    $("voice").addEventListener("change", () => this.#keep({ voice: $("voice").value }));
    $("speed").addEventListener("input", () => this.#keep({ speed: Number($("speed").value) }));
    $("enhance").addEventListener("change", () => this.#keep({ enhance: $("enhance").checked }));
    $("upload-file").addEventListener("change", () => this.#chosen());
    $("upload-form").addEventListener("submit", (event) => this.#upload(event));
    for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]])
      $("drop").addEventListener(name, (event) => {
        event.preventDefault();
        $("drop").classList.toggle("over", over);
        if (name === "drop" && event.dataTransfer.files.length) {
          $("upload-file").files = event.dataTransfer.files;
          this.#chosen();
        }
      });
    this.#keep({});
  }

  /** What /chat and /speak are asked with; what was not chosen is left to the server. */
  get speech() {
    const { voice, speed, enhance } = this.#values;
    return { ...(voice && { voice }), ...(speed !== 1 && { speed }), ...(enhance !== null && { enhance }) };
  }

  get avatar() {
    return this.#values.avatar_id;
  }

  /** The chosen avatar is gone: let the server choose. */
  forgetAvatar() {
    this.#keep({ avatar_id: "" });
  }

  open() {
    $("settings").showModal();
    this.refresh();
  }

  /** Ask the server what there is. */
  async refresh() {
    const [avatars, voices] = await Promise.all([getJson("avatars").catch(() => null), getJson("voices").catch(() => null)]);
    if (voices) this.#showVoices(voices);
    if (avatars) this.#showAvatars(avatars);
    else $("avatars").textContent = "The avatars cannot be listed at the moment.";
  }

  #keep(change) {
    Object.assign(this.#values, change);
    localStorage.setItem(KEY, JSON.stringify(this.#values));
    $("speed").value = this.#values.speed;
    $("speed-value").textContent = `${this.#values.speed.toFixed(1)} ×`;
    $("enhance").checked = this.#values.enhance === true;
  }

  #showVoices(voices) {
    const names = voices.map((name, index) => new Option(`${name[0].toUpperCase()}${name.slice(1)}${index ? "" : " (default)"}`, index ? name : ""));
    $("voice").replaceChildren(...names);
    $("voice").value = voices.includes(this.#values.voice) ? this.#values.voice : "";
  }

  #showAvatars(avatars) {
    const known = avatars.map(({ avatar_id }) => avatar_id);
    if (!known.includes(this.#values.avatar_id)) this.#keep({ avatar_id: "" });
    const chosen = this.#values.avatar_id || (known.includes("presenter") ? "presenter" : known[0]);
    $("avatars").replaceChildren(...avatars.map((avatar) => this.#tile(avatar, avatar.avatar_id === chosen)));
  }

  #tile({ avatar_id, width, height, fps, version }, checked) {
    const tile = Object.assign(document.createElement("label"), { className: "avatar" });
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "avatar", value: avatar_id, checked });
    const face = Object.assign(document.createElement("span"), { className: "face" });
    const image = Object.assign(new Image(), { alt: "", loading: "lazy", src: address(`avatars/${avatar_id}/poster.jpg`, { v: version }) });
    image.addEventListener("error", () => (face.textContent = avatar_id[0].toUpperCase()));
    face.append(image);
    const label = Object.assign(document.createElement("span"), { className: "label", textContent: avatar_id });
    label.append(Object.assign(document.createElement("small"), { textContent: `${width} × ${height}, ${fps} fps` }));
    input.addEventListener("change", () => {
      this.#keep({ avatar_id });
      this.dispatchEvent(new Event("avatar"));
    });
    tile.append(input, face, label);
    return tile;
  }

  #chosen() {
    const [file] = $("upload-file").files;
    if (!file) return;
    $("drop-text").textContent = `${file.name} (${(file.size / 1e6).toFixed(1)} MB)`;
    $("upload-name").value ||= file.name.replace(/\.[^.]*$/, "").toLowerCase().replace(/[^a-z0-9_-]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 64);
  }

  async #upload(event) {
    event.preventDefault();
    const [file] = $("upload-file").files;
    const name = $("upload-name").value;
    $("upload-error").hidden = true;
    $("upload-progress").hidden = false;
    $("upload-go").disabled = true;
    try {
      await prepare(file, name, ({ step, done, total }) => {
        $("upload-bar").value = total ? done / total : 0;
        $("upload-step").textContent = `${STEP_NAMES[step] ?? step[0].toUpperCase() + step.slice(1)}${total ? `, ${Math.round((100 * done) / total)} %` : ""}`;
      });
      $("upload-step").textContent = `${name} is ready.`;
      $("upload-form").reset();
      $("drop-text").textContent = "Choose a video or a picture of one face, or drop it here";
      await this.refresh();
      document.querySelector(`#avatars input[value="${name}"]`)?.focus();
    } catch (failure) {
      $("upload-progress").hidden = true;
      $("upload-error").textContent = `${failure.message} ${failure.remedy}`;
      $("upload-error").hidden = false;
    } finally {
      $("upload-go").disabled = false;
    }
  }
}

/** POST /avatars; told(step, done, total) of the upload, then of each line that the server sends. Throws Failure. */
function prepare(file, name, told) {
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest(); // fetch does not tell how much of an upload has gone
    let read = 0;
    let report = null;
    const lines = () => {
      const whole = call.responseText.lastIndexOf("\n") + 1;
      for (const line of call.responseText.slice(read, whole).split("\n").filter(Boolean)) {
        const event = JSON.parse(line);
        if (event.error) return reject(new Failure(event.error.message, event.error.remedy, event.error.code, 200));
        if (event.report) report = event.report;
        else told(event);
      }
      read = whole;
    };
    call.open("POST", address("avatars", { avatar_id: name }));
    call.upload.onprogress = ({ loaded, total }) => told({ step: "upload", done: loaded, total });
    call.onprogress = () => call.status === 200 && lines();
    call.onerror = () => reject(new Failure("The upload broke off.", "Check the connection and send it again."));
    call.onload = () => {
      if (call.status === 200) {
        lines();
        return report ? resolve(report) : reject(new Failure("The preparation broke off.", "Send it again."));
      }
      try {
        const { error } = JSON.parse(call.responseText);
        reject(new Failure(error.message, error.remedy, error.code, call.status));
      } catch {
        reject(new Failure(`The server answered ${call.status}.`, "Send it again.", "http", call.status));
      }
    };
    call.send(file);
  });
}
