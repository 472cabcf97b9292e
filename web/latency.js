/** The latency panel: time to the first frame, speed against real time, and the milliseconds of every stage as bars. */

const STAGES = { TTS: "Voice", AudioFeatures: "Features", LipSync: "Lip sync", Enhance: "Enhance", Stitch: "Stitch" };
const $ = (id) => document.getElementById(id);
const rows = new Map();

const milliseconds = (ms) => (ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${Math.round(ms)} ms`);

function row(stage) {
  if (!rows.has(stage)) {
    const item = document.createElement("li");
    item.innerHTML = '<span class="name"><span></span><span class="value">–</span></span><span class="track"><span class="fill"></span></span>';
    item.querySelector(".name span").textContent = STAGES[stage];
    item.title = stage;
    $("bars").append(item);
    rows.set(stage, item);
  }
  return rows.get(stage);
}

/**
 * Draw a job's latency: `{first_frame_ms, duration_s, stages: {stage: {busy_ms}}}`; what is missing stays as it was.
 * The speed is that of the slowest stage: they work side by side, and speech that is watched is made no faster than shown.
 */
export function draw({ first_frame_ms, duration_s, stages } = {}) {
  if (first_frame_ms) $("figure-first").textContent = milliseconds(first_frame_ms);
  if (!stages || !Object.keys(stages).length) return;
  const busy = (stage) => stages[stage]?.busy_ms ?? 0;
  const longest = Math.max(...Object.keys(STAGES).map(busy), 1);
  if (duration_s) $("figure-rtf").textContent = `${((1000 * duration_s) / longest).toFixed(1)} ×`;
  for (const stage of Object.keys(STAGES)) {
    row(stage).querySelector(".fill").style.setProperty("--share", busy(stage) / longest);
    row(stage).querySelector(".value").textContent = stages[stage] ? milliseconds(busy(stage)) : "off";
  }
}

for (const stage of Object.keys(STAGES)) row(stage);

const WAYS = { webrtc: "WebRTC", mp4: "HTTP" };

/** Show how the player's picture comes, and how far behind it is, for as long as the page is open. */
export function follow(player) {
  setInterval(() => {
    $("live-way").hidden = !player.way;
    if (!player.way) return;
    $("figure-behind").textContent = `${player.behind.toFixed(1)} s`;
    $("figure-way").textContent = WAYS[player.way];
  }, 1000);
}
