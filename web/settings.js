/** The settings dialog: avatar, voice, speed, enhancement. Stored in the browser. */

import { address, getJson, request } from "./api.js";
import { Upload } from "./upload.js";
import { showFormError } from "./form-error.js";

const $ = (id) => document.getElementById(id);
const KEY = "warmtalk-settings";
const CHOOSING_MS = 400; // debounce: each avatar passed with the arrow keys would start a chat

const stored = () => {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
};

/** Events: "avatar" when another avatar is chosen. */
export class Settings extends EventTarget {
  #values = { avatar_id: "", voice: "", speed: 1, enhance: null, ...stored() };

  #choosing = 0;

  #leaving = ""; // the avatar in the confirmation dialog

  constructor() {
    super();
    $("open-settings").addEventListener("click", () => this.open());
    $("settings").addEventListener("click", (event) => event.target === $("settings") && $("settings").close());
    $("voice").addEventListener("change", () => this.#keep({ voice: $("voice").value }));
    $("speed").addEventListener("input", () => this.#keep({ speed: Number($("speed").value) }));
    $("enhance").addEventListener("change", () => this.#keep({ enhance: $("enhance").checked }));
    $("confirm-removal").addEventListener("close", () => $("confirm-removal").returnValue === "remove" && this.#remove(this.#leaving));
    new Upload().addEventListener("ready", ({ detail: { name } }) => this.#added(name));
    this.#keep({});
  }

  /** Options for /chat and /speak; omitted options use the server's defaults. */
  get speech() {
    const { voice, speed, enhance } = this.#values;
    return { ...(voice && { voice }), ...(speed !== 1 && { speed }), ...(enhance !== null && { enhance }) };
  }

  get avatar() {
    return this.#values.avatar_id;
  }

  /** The chosen avatar no longer exists: use the server's default. */
  forgetAvatar() {
    this.#keep({ avatar_id: "" });
  }

  open() {
    $("settings").showModal();
    this.refresh();
  }

  /** Reload avatars and voices from the server. */
  async refresh() {
    const [avatars, voices] = await Promise.all([getJson("avatars").catch((failure) => failure), getJson("voices").catch(() => null)]);
    if (voices) this.#showVoices(voices);
    const listed = Array.isArray(avatars);
    if (listed) this.#showAvatars(avatars);
    showFormError("avatars-error", listed ? "" : `The avatars cannot be listed. ${avatars.message} ${avatars.remedy}`);
  }

  async #added(name) {
    await this.refresh();
    document.querySelector(`#avatars input[value="${name}"]`)?.focus();
  }

  #keep(change) {
    Object.assign(this.#values, change);
    localStorage.setItem(KEY, JSON.stringify(this.#values));
    $("speed").value = this.#values.speed;
    $("speed-value").textContent = `${this.#values.speed.toFixed(1)} ×`;
    $("enhance").checked = this.#values.enhance === true;
  }

  #showVoices(voices) {
    const words = ({ name, ready, fetch_mb }, index) =>
      `${name[0].toUpperCase()}${name.slice(1)}${index ? "" : " (default)"}${ready ? "" : `: downloads ${fetch_mb.toFixed(0)} MB at first use`}`;
    $("voice").replaceChildren(...voices.map((voice, index) => new Option(words(voice, index), index ? voice.name : "")));
    $("voice").value = voices.some(({ name }) => name === this.#values.voice) ? this.#values.voice : "";
  }

  #showAvatars(avatars) {
    const known = avatars.map(({ avatar_id }) => avatar_id);
    if (!known.includes(this.#values.avatar_id)) this.#keep({ avatar_id: "" });
    const chosen = this.#values.avatar_id || (known.includes("presenter") ? "presenter" : known[0]);
    $("avatars").replaceChildren(...avatars.map((avatar) => this.#tile(avatar, avatar.avatar_id === chosen)));
  }

  #tile({ avatar_id, width, height, fps, version, removable }, checked) {
    const cell = Object.assign(document.createElement("div"), { className: "cell" });
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
      clearTimeout(this.#choosing);
      this.#choosing = setTimeout(() => this.dispatchEvent(new Event("avatar")), CHOOSING_MS);
    });
    tile.append(input, face, label);
    cell.append(tile);
    if (removable) cell.append(this.#remover(avatar_id));
    return cell;
  }

  /** A button that removes the avatar after confirmation. */
  #remover(name) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "round remove-avatar", title: `Remove ${name}` });
    button.setAttribute("aria-label", `Remove ${name}`);
    button.innerHTML = '<svg aria-hidden="true"><use href="web/icons.svg#close" /></svg>';
    button.addEventListener("click", () => {
      this.#leaving = name;
      $("confirm-removal-title").textContent = `Remove “${name}”?`;
      $("confirm-removal").returnValue = "";
      $("confirm-removal").showModal();
    });
    return button;
  }

  async #remove(name) {
    const shown = document.querySelector("#avatars :checked")?.value === name;
    try {
      await request(`avatars/${name}`, { method: "DELETE" });
    } catch (failure) {
      if (failure.code !== "avatar_not_found") return showFormError("avatars-error", `Not removed. ${failure.message} ${failure.remedy}`);
    }
    if (shown) this.#keep({ avatar_id: "" });
    await this.refresh();
    document.querySelector("#avatars :checked")?.focus(); // the button no longer exists
    if (shown) this.dispatchEvent(new Event("avatar")); // its chat has ended, so start a new one
  }
}
