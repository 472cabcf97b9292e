/** The chat page: connects the live video, the conversation, the microphone and the settings of one session. */

import { address, auth, getJson, postJson, request } from "./api.js";
import { Conversation } from "./conversation.js";
import { Key } from "./key.js";
import { draw, follow, making } from "./latency.js";
import { Listening } from "./listening.js";
import { LivePlayer } from "./live.js";
import { Replay } from "./replay.js";
import { Settings } from "./settings.js";
import { LastFrame } from "./last-frame.js";
import { Captions } from "./stream-events.js";
import { StatusOverlay } from "./status-overlay.js";
import { showFormError } from "./form-error.js";

const $ = (id) => document.getElementById(id);
const COUNTDOWN_CHARS = 400; // remaining characters are shown below this number
const TRANSCRIPTION_TIMEOUT_MS = 60_000; // two minutes of audio on a busy CPU
const video = $("video");
const player = new LivePlayer(video, new URLSearchParams(location.search).get("via"));
const lastFrame = new LastFrame(video, $("last-frame"));
const overlay = new StatusOverlay();
const captions = new Captions(video);
const conversation = new Conversation();
const settings = new Settings();
const listening = new Listening();
const replay = new Replay(video);
const key = new Key({
  send: (value) => request("login", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ key: value }) }),
  forget: () => request("login", { method: "DELETE" }),
});
auth.ask = () => key.ask();
const page = { session: "", live: false, seen: false, ended: false, job: "done", captions: true, hears: false };

// --- the session: one per tab

const ID = /^[a-z0-9_-]{1,64}$/;
const newId = () => `web-${crypto.getRandomValues(new Uint32Array(2)).reduce((text, n) => text + n.toString(36), "")}`.slice(0, 24);

/** Lock the id while the tab is open: a duplicated tab has the same sessionStorage and must not share the session. */
const hold = (id) =>
  new Promise((resolve) => {
    if (!navigator.locks) return resolve(true);
    navigator.locks.request(`warmtalk-${id}`, { ifAvailable: true }, (lock) => {
      resolve(Boolean(lock));
      return lock ? new Promise(() => {}) : undefined;
    });
  });

async function openSession(id) {
  const named = id ? undefined : ID.exec(new URLSearchParams(location.search).get("session") ?? "")?.[0]; // it becomes part of URLs
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

/** Create the session on the server with the chosen avatar; an existing session keeps its own avatar. */
async function ensure(session) {
  const body = { session_id: session, ...(settings.avatar && { avatar_id: settings.avatar }) };
  try {
    const { avatar_id: face } = await postJson("sessions", body);
    lastFrame.of(face, address(`avatars/${face}/poster.jpg`));
  } catch (failure) {
    if (failure.code === "avatar_not_found") settings.forgetAvatar();
    if (failure.status !== 409 && failure.code !== "bad_input") throw failure;
  }
}

/** Start a new chat and interrupt this one, unless it is a named session, which may have other viewers. */
function fresh() {
  const here = new URL(location.href);
  if (here.searchParams.has("session")) {
    here.searchParams.delete("session");
    history.replaceState(null, "", here); // a reload stays in the new session
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
  name("mute", video.muted ? "Turn sound on" : "Turn sound off");
  $("mute-icon").setAttribute("href", `web/icons.svg#${video.muted ? "muted" : "sound"}`);
}

/** Set the accessible name and the tooltip of an icon button. */
const name = (id, words) => ["aria-label", "title"].forEach((attribute) => $(id).setAttribute(attribute, words));

/** Show or hide a button; if it had the keyboard focus, move the focus to `next`. */
function offer(id, on, next) {
  const hadFocus = !on && $(id).matches(":focus-visible");
  $(id).hidden = !on;
  if (hadFocus) $(next).focus();
}

/** Show what the keys do, or how many characters are left. */
function hint() {
  const left = $("message").maxLength - $("message").value.length;
  const near = !listening.on && left <= COUNTDOWN_CHARS;
  const recording = listening.handsFree ? "A pause ends your turn. Esc to stop listening" : "Enter to send the recording, Esc to discard it";
  const room = left ? `${left < 50 ? left : `About ${Math.floor(left / 50) * 50}`} characters left` : `Maximum length of ${$("message").maxLength} characters reached`;
  const words = near ? room : listening.on ? recording : "Enter to send, Shift + Enter for a new line, Esc to interrupt";
  $("hint").classList.toggle("now", near);
  if ($("hint").textContent !== words) $("hint").textContent = words;
}

function notice(title, text = "") {
  $("notice-title").textContent = title;
  $("notice-text").textContent = text;
  const hadFocus = !title && $("notice-close").matches(":focus-visible");
  $("notice").hidden = !title;
  if (hadFocus) $("message").focus();
}

player.addEventListener("state", ({ detail: { state, failure, retryMs } }) => {
  page.live = state === "live";
  page.seen ||= page.live;
  page.ended = state === "ended";
  if (page.live || page.ended) replay.look(page.session); // before that, the server may not know the session
  if (state === "connecting") overlay.connecting();
  if (state === "lost") {
    if (failure) overlay.lost(failure, retryMs);
    else overlay.again();
    $("screen").dataset.state = "lost";
  }
  if (page.ended) {
    if (listening.on) listening.finish(false);
    const typed = $("composer").contains(document.activeElement);
    overlay.ended();
    $("screen").dataset.state = "lost";
    if (typed) $("fresh-here").focus(); // the message field is disabled now
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
  const drawn = "making" in $("latency").dataset && !job.done; // live events are newer than the job's status
  draw(drawn ? { first_frame_ms: job.latency?.first_frame_ms } : job.latency, job.of);
  show();
});
player.addEventListener("stream-event", ({ detail: { kind, message, offset } }) => {
  if (kind === "caption") captions.add(message, offset);
  if (kind === "ended" && ["reset", "removed", "expired"].includes(message.reason)) conversation.open(page.session); // its history is gone
  if (kind === "making") making({ ...message, first_frame_ms: page.chat ? 0 : message.ttff_ms }, page.key); // in a chat, time to first frame includes the language model
});
player.addEventListener("source-changing", () => lastFrame.hold());
player.addEventListener("source-changed", () => {
  captions.clear();
  lastFrame.release();
});
captions.addEventListener("change", () => {
  conversation.mark(captions.now.sentence);
  show();
});
conversation.addEventListener("sent", () => {
  notice("");
  if (!page.chose) unmute(); // sending counts as a user gesture, so sound may be turned on
});

conversation.addEventListener("warnings", ({ detail }) => notice("Part of the text was not spoken.", detail.join(" ")));

// --- sound

/** Needs a user gesture: browsers start pages muted. */
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

/** In chat mode, transcribe a recording if the server can. Otherwise the recording itself moves the face. */
function recorded({ seconds, body }) {
  if (mode() === "chat" && page.hears) {
    turns = turns.then(() => conversation.hear(() => understood(body), settings.speech)).then(heard); // in order
    return;
  }
  const { enhance } = settings.speech;
  conversation.record(seconds, async (session) => (await request("speak/audio", { method: "POST", body, timeout: 0, query: { session_id: session, enhance } })).json());
}

async function understood(body) {
  const form = new FormData();
  form.append("file", body, "recording.wav");
  try {
    return (await (await request("v1/audio/transcriptions", { method: "POST", body: form, timeout: TRANSCRIPTION_TIMEOUT_MS })).json()).text;
  } catch (failure) {
    if (failure.code === "not_configured") explain((page.hears = false));
    throw failure;
  }
}

function heard(words) {
  if (words === "" && !listening.on) notice("No speech recognized.", "Speak louder or closer to the microphone.");
}

/** Describe the current mode. */
function explain() {
  const chat = mode() === "chat";
  const answered = page.hears ? "Type or speak; the presenter answers." : "The presenter answers typed messages. Speech recognition is off.";
  $("mode-hint").textContent = chat ? answered : "The presenter repeats your text or recording.";
  name("mic", chat && page.hears ? "Record a message" : "Record your voice for the presenter");
  const words = chat ? "Message" : "Text to say";
  $("message").placeholder = words;
  $("message-label").textContent = words;
}

for (const radio of document.querySelectorAll("[name=mode]")) radio.addEventListener("change", explain);
listening.addEventListener("recorded", ({ detail }) => recorded(detail));
listening.addEventListener("turn-started", () => interrupt());
listening.addEventListener("error", ({ detail: { title, text } }) => notice(title, text));

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
  $("message").focus(); // the button is hidden now
});
$("open-settings").addEventListener("click", () => replay.look(page.session)); // update what can be downloaded
conversation.addEventListener("fresh", fresh);
settings.addEventListener("avatar", fresh);
$("remove").addEventListener("click", () => {
  $("confirm-delete").returnValue = "";
  $("confirm-delete").showModal();
});
$("confirm-delete").addEventListener("close", async () => {
  if ($("confirm-delete").returnValue !== "delete") return;
  showFormError("chat-error");
  try {
    await request(`sessions/${page.session}`, { method: "DELETE" });
    $("settings").close();
    await fresh();
  } catch (failure) {
    showFormError("chat-error", `Not deleted. ${failure.message} ${failure.remedy}`);
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
