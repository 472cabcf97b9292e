/** Calls of the server. Every failure is a `Failure` with a sentence and a remedy. Knows nothing of the page. */

const ROOT = new URL(".", document.baseURI);
const TIMEOUT_MS = 20_000;

/** The absolute address of a path of this server, wherever it is mounted. */
export const address = (path, query = {}) => {
  const url = new URL(path.replace(/^\//, ""), ROOT);
  for (const [key, value] of Object.entries(query)) if (value !== undefined && value !== null && value !== "") url.searchParams.set(key, value);
  return url.href;
};

export class Failure extends Error {
  /** status: 0 where no answer came. */
  constructor(message, remedy = "", code = "unreachable", status = 0) {
    super(message);
    Object.assign(this, { remedy, code, status });
  }
  /** Whether the same request may succeed a little later. */
  get passing() {
    return this.status === 0 || this.status === 429 || this.status === 502 || this.status === 503 || this.status === 504;
  }
}

/** What an answer that is not ok says, as a Failure. */
export async function failureOf(answer) {
  try {
    const { error } = await answer.json();
    return new Failure(error.message, error.remedy, error.code, answer.status);
  } catch {
    return new Failure(`The server answered ${answer.status}.`, "Try again in a moment.", "http", answer.status);
  }
}

/** What to do where the server wants a key: `ask` resolves when it has one. Set by the page. */
export const door = { ask: null };

/** An answer whose status is ok, after the viewer was let in if need be. Throws Failure; AbortError where `signal` aborts. */
export const request = (path, options = {}) => (path === "login" ? attempt(path, options) : admitted(() => attempt(path, options)));

/** What `call` gives; where it is refused for want of a key, what it gives once the viewer was let in. */
export async function admitted(call) {
  try {
    return await call();
  } catch (failure) {
    if (failure.status !== 401 || !door.ask) throw failure;
    await door.ask();
    return call();
  }
}

async function attempt(path, { query, timeout = TIMEOUT_MS, signal, ...init }) {
  const limit = timeout ? AbortSignal.timeout(timeout) : null;
  const signals = [signal, limit].filter(Boolean);
  let answer;
  try {
    answer = await fetch(address(path, query), { ...init, signal: signals.length ? AbortSignal.any(signals) : undefined });
  } catch (error) {
    if (signal?.aborted) throw error;
    if (limit?.aborted) throw new Failure("The server does not answer.", "It may be busy: try again in a moment.");
    throw new Failure("The server cannot be reached.", "Check the connection. The page tries again by itself.");
  }
  if (!answer.ok) throw await failureOf(answer);
  return answer;
}

export const getJson = async (path, options) => (await request(path, options)).json();

export const postJson = async (path, body, options = {}) =>
  (await request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), ...options })).json();

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Pauses that double from `first` to `last` milliseconds, with jitter, so that pages do not come back in step. */
export class Backoff {
  constructor(first = 500, last = 8000) {
    Object.assign(this, { first, last, next: first });
  }
  reset() {
    this.next = this.first;
  }
  take() {
    const ms = this.next * (0.8 + 0.4 * Math.random());
    this.next = Math.min(this.next * 1.8, this.last);
    return ms;
  }
}
