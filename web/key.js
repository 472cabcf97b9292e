/** Asks for the server's key where it wants one: once, for however many calls wait. Knows nothing of what they ask. */

import { wrong } from "./form-error.js";

const $ = (id) => document.getElementById(id);
const SIGNED_IN = "warmtalk-signed-in"; // that there is a cookie: no page can read the cookie itself

export class Key {
  #asking = null;
  #send;

  /** send(key): trades the key for a cookie; throws a failure with a message. forget(): gives the cookie back. */
  constructor({ send, forget }) {
    this.#send = send;
    $("key").addEventListener("cancel", (event) => event.preventDefault()); // behind it nothing works
    $("key-show").addEventListener("change", () => ($("key-input").type = $("key-show").checked ? "text" : "password"));
    $("sign-out").hidden = !localStorage.getItem(SIGNED_IN);
    $("sign-out").addEventListener("click", () => this.#leave(forget));
  }

  async #leave(forget) {
    wrong("chat-error");
    $("sign-out").disabled = true;
    try {
      await forget();
    } catch (failure) {
      const remedy = failure.status ? failure.remedy : "Check the connection, then sign out again.";
      return wrong("chat-error", `You are still signed in. ${failure.message} ${remedy}`);
    } finally {
      $("sign-out").disabled = false;
    }
    localStorage.removeItem(SIGNED_IN);
    location.reload();
  }

  /** Resolves when the server has taken a key. */
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
      wrong("key-error");
      try {
        await this.#send(key);
        break;
      } catch (failure) {
        wrong("key-error", refusal(failure));
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

/** Why there is no way in, in words. */
function refusal({ status, message, remedy }) {
  if (status === 401) return "That is not a key of this server.";
  return `${message} ${status ? remedy : "Check the connection, then sign in again."}`;
}
