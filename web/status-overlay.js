/** The message over the video while it is not live. */

const $ = (id) => document.getElementById(id);

export class StatusOverlay {
  #tick = 0;

  /** Waiting for the first frame of a session. */
  connecting() {
    this.#say("Connecting", "Loading the first frame.", { waits: true });
  }

  /** Reconnecting; the reason of the failure stays visible. */
  again() {
    const known = $("screen").dataset.state === "lost";
    this.#say(known ? $("status-title").textContent : "Connection lost.", "Reconnecting …", { waits: true, retry: !$("retry").hidden }); // keeps the keyboard focus
  }

  /** Connection lost; the next attempt is in retryMs. */
  lost({ message, remedy }, retryMs) {
    const triesAt = performance.now() + retryMs;
    const count = () => {
      const seconds = Math.max(1, Math.ceil((triesAt - performance.now()) / 1000));
      this.#write("status-text", `${remedy} Next attempt in ${seconds} s.`.trim());
    };
    this.#say(message, "", { retry: true });
    count();
    this.#tick = setInterval(count, 250);
  }

  ended() {
    this.#say("This chat has ended", "Start a new chat to continue.", { fresh: true });
  }

  #say(title, text, { waits = false, retry = false, fresh = false }) {
    clearInterval(this.#tick);
    this.#write("status-title", title);
    this.#write("status-text", text);
    $("status-card").querySelector(".spinner").hidden = !waits;
    $("retry").hidden = !retry;
    $("fresh-here").hidden = !fresh;
  }

  #write(id, text) {
    if ($(id).textContent !== text) $(id).textContent = text; // unchanged text is not announced again
  }
}
