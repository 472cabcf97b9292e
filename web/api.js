/** Requests to the server. Every failure is a `Failure` with a message and a remedy. */

const ROOT = new URL(".", document.baseURI);
const TIMEOUT_MS = 20_000;

/** The absolute URL of a path on this server, whatever prefix it is mounted under. */
export const address = (path, query = {}) => {
  const url = new URL(path.replace(/^\//, ""), ROOT);
  for (const [key, value] of Object.entries(query)) if (value !== undefined && value !== null && value !== "") url.searchParams.set(key, value);
  return url.href;
};

export class Failure extends Error {
  /** status: HTTP status, 0 if there was no response. */
  constructor(message, remedy = "", code = "unreachable", status = 0) {
    super(message);
    Object.assign(this, { remedy, code, status });
  }
  /** Whether the same request may succeed later. */
  get retryable() {
    return this.status === 0 || this.status === 429 || this.status === 502 || this.status === 503 || this.status === 504;
  }
}

/** The error of a response that is not ok, as a Failure. */
export async function failureOf(answer) {
  try {
    const { error } = await answer.json();
    return new Failure(error.message, error.remedy, error.code, answer.status);
  } catch {
    return new Failure(`The server answered ${answer.status}.`, "Try again in a moment.", "http", answer.status);
  }
}

/** Set by the page: `ask` shows the sign-in dialog and resolves after sign-in. */
export const auth = { ask: null };

/** A response whose status is ok; signs in first if needed. Throws Failure, or AbortError if `signal` aborts. */
export const request = (path, options = {}) => (path === "login" ? attempt(path, options) : withAuth(() => attempt(path, options)));

/** Run `call`; if it fails with 401, sign in and run it again. */
export async function withAuth(call) {
  try {
    return await call();
  } catch (failure) {
    if (failure.status !== 401 || !auth.ask) throw failure;
    await auth.ask();
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
    if (limit?.aborted) throw new Failure("The server does not answer.", "It may be busy. Try again in a moment.");
    throw new Failure("The server cannot be reached.", "Check your connection.");
  }
  if (!answer.ok) throw await failureOf(answer);
  return answer;
}

export const getJson = async (path, options) => (await request(path, options)).json();

export const postJson = async (path, body, options = {}) =>
  (await request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), ...options })).json();

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Exponential backoff from `first` to `last` milliseconds, with jitter. */
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
