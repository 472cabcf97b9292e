/** Asks for the server's key where it wants one: once, for however many calls wait. Knows nothing of what they ask. */

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
    $("sign-out").addEventListener("click", async () => {
      await forget();
      localStorage.removeItem(SIGNED_IN);
      location.reload();
    });
  }

  /** Resolves when the server has taken a key. */
  ask() {
    this.#asking ??= this.#ask().finally(() => (this.#asking = null));
    return this.#asking;
  }

  async #ask() {
    const [dialog, input, error] = [$("key"), $("key-input"), $("key-error")];
    if (!dialog.open) dialog.showModal();
    input.focus();
    for (;;) {
      const key = await new Promise((resolve) => {
        $("key-form").addEventListener("submit", (event) => (event.preventDefault(), resolve(input.value.trim())), { once: true });
      });
      $("key-go").disabled = true;
      try {
        await this.#send(key);
        break;
      } catch (failure) {
        error.textContent = failure.status === 401 ? "That is not a key of this server." : `${failure.message} ${failure.remedy}`;
        error.hidden = false;
        input.select();
      } finally {
        $("key-go").disabled = false;
      }
    }
    localStorage.setItem(SIGNED_IN, "1");
    $("sign-out").hidden = false;
    error.hidden = true;
    input.value = "";
    dialog.close();
  }
}
