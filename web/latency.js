/**
 * The latency panel: time to first frame with its history, speed relative to real time, and milliseconds per stage,
 * updated while an answer is made.
 */

const STAGES = { TTS: "Voice", AudioFeatures: "Features", LipSync: "Lip sync", Enhance: "Enhance", Stitch: "Stitch" };
const KEPT = 24; // number of answers in the sparkline
const QUIET_MS = 1200; // without events for this long, nothing is being made
const [WIDTH, HEIGHT, EDGE] = [96, 24, 3];
const FEWEST = 9; // answers that fill the sparkline's width
const $ = (id) => document.getElementById(id);
const rows = new Map();
const history = []; // {key, ms}, the latest last
let quiet = 0;

const milliseconds = (ms) => (ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${Math.round(ms)} ms`);
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

function row(stage) {
  if (!rows.has(stage)) {
    const item = document.createElement("li");
    item.innerHTML = '<span class="name"><span></span><span class="value">–</span></span><span class="track" aria-hidden="true"><span class="fill"></span></span>';
    item.querySelector(".name span").textContent = STAGES[stage];
    item.title = stage;
    $("bars").append(item);
    rows.set(stage, item);
  }
  return rows.get(stage);
}

/**
 * Draw the latency of an answer: `{first_frame_ms, duration_s, stages: {stage: {busy_ms}}}`; missing values stay unchanged.
 * A full bar is the duration of the speech, or the busy time of the slowest stage if that is longer. The speed is that of
 * the slowest stage, because the stages work in parallel. key: identifies the answer.
 */
export function draw({ first_frame_ms, duration_s, stages } = {}, key = null) {
  if (first_frame_ms) first(first_frame_ms, key);
  if (!stages || !Object.keys(stages).length) return;
  const busy = (stage) => stages[stage]?.busy_ms ?? 0;
  const longest = Math.max(...Object.keys(STAGES).map(busy), 1);
  const whole = Math.max(longest, 1000 * (duration_s ?? 0));
  if (duration_s) $("figure-rtf").textContent = `${((1000 * duration_s) / longest).toFixed(1)} ×`;
  for (const stage of Object.keys(STAGES)) {
    row(stage).querySelector(".fill").style.setProperty("--share", busy(stage) / whole);
    row(stage).querySelector(".value").textContent = stages[stage] ? milliseconds(busy(stage)) : "off";
  }
  if (duration_s) $("bars").setAttribute("aria-label", `Milliseconds per stage for ${duration_s.toFixed(1)} seconds of speech`);
}

/** Draw the progress of an answer: events arrive several times per second until it is done. */
export function making(facts, key) {
  draw(facts, key);
  $("latency").dataset.making = "";
  clearTimeout(quiet);
  quiet = setTimeout(() => delete $("latency").dataset.making, QUIET_MS);
}

function first(ms, key) {
  $("latency").dataset.known = "";
  $("figure-first").textContent = milliseconds(ms);
  if (history.at(-1)?.key === key) history.at(-1).ms = ms;
  else history.push({ key, ms });
  history.splice(0, history.length - KEPT);
  const values = history.map((entry) => entry.ms);
  const most = 1.25 * Math.max(...values); // keeps the line off the edge
  const points = values.map((value, k) => {
    const x = EDGE + (k * (WIDTH - 2 * EDGE)) / (Math.max(values.length, FEWEST) - 1);
    return [x.toFixed(1), (HEIGHT - EDGE - (value / most) * (HEIGHT - 2 * EDGE)).toFixed(1)];
  });
  $("spark-line").setAttribute("points", points.map((point) => point.join()).join(" "));
  $("spark-dot").setAttribute("cx", points.at(-1)[0]);
  $("spark-dot").setAttribute("cy", points.at(-1)[1]);
  $("spark").setAttribute("aria-label", `Time to first frame: ${milliseconds(ms)}; median of the last ${values.length}: ${milliseconds(median(values))}; slowest: ${milliseconds(Math.max(...values))}`);
  $("spark").toggleAttribute("hidden", values.length < 2);
}

for (const stage of Object.keys(STAGES)) row(stage);

const WAYS = { webrtc: "WebRTC", mp4: "HTTP" };

/** Show the player's transport and delay, updated every second. */
export function follow(player) {
  setInterval(() => {
    $("live-way").hidden = !player.way;
    if (!player.way) return;
    $("figure-behind").textContent = `${player.behind.toFixed(1)} s`;
    $("figure-way").textContent = WAYS[player.way];
  }, 1000);
}
