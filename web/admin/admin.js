/** The page of the operator: polls /admin/state and shows it. Read only. Texts of the server are only set as textContent. */

import { Failure, getJson } from "../api.js";

const POLL_MS = 2000;
const STALE_MS = 3 * POLL_MS;
const ORDER = ["Ingress", "Chat", "TTS", "AudioFeatures", "LipSync", "Enhance", "Stitch", "Avatars", "Recognize"];
const MISSING = "–";

const $ = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const setTheme = () => {
  const chosen = localStorage.getItem("warmtalk-theme") ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = chosen;
};

/** An element with attributes and children; strings become text. */
function element(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

const number = (value, digits = 0) => (Number.isFinite(value) ? value.toLocaleString("en", { maximumFractionDigits: digits }) : MISSING);
const sum = (values) => values.reduce((total, value) => total + value, 0);
const row = (...cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));

const counted = new Map(); // replica → its batch counters at the previous poll, and the fill between the last two

/** Share of the places of a replica's batches that were filled since the previous poll that had a batch; in percent. */
function fill({ replica, batches, batched_frames: frames, config }) {
  if (!batches) return NaN;
  const before = counted.get(replica) ?? { batches: 0, frames: 0, fill: NaN };
  const made = batches - before.batches;
  const now = made > 0 ? (100 * (frames - before.frames)) / (made * config.batch_size) : before.fill;
  counted.set(replica, { batches, frames, fill: now });
  return now;
}

/** One line of a stage's table: a replica. */
function replicaRow(stats) {
  const { queue_ms: queue, compute_ms: compute, calls, span_s: span } = stats.recent ?? {};
  return row(
    element("code", { title: stats.replica }, stats.replica.slice(-6)),
    number(stats.queued ?? stats.viewers),
    queue ? `${number(queue.p50)} / ${number(queue.p95)}` : MISSING,
    compute ? `${number(compute.p50)} / ${number(compute.p95)}` : MISSING,
    number(calls / span, 1),
    number(fill(stats)),
    number(stats.gpu_reserved_mb || NaN),
    number(stats.rss_mb),
    number(stats.start_s, 1),
  );
}

const HEADS = [
  ["Replica", "The end of Serve's id"],
  ["Queue", "Calls or frames that wait; of Ingress: viewers"],
  ["Wait, ms", "Milliseconds in the queue, p50 / p95 of the last minute"],
  ["Compute, ms", "Milliseconds of computation, p50 / p95 of the last minute"],
  ["Calls/s", "In the last minute"],
  ["Fill, %", "Percent of the places in a batch"],
  ["GPU, MB", "MB that torch reserves"],
  ["RAM, MB", "MB of the process"],
  ["Start, s", "Seconds of the cold start"],
];

function stageCard(name, stage) {
  const running = stage.states.RUNNING ?? 0;
  const others = Object.entries(stage.states).filter(([state]) => state !== "RUNNING");
  const state = running >= stage.target ? "good" : "bad";
  const heading = element("h3", {}, name, element("span", { className: `count ${state}` }, `${running} of ${stage.target}`));
  const notes = [...others.map(([key, count]) => `${count} ${key.toLowerCase()}`), stage.message].filter(Boolean).join(" · ");
  const head = element("tr", {}, ...HEADS.map(([text, title]) => element("th", { scope: "col", title }, text)));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...stage.replicas.map(replicaRow)));
  const config = stage.replicas[0]?.config;
  return element(
    "article",
    { className: "card" },
    heading,
    notes ? element("p", { className: "note" }, notes) : null,
    element("div", { className: "scroll" }, table),
    config ? configOf(name, config) : null,
  );
}

const opened = new Set(); // stages whose config is shown

function configOf(name, config) {
  const lines = Object.entries(config).map(([key, value]) => `${key}: ${JSON.stringify(value)}`);
  const details = element("details", { open: opened.has(name) }, element("summary", {}, "Config"), element("pre", {}, lines.join("\n")));
  details.dataset.stage = name;
  details.addEventListener("toggle", () => (details.open ? opened.add(name) : opened.delete(name)));
  return details;
}

function sessionRow({ session_id, owner, speaking, watched }) {
  const state = [speaking && "speaks", watched && "watched"].filter(Boolean).join(", ");
  return row(session_id, state, element("code", { title: owner }, owner.slice(-6)));
}

function errorRow({ time_s, stage, code, message, session_id, request_id }) {
  return row(new Date(1000 * time_s).toLocaleTimeString(), stage, element("code", {}, code), message, session_id || MISSING, request_id || MISSING);
}

function show({ stages, sessions, viewers, errors }) {
  const names = Object.keys(stages).sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b));
  const speaking = sessions.filter((session) => session.speaking).length;
  const totals = {
    Sessions: sessions.length,
    Speaking: speaking,
    Viewers: viewers.viewers,
    WebRTC: viewers.webrtc,
    Replicas: sum(names.map((name) => stages[name].states.RUNNING ?? 0)),
    Errors: errors.length,
  };
  $("totals").replaceChildren(...Object.entries(totals).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, number(value)))));
  const focused = document.activeElement?.closest("details")?.dataset.stage;
  $("stages").replaceChildren(...names.map((name) => stageCard(name, stages[name])));
  if (focused) document.querySelector(`details[data-stage="${CSS.escape(focused)}"] summary`)?.focus();
  $("sessions").replaceChildren(...sessions.map(sessionRow));
  $("errors").replaceChildren(...errors.map(errorRow));
  for (const [id, entries] of Object.entries({ sessions, errors })) $(`no-${id}`).hidden = entries.length > 0;
}

let shownMs = 0;

function setFreshness(failure = null) {
  const stale = failure !== null && performance.now() - shownMs > STALE_MS;
  document.body.dataset.state = failure ? "stale" : "live";
  $("freshness").textContent = failure ? `${stale || !shownMs ? "Not up to date. " : ""}${failure.message} ${failure.remedy}` : `Live · ${new Date().toLocaleTimeString()}`;
}

async function poll() {
  try {
    const state = await getJson("admin/state");
    if (getSelection().isCollapsed) show(state); // redrawing would end the selection of a text to copy
    shownMs = performance.now();
    setFreshness();
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    setFreshness(failure);
  } finally {
    setTimeout(poll, POLL_MS);
  }
}

dark.addEventListener("change", setTheme);
setTheme();
poll();
