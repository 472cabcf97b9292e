/** The words over the picture while none is live: what happens, why, and what can be done about it. */

const $ = (id) => document.getElementById(id);

export class Veil {
  #tick = 0;

  /** The first picture of a session is awaited. */
  connecting() {
    this.#say("Waking the presenter", "The first picture is on its way.", { waits: true });
  }

  /** The picture went, and is being asked for once more; why it went stays to be read. */
  again() {
    const known = $("screen").dataset.state === "lost";
    this.#say(known ? $("veil-title").textContent : "The picture broke off.", "Trying again …", { waits: true, retry: !$("retry").hidden }); // who stands on it stays there
  }

  /** There is no picture; the next try is in so many milliseconds. */
  lost({ message, remedy }, retryMs) {
    const triesAt = performance.now() + retryMs;
    const count = () => {
      const seconds = Math.max(1, Math.ceil((triesAt - performance.now()) / 1000));
      this.#write("veil-text", `${remedy} Next try in ${seconds} s.`);
    };
    this.#say(message, "", { retry: true });
    count();
    this.#tick = setInterval(count, 250);
  }

  ended() {
    this.#say("This chat has ended", "Begin a new one to talk on.", { fresh: true });
  }

  #say(title, text, { waits = false, retry = false, fresh = false }) {
    clearInterval(this.#tick);
    this.#write("veil-title", title);
    this.#write("veil-text", text);
    $("veil-card").querySelector(".spinner").hidden = !waits;
    $("retry").hidden = !retry;
    $("fresh-here").hidden = !fresh;
  }

  #write(id, text) {
    if ($(id).textContent !== text) $(id).textContent = text; // what did not change is not read aloud again
  }
}
