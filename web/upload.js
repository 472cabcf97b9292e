/** The form that adds an avatar, with the progress of upload and preparation. */

import { Failure, address, withAuth, failureOf, getJson } from "./api.js";
import { showFormError } from "./form-error.js";

const STEP_NAMES = { upload: "Uploading" };
const ASK = "Choose or drop a video or picture of one face";
const $ = (id) => document.getElementById(id);

const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} KB` : `${(bytes / 1e6).toFixed(1)} MB`);

/** Events: "ready" {name} after an avatar was prepared. */
export class Upload extends EventTarget {
  #call = null; // AbortController of the running upload

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
    showFormError("upload-error");
  }

  async #send(file, name) {
    if (this.#call) return;
    this.#call = new AbortController();
    const { signal } = this.#call;
    this.#show(true);
    this.#progress({ step: "upload", done: 0, total: file.size });
    try {
      const known = await getJson("avatars"); // sign in before a long upload, not after it
      if (known.some(({ avatar_id }) => avatar_id === name)) throw new Failure(`An avatar named “${name}” already exists.`, "Choose another name.");
      await withAuth(() => prepare(file, name, (event) => this.#progress(event), signal));
      $("upload-form").reset();
      this.#chosen();
      this.#show(false);
      $("upload-step").textContent = `${name} is ready.`;
      $("upload-progress").hidden = false;
      this.dispatchEvent(new CustomEvent("ready", { detail: { name } }));
    } catch (failure) {
      this.#show(false);
      if (signal.aborted) return $("upload-go").focus();
      showFormError("upload-error", `${failure.message} ${failure.remedy}`);
    }
  }

  #show(on) {
    if (!on) this.#call = null;
    showFormError("upload-error");
    $("upload-progress").hidden = !on;
    $("upload-bar").hidden = $("upload-cancel").hidden = !on;
    for (const way of ["upload-go", "upload-file", "upload-name"]) $(way).disabled = on;
    $("upload-go").textContent = on ? "Preparing …" : "Prepare";
  }

  #progress({ step, done, total }) {
    if (total) $("upload-bar").value = done / total;
    else $("upload-bar").removeAttribute("value"); // indeterminate
    const name = STEP_NAMES[step] ?? step[0].toUpperCase() + step.slice(1);
    const words = total ? `${name}, ${Math.floor((100 * done) / total)} %` : name;
    if ($("upload-step").textContent !== words) $("upload-step").textContent = words;
  }
}

/** POST /avatars; onProgress({step, done, total}) for the upload, then for each line the server sends. Throws Failure. */
function prepare(file, name, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest(); // fetch does not report upload progress
    let read = 0;
    let report = null;
    const lines = () => {
      const whole = call.responseText.lastIndexOf("\n") + 1;
      for (const line of call.responseText.slice(read, whole).split("\n").filter(Boolean)) {
        const event = JSON.parse(line);
        if (event.error) return reject(new Failure(event.error.message, event.error.remedy, event.error.code, 200));
        if (event.report) report = event.report;
        else onProgress(event);
      }
      read = whole;
    };
    call.open("POST", address("avatars", { avatar_id: name }));
    call.upload.onprogress = ({ loaded, total }) => onProgress({ step: "upload", done: loaded, total });
    call.onprogress = () => call.status === 200 && lines();
    call.onerror = () => broken().then(reject);
    call.onabort = () => reject(new Failure("The upload was cancelled."));
    call.onload = () => {
      if (call.status === 200) {
        lines();
        return report ? resolve(report) : reject(new Failure("The preparation failed.", "Send it again."));
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

/** Why an upload failed: a server that requires a key may close the connection during it. */
async function broken() {
  const answer = await fetch(address("avatars")).catch(() => null);
  if (answer?.status === 401) return failureOf(answer);
  return new Failure("The upload failed.", "Check your connection and send it again.");
}
