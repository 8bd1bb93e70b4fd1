// The page: wires the connection to what is seen and clicked.

import { Captions } from "./captions.js";
import { Connection, Problem, openMicrophone } from "./connection.js";
import { Lanes, Level } from "./lanes.js";
import { Speaker } from "./speaker.js";

const STEP_SECS = 0.08;
const LATE_LAG_SECS = 0.24;

const $ = (id) => document.getElementById(id);
const now = () => performance.now() / 1000;
const captions = new Captions($("log"));
const lanes = new Lanes($("lanes"));
const speaker = new Speaker($("speaker"));

/** Whether an LLM writes the agent's words; then it is done long before they are spoken. */
let writtenByLlm = false;

/** Whether a TTS speaks in the model's place; then its words are not in the monologue. */
let spokenByTts = false;

/** The conversation under way: its connection, microphone, levels and counts. */
let talk = null;

function setState(state, text) {
  document.body.dataset.state = state;
  $("state").textContent = text;
  $("clock").textContent = "";
  $("connect").firstElementChild.textContent =
    { connecting: "Cancel", live: "Disconnect" }[state] ?? "Connect";
  $("mute").disabled = state !== "live";
  $("headphones").disabled = state === "live" || state === "connecting";
}

function showProblem(problem) {
  const title = document.createElement("strong");
  title.textContent = problem.message;
  $("alert").replaceChildren(title, problem.advice ?? "");
  $("alert").hidden = false;
}

// Connect and disconnect

async function connect() {
  const mine = (talk = { connection: null, microphone: null, context: null, levels: {} });
  prepare();
  try {
    mine.microphone = await openMicrophone({ headphones: isPressed("headphones") });
    if (talk !== mine) return stop(mine);
    mine.context = new AudioContext();
    mine.levels.user = new Level(mine.context, mine.microphone);
    mine.connection = new Connection({
      onTrack: (stream) => play(mine, stream),
      onMessage: receive,
      onProblem: (problem) => talk === mine && leave("error", "Disconnected", problem),
      onEnded: () => talk === mine && leave("idle", "The agent has left"),
    });
    await mine.connection.open(mine.microphone);
    if (talk !== mine) return;
    mine.startedSecs = now();
    captions.start();
    setState("live", "Connected");
  } catch (error) {
    if (talk !== mine) return;
    const known = error instanceof Problem;
    if (!known) console.error(error);
    leave("error", "Not connected", known ? error : new Problem("Cannot connect.", String(error)));
  }
}

function prepare() {
  $("alert").hidden = true;
  $("welcome").hidden = true;
  for (const id of ["yields", "backchannels"]) $(id).textContent = "0";
  for (const id of ["lag", "step"]) $(id).textContent = "–";
  captions.clear();
  lanes.clear();
  setSpeaking("agent", false);
  setMuted(false);
  setState("connecting", "Connecting");
}

function play(mine, stream) {
  mine.levels.agent = new Level(mine.context, stream);
  speaker.play(stream, mine.levels.agent);
}

function leave(state, text, problem = null) {
  const left = talk;
  talk = null;
  stop(left);
  captions.finish();
  setSpeaking("user", false);
  setSpeaking("agent", false);
  setMeter("user", 0);
  setMeter("agent", 0);
  setState(state, text);
  if (problem) showProblem(problem);
  if (!$("log").childElementCount) $("welcome").hidden = false;
}

function stop({ connection, microphone, context }) {
  connection?.close();
  microphone?.getTracks().forEach((track) => track.stop());
  context?.close();
  speaker.stop();
}

// What the bot tells: RTVI's own messages, and ours inside its server messages

const RTVI_HANDLERS = {
  "bot-llm-stopped": () => writtenByLlm || captions.finish(),
  "bot-started-speaking": () => {
    setSpeaking("agent", true);
    speaker.open();
  },
  "bot-stopped-speaking": () => {
    setSpeaking("agent", false);
    if (writtenByLlm) captions.finish();
  },
  "bot-tts-text": ({ text }) => spokenByTts && say(` ${text}`),
  "user-transcription": ({ text, final }) => final && captions.userSaid(text),
  "llm-function-call-in-progress": () => lanes.mark(now(), "tool", false),
  "vad-user-started-speaking": () => {
    setSpeaking("user", true);
    captions.userStarted();
  },
  "vad-user-stopped-speaking": () => {
    setSpeaking("user", false);
    captions.userStopped();
  },
  "server-message": (data) => DUPLEX_HANDLERS[data.type]?.(data),
  error: (data) => showProblem(new Problem("The agent reports an error.", data.error)),
};

const DUPLEX_HANDLERS = {
  "duplex-monologue": ({ text }) => say(text),
  "duplex-yield": ({ delay_secs }) => {
    speaker.hush();
    captions.yielded(delay_secs);
    setSpeaking("agent", false);
    count("yields");
    lanes.mark(now(), "yield", true);
  },
  "duplex-backchannel": ({ duration_secs }) => {
    // It is known for one only when it is over.
    lanes.mark(captions.voice?.startedSecs ?? now(), "backchannel", false);
    captions.backchannel(duration_secs);
    count("backchannels");
  },
  "duplex-metrics": showMetrics,
};

function say(text) {
  captions.say(text);
  lanes.say(now(), text);
}

function receive({ type, data }) {
  RTVI_HANDLERS[type]?.(data);
}

function count(id) {
  $(id).textContent = Number($(id).textContent) + 1;
}

function showMetrics({ lag_secs, compute_secs }) {
  $("lag").textContent = `${Math.round(Math.max(0, lag_secs) * 1000)} ms`;
  $("lag").classList.toggle("late", lag_secs > LATE_LAG_SECS);
  $("step").textContent = `${Math.round(compute_secs * 1000)} ms`;
  $("step").classList.toggle("late", compute_secs > STEP_SECS);
}

// Voices

function setSpeaking(who, speaking) {
  $(who).dataset.speaking = speaking;
  const quiet = who === "user" && isMuted() ? "muted" : talk ? "quiet" : "";
  $(who).querySelector(".doing").textContent = speaking ? "speaking" : quiet;
}

function setMeter(who, level) {
  const meter = $(who).querySelector(".meter");
  meter.setAttribute("aria-valuenow", Math.round(level * 100));
  meter.firstElementChild.style.transform = `scaleX(${level.toFixed(3)})`;
}

function animate() {
  requestAnimationFrame(animate);
  if (!talk?.levels.user) return;
  const secs = now();
  const user = isMuted() ? 0 : talk.levels.user.read();
  const agent = speaker.read();
  setMeter("user", user);
  setMeter("agent", agent);
  lanes.add(secs, user, agent);
  lanes.draw(secs);
  showClock(secs);
}

function showClock(secs) {
  if (document.body.dataset.state !== "live") return;
  const passed = Math.floor(secs - talk.startedSecs);
  const text = `${Math.floor(passed / 60)}:${String(passed % 60).padStart(2, "0")}`;
  if ($("clock").textContent !== text) $("clock").textContent = text;
}

// Mute: the microphone sends silence, and the agent goes on

const isPressed = (id) => $(id).getAttribute("aria-pressed") === "true";
const isMuted = () => isPressed("mute");

function setMuted(muted) {
  $("mute").setAttribute("aria-pressed", muted);
  $("mute").querySelector("span").textContent = muted ? "Muted" : "Mute";
  talk?.microphone?.getAudioTracks().forEach((track) => (track.enabled = !muted));
  if ($("user").dataset.speaking !== "true") setSpeaking("user", false);
}

function setHeadphones(worn) {
  $("headphones").setAttribute("aria-pressed", worn);
  localStorage.setItem("headphones", worn);
}

// Start

async function showAbout() {
  try {
    const { checkpoint, note, llm, speaker: voice, words_by_tts } = await (await fetch("api/about")).json();
    writtenByLlm = Boolean(llm);
    spokenByTts = words_by_tts;
    $("model").textContent = llm ? `${llm}, spoken by ${voice ?? checkpoint}` : checkpoint;
    $("model").hidden = false;
    $("follows").hidden = checkpoint !== "embedded";
    $("note").textContent = note ?? "";
    $("note").hidden = !note;
  } catch {
    // Another server of the same protocol has no such endpoint.
  }
}

$("connect").addEventListener("click", () => {
  if (talk) leave("idle", "Disconnected");
  else connect();
});
$("mute").addEventListener("click", () => setMuted(!isMuted()));
$("headphones").addEventListener("click", () => setHeadphones(!isPressed("headphones")));
document.addEventListener("keydown", (event) => {
  const plain = !event.ctrlKey && !event.metaKey && !event.altKey && !event.repeat;
  if (plain && event.key.toLowerCase() === "m" && !$("mute").disabled) setMuted(!isMuted());
});
// A page that goes away says so: its slot is free at once.
addEventListener("pagehide", () => talk && leave("idle", "Disconnected"));

setHeadphones(localStorage.getItem("headphones") === "true");
showAbout();
animate();

// For the console and for tests.
window.duplexPage = { receive, lanes, talk: () => talk };
