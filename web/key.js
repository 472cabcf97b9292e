/** The sign-in dialog: asks for the API key once, however many requests wait for it. */

import { showFormError } from "./form-error.js";

const $ = (id) => document.getElementById(id);
const SIGNED_IN = "warmtalk-signed-in"; // remembers that there is a cookie, which scripts cannot read

export class Key {
  #asking = null;
  #send;

  /** send(key): exchanges the key for a cookie, throws a Failure. forget(): removes the cookie. */
  constructor({ send, forget }) {
    this.#send = send;
    $("key").addEventListener("cancel", (event) => event.preventDefault()); // the page does not work without a key
    $("key-show").addEventListener("change", () => ($("key-input").type = $("key-show").checked ? "text" : "password"));
    $("sign-out").hidden = !localStorage.getItem(SIGNED_IN);
    $("sign-out").addEventListener("click", () => this.#leave(forget));
  }

  async #leave(forget) {
    showFormError("chat-error");
    $("sign-out").disabled = true;
    try {
      await forget();
    } catch (failure) {
      const remedy = failure.status ? failure.remedy : "Check your connection, then sign out again.";
      return showFormError("chat-error", `You are still signed in. ${failure.message} ${remedy}`);
    } finally {
      $("sign-out").disabled = false;
    }
    localStorage.removeItem(SIGNED_IN);
    location.reload();
  }

  /** Resolves after sign-in. */
  ask() {
    this.#asking ??= this.#ask().finally(() => (this.#asking = null));
    return this.#asking;
  }

  async #ask() {
    const [dialog, input] = [$("key"), $("key-input")];
    if (!dialog.open) dialog.showModal();
    input.focus();
    for (;;) {
      const key = await new Promise((resolve) => {
        $("key-form").addEventListener("submit", (event) => (event.preventDefault(), resolve(input.value.trim())), { once: true });
      });
      this.#busy(true);
      showFormError("key-error");
      try {
        await this.#send(key);
        break;
      } catch (failure) {
        showFormError("key-error", refusal(failure));
        input.setAttribute("aria-invalid", String(failure.status === 401));
        input.focus();
        input.select();
      } finally {
        this.#busy(false);
      }
    }
    localStorage.setItem(SIGNED_IN, "1");
    $("sign-out").hidden = false;
    input.removeAttribute("aria-invalid");
    input.value = "";
    dialog.close();
  }

  #busy(on) {
    $("key-go").disabled = on;
    $("key-go").textContent = on ? "Signing in …" : "Sign in";
  }
}

/** The message for a failed sign-in. */
function refusal({ status, message, remedy }) {
  if (status === 401) return "This key is not valid.";
  return `${message} ${status ? remedy : "Check your connection, then sign in again."}`;
}
