/** The form that adds an avatar: a file, a name, and how far its upload and preparation are. */

import { Failure, address, admitted, failureOf, getJson } from "./api.js";
import { wrong } from "./form-error.js";

const STEP_NAMES = { upload: "Uploading" };
const ASK = "Choose a video or a picture of one face, or drop it here";
const $ = (id) => document.getElementById(id);

const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} KB` : `${(bytes / 1e6).toFixed(1)} MB`);

/** Events: "ready" {name} when an avatar has been prepared. */
export class Upload extends EventTarget {
  #call = null; // AbortController of what is under way

  constructor() {
    super();
    $("upload-file").addEventListener("change", () => this.#chosen());
    $("upload-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send($("upload-file").files[0], $("upload-name").value);
    });
    $("upload-cancel").addEventListener("click", () => this.#call?.abort());
    for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]])
      $("drop").addEventListener(name, (event) => {
        event.preventDefault();
        if (this.#call) return;
        $("drop").classList.toggle("over", over);
        if (name === "drop" && event.dataTransfer.files.length) {
          $("upload-file").files = event.dataTransfer.files;
          this.#chosen();
        }
      });
  }

  #chosen() {
    const [file] = $("upload-file").files;
    $("drop").classList.toggle("chosen", Boolean(file));
    $("drop-text").textContent = file ? `${file.name} (${size(file.size)})` : ASK;
    if (file) $("upload-name").value ||= file.name.replace(/\.[^.]*$/, "").toLowerCase().replace(/[^a-z0-9_-]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 64);
    wrong("upload-error");
  }

  async #send(file, name) {
    if (this.#call) return;
    this.#call = new AbortController();
    const { signal } = this.#call;
    this.#show(true);
    this.#told({ step: "upload", done: 0, total: file.size });
    try {
      const known = await getJson("avatars"); // who has to sign in does so before a long upload, and not behind it
      if (known.some(({ avatar_id }) => avatar_id === name)) throw new Failure(`There is an avatar “${name}” already.`, "Choose another name.");
      await admitted(() => prepare(file, name, (event) => this.#told(event), signal));
      $("upload-form").reset();
      this.#chosen();
      this.#show(false);
      $("upload-step").textContent = `${name} is ready.`;
      $("upload-progress").hidden = false;
      this.dispatchEvent(new CustomEvent("ready", { detail: { name } }));
    } catch (failure) {
      this.#show(false);
      if (signal.aborted) return $("upload-go").focus();
      wrong("upload-error", `${failure.message} ${failure.remedy}`);
    }
  }

  #show(on) {
    if (!on) this.#call = null;
    wrong("upload-error");
    $("upload-progress").hidden = !on;
    $("upload-bar").hidden = $("upload-cancel").hidden = !on;
    for (const way of ["upload-go", "upload-file", "upload-name"]) $(way).disabled = on;
    $("upload-go").textContent = on ? "Preparing …" : "Prepare";
  }

  #told({ step, done, total }) {
    if (total) $("upload-bar").value = done / total;
    else $("upload-bar").removeAttribute("value"); // it is not known how far
    const name = STEP_NAMES[step] ?? step[0].toUpperCase() + step.slice(1);
    const words = total ? `${name}, ${Math.floor((100 * done) / total)} %` : name;
    if ($("upload-step").textContent !== words) $("upload-step").textContent = words;
  }
}

/** POST /avatars; told({step, done, total}) of the upload, then of each line that the server sends. Throws Failure. */
function prepare(file, name, told, signal) {
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
    call.onerror = () => broken().then(reject);
    call.onabort = () => reject(new Failure("The upload was cancelled."));
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
    signal.addEventListener("abort", () => call.abort());
    call.send(file);
  });
}

/** Why an upload broke off: a server that wants a key may hang up in the midst of it. */
async function broken() {
  const answer = await fetch(address("avatars")).catch(() => null);
  if (answer?.status === 401) return failureOf(answer);
  return new Failure("The upload broke off.", "Check the connection and send it again.");
}
