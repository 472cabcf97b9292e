/** The chat page: binds the live picture, the conversation, the microphone and the settings to one session. */

import { address, door, getJson, postJson, request } from "./api.js";
import { Conversation } from "./conversation.js";
import { Key } from "./key.js";
import { draw, follow, making } from "./latency.js";
import { Listening } from "./listening.js";
import { LivePlayer } from "./live.js";
import { Replay } from "./replay.js";
import { Settings } from "./settings.js";
import { Still } from "./last-frame.js";
import { Captions } from "./stream-events.js";
import { Veil } from "./status-overlay.js";
import { wrong } from "./form-error.js";

const $ = (id) => document.getElementById(id);
const NEAR = 400; // characters that a message still has room for: from here on it is told
const UNDERSTOOD_MS = 60_000; // a recording of two minutes takes a busy CPU that long
const video = $("video");
const player = new LivePlayer(video, new URLSearchParams(location.search).get("via"));
const still = new Still(video, $("still"));
const veil = new Veil();
const captions = new Captions(video);
const conversation = new Conversation();
const settings = new Settings();
const listening = new Listening();
const replay = new Replay(video);
const key = new Key({
  send: (value) => request("login", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ key: value }) }),
  forget: () => request("login", { method: "DELETE" }),
});
door.ask = () => key.ask();
const page = { session: "", live: false, seen: false, ended: false, job: "done", captions: true, hears: false };

// --- the session: one a tab

const ID = /^[a-z0-9_-]{1,64}$/;
const newId = () => `web-${crypto.getRandomValues(new Uint32Array(2)).reduce((text, n) => text + n.toString(36), "")}`.slice(0, 24);

/** Hold the id for as long as the tab lives: a duplicated tab has the same sessionStorage, and must not share it. */
const hold = (id) =>
  new Promise((resolve) => {
    if (!navigator.locks) return resolve(true);
    navigator.locks.request(`warmtalk-${id}`, { ifAvailable: true }, (lock) => {
      resolve(Boolean(lock));
      return lock ? new Promise(() => {}) : undefined;
    });
  });

async function openSession(id) {
  const named = id ? undefined : ID.exec(new URLSearchParams(location.search).get("session") ?? "")?.[0]; // it becomes part of addresses
  let session = id ?? named ?? sessionStorage.getItem("warmtalk-session") ?? newId();
  if (session !== named && !(await hold(session))) {
    session = newId();
    await hold(session);
  }
  page.session = session;
  page.seen = false;
  sessionStorage.setItem("warmtalk-session", session);
  $("conversation-name").textContent = named ? `Session ${session}` : "";
  $("conversation-name").hidden = !named;
  $("download").href = address(`sessions/${session}/download.mp4`);
  $("download").download = `${session}.mp4`;
  $("download-captions").href = address(`sessions/${session}/captions.vtt`);
  $("download-captions").download = `${session}.vtt`;
  $("screen").dataset.state = "loading";
  player.play(async () => {
    await ensure(session);
    return address(`sessions/${session}/live.mp4`);
  });
  replay.forget();
  await conversation.open(session);
}

/** Have the server know the session, with the chosen avatar; one that it knows already keeps its own. */
async function ensure(session) {
  const body = { session_id: session, ...(settings.avatar && { avatar_id: settings.avatar }) };
  try {
    const { avatar_id: face } = await postJson("sessions", body);
    still.of(face, address(`avatars/${face}/poster.jpg`));
  } catch (failure) {
    if (failure.code === "avatar_not_found") settings.forgetAvatar();
    if (failure.status !== 409 && failure.code !== "bad_input") throw failure;
  }
}

/** Another chat. What this one still says is for nobody any more; a named session may have other viewers. */
function fresh() {
  const here = new URL(location.href);
  if (here.searchParams.has("session")) {
    here.searchParams.delete("session");
    history.replaceState(null, "", here); // a reload stays in the new one
  } else if (page.job !== "done") request(`sessions/${page.session}/interrupt`, { method: "POST" }).catch(() => {});
  return openSession(newId());
}

// --- what the page shows

function show() {
  const state = page.ended ? "ended" : !page.live ? "offline" : page.job === "thinking" || page.job === "queued" ? "thinking" : page.job === "speaking" ? "speaking" : "live";
  const words = { offline: page.seen ? "Reconnecting" : "Connecting", thinking: "Thinking", speaking: "Speaking", live: "Live", ended: "Ended" };
  $("pill").dataset.state = state;
  if ($("pill-text").textContent !== words[state]) $("pill-text").textContent = words[state];
  for (const way of [$("message"), $("mic"), $("send"), ...$("suggestions").children]) way.disabled = page.ended;
  offer("interrupt", state === "speaking" || state === "thinking", "message");
  const { text } = captions.now;
  $("caption").hidden = !(page.captions && text && page.live);
  $("caption-text").textContent = text;
  offer("unmute", video.muted && page.live && !page.chose, "mute");
  $("mute").setAttribute("aria-pressed", String(video.muted));
  name("mute", video.muted ? "Sound is off: turn it on" : "Sound is on: turn it off");
  $("mute-icon").setAttribute("href", `web/icons.svg#${video.muted ? "muted" : "sound"}`);
}

/** Name a button that shows a picture alone: for who hears it, and for who points at it. */
const name = (id, words) => ["aria-label", "title"].forEach((attribute) => $(id).setAttribute(attribute, words));

/** Show a button, or hide it; who stands on it with the keyboard is not left nowhere. */
function offer(id, on, next) {
  const stood = !on && $(id).matches(":focus-visible");
  $(id).hidden = !on;
  if (stood) $(next).focus();
}

/** Say what the keys do now, or how much more fits into the message. */
function hint() {
  const left = $("message").maxLength - $("message").value.length;
  const near = !listening.on && left <= NEAR;
  const recording = listening.handsFree ? "A pause ends your turn. Esc stops listening." : "Enter sends the recording, Esc discards it.";
  const room = left ? `Room for ${left < 50 ? left : `about ${Math.floor(left / 50) * 50}`} more characters.` : `A message has room for ${$("message").maxLength} characters: no more was taken.`;
  const words = near ? room : listening.on ? recording : "Enter sends, Shift + Enter makes a new line, Esc interrupts.";
  $("hint").classList.toggle("now", near);
  if ($("hint").textContent !== words) $("hint").textContent = words;
}

function notice(title, text = "") {
  $("notice-title").textContent = title;
  $("notice-text").textContent = text;
  const stood = !title && $("notice-close").matches(":focus-visible");
  $("notice").hidden = !title;
  if (stood) $("message").focus();
}

player.addEventListener("state", ({ detail: { state, failure, retryMs } }) => {
  page.live = state === "live";
  page.seen ||= page.live;
  page.ended = state === "ended";
  if (page.live || page.ended) replay.look(page.session); // else the server may not know it yet
  if (state === "connecting") veil.connecting();
  if (state === "lost") {
    if (failure) veil.lost(failure, retryMs);
    else veil.again();
    $("screen").dataset.state = "lost";
  }
  if (page.ended) {
    if (listening.on) listening.finish(false);
    const typed = $("composer").contains(document.activeElement);
    veil.ended();
    $("screen").dataset.state = "lost";
    if (typed) $("fresh-here").focus(); // where one typed nothing can be typed any more
  }
  show();
});
video.addEventListener("playing", () => {
  $("screen").dataset.state = page.live ? "live" : "lost";
  show();
});
video.addEventListener("timeupdate", () => {
  if (page.live && $("screen").dataset.state !== "live") $("screen").dataset.state = "live";
});
video.addEventListener("volumechange", show);

conversation.addEventListener("job", ({ detail: job }) => {
  if (page.job !== job.status && job.status === "done") replay.look(page.session);
  page.job = job.status;
  page.key = job.key;
  page.chat = job.chat;
  const drawn = "making" in $("latency").dataset && !job.done; // by what the stream tells, which is newer
  draw(drawn ? { first_frame_ms: job.latency?.first_frame_ms } : job.latency, job.of);
  show();
});
player.addEventListener("told", ({ detail: { kind, message, offset } }) => {
  if (kind === "caption") captions.tell(message, offset);
  if (kind === "ended" && ["reset", "removed", "expired"].includes(message.reason)) conversation.open(page.session); // it was emptied
  if (kind === "making") making({ ...message, first_frame_ms: page.chat ? 0 : message.ttff_ms }, page.key); // a chat's waits for its model, too
});
player.addEventListener("leaving", () => still.hold());
player.addEventListener("anew", () => {
  captions.clear();
  still.release();
});
captions.addEventListener("change", () => {
  conversation.mark(captions.now.sentence);
  show();
});
conversation.addEventListener("sent", () => {
  notice("");
  if (!page.chose) unmute(); // sending is a gesture, too: the answer should be heard
});

// --- sound

/** Only after a gesture: browsers start a page silently. */
async function unmute(muted = false) {
  page.chose = true;
  video.muted = muted;
  try {
    await video.play();
  } catch {
    if (!video.muted) {
      video.muted = true;
      page.chose = false;
    }
  }
  show();
}
$("unmute").addEventListener("click", () => unmute());
$("mute").addEventListener("click", () => unmute(!video.muted));

// --- sending

const mode = () => document.querySelector("[name=mode]:checked").value;

function send(text) {
  if (!text.trim()) return;
  if (mode() === "chat") conversation.ask(text, settings.speech);
  else conversation.say(text, settings.speech);
}

async function interrupt() {
  if ($("interrupt").hidden) return;
  try {
    await request(`sessions/${page.session}/interrupt`, { method: "POST" });
  } catch (failure) {
    notice(failure.message, failure.remedy);
  }
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (listening.on) return listening.finish(true);
  send($("message").value);
  $("message").value = "";
  hint();
  $("message").focus();
});
$("message").addEventListener("input", hint);
listening.addEventListener("change", hint);
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});
$("suggestions").addEventListener("click", ({ target }) => target.matches("button") && conversation.ask(target.textContent, settings.speech));
$("interrupt").addEventListener("click", interrupt);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (listening.on) listening.finish(false);
  else interrupt();
});

// --- the microphone

let turns = Promise.resolve();

/** Chat understands a recording where the server can; else, and to be said as it is, it moves the face directly. */
function recorded({ seconds, body }) {
  if (mode() === "chat" && page.hears) {
    turns = turns.then(() => conversation.hear(() => understood(body), settings.speech)).then(heard); // in the order in which they were said
    return;
  }
  const { enhance } = settings.speech;
  conversation.record(seconds, async (session) => (await request("speak/audio", { method: "POST", body, timeout: 0, query: { session_id: session, enhance } })).json());
}

async function understood(body) {
  const form = new FormData();
  form.append("file", body, "recording.wav");
  try {
    return (await (await request("v1/audio/transcriptions", { method: "POST", body: form, timeout: UNDERSTOOD_MS })).json()).text;
  } catch (failure) {
    if (failure.code === "not_configured") explain((page.hears = false));
    throw failure;
  }
}

function heard(words) {
  if (words === "" && !listening.on) notice("No words were heard.", "Speak up a little, closer to the microphone.");
}

/** Say what becomes of words in this mode. */
function explain() {
  const chat = mode() === "chat";
  const answered = page.hears ? "Answered, typed or spoken." : "Typed words are answered: this server understands no speech.";
  $("mode-hint").textContent = chat ? answered : "Said as it is; what you record in your own voice.";
  name("mic", `Record your voice: it ${chat && page.hears ? "is understood and answered" : "moves the face"}`);
  const words = chat ? "Message" : "Words to be said as they are";
  $("message").placeholder = words;
  $("message-label").textContent = words;
}

for (const radio of document.querySelectorAll("[name=mode]")) radio.addEventListener("change", explain);
listening.addEventListener("recorded", ({ detail }) => recorded(detail));
listening.addEventListener("begins", () => interrupt());
listening.addEventListener("trouble", ({ detail: { title, text } }) => notice(title, text));

// --- the rest of the page

function theme(chosen) {
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme-icon").setAttribute("href", `web/icons.svg#${dark ? "sun" : "moon"}`);
  name("theme", `Switch to ${dark ? "light" : "dark"} colours`);
}
theme(localStorage.getItem("warmtalk-theme"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(localStorage.getItem("warmtalk-theme")));
$("theme").addEventListener("click", () => {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("warmtalk-theme", next);
  theme(next);
});
$("captions-toggle").addEventListener("click", () => {
  page.captions = !page.captions;
  $("captions-toggle").setAttribute("aria-pressed", String(page.captions));
  show();
});
$("fullscreen").addEventListener("click", () => (document.fullscreenElement ? document.exitFullscreen() : $("screen").requestFullscreen?.()));
$("retry").addEventListener("click", () => player.retry());
addEventListener("online", () => player.retry());
$("notice-close").addEventListener("click", () => notice(""));
$("fresh").addEventListener("click", fresh);
$("fresh-here").addEventListener("click", async () => {
  await fresh();
  $("message").focus(); // the button is gone
});
$("open-settings").addEventListener("click", () => replay.look(page.session)); // what can be downloaded by now
conversation.addEventListener("fresh", fresh);
settings.addEventListener("avatar", fresh);
$("remove").addEventListener("click", () => {
  $("sure").returnValue = "";
  $("sure").showModal();
});
$("sure").addEventListener("close", async () => {
  if ($("sure").returnValue !== "delete") return;
  wrong("chat-error");
  try {
    await request(`sessions/${page.session}`, { method: "DELETE" });
    $("settings").close();
    await fresh();
  } catch (failure) {
    wrong("chat-error", `It was not deleted. ${failure.message} ${failure.remedy}`);
  }
});
$("settings").addEventListener("close", () => $("open-settings").focus());

follow(player);
if (matchMedia("(max-width: 860px)").matches) $("latency").open = false;
show();
explain();
await openSession();
settings.refresh();
getJson("abilities").then(({ recognition }) => explain((page.hears = recognition)), () => {});
getJson("healthz").catch((failure) => failure.status && notice(failure.message, failure.remedy));
