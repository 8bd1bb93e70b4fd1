// One WebRTC connection to a Pipecat bot: Pipecat's SmallWebRTC protocol, with RTVI on its data
// channel. It knows nothing of the page.

const GATHER_MS = 2000;
const PING_MS = 1000;
const RTVI_VERSION = "2.0.0";

/** Something that a person is meant to read and act on. */
export class Problem extends Error {
  constructor(title, advice) {
    super(title);
    this.advice = advice;
  }
}

const LOST = ["The connection was lost.", "The server may have stopped. Connect again to retry."];

/**
 * Ask for the microphone. Without headphones the browser has to take the agent's voice out of it,
 * and tends to take the user's along when both speak.
 */
export async function openMicrophone({ headphones }) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Problem(
      "The browser lends its microphone to secure pages only.",
      "Open this page as https://… or as http://localhost…",
    );
  }
  try {
    return await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: !headphones, noiseSuppression: true, autoGainControl: true },
    });
  } catch (error) {
    throw microphoneProblem(error);
  }
}

function microphoneProblem(error) {
  switch (error.name) {
    case "NotAllowedError":
    case "SecurityError":
      return new Problem(
        "The microphone is blocked.",
        "Allow it for this page in the browser's address bar, then connect again.",
      );
    case "NotFoundError":
    case "OverconstrainedError":
      return new Problem("No microphone was found.", "Plug one in, then connect again.");
    default:
      return new Problem(
        "The microphone cannot be opened.",
        "Another program may hold it. " + error.message,
      );
  }
}

/**
 * A conversation's connection.
 *
 * Handlers: onMessage(rtvi), onTrack(stream), onProblem(problem) and onEnded(), of which the last
 * two come at most once, together only in the order given here, and never after close().
 */
export class Connection {
  constructor(handlers) {
    this.handlers = handlers;
    this.peer = null;
    this.channel = null;
    this.pinger = 0;
    this.closed = false;
  }

  /** Connect; resolves when both sides are ready to talk. */
  async open(stream) {
    const peer = (this.peer = new RTCPeerConnection());
    for (const track of stream.getAudioTracks()) {
      peer.addTransceiver(track, { direction: "sendrecv", streams: [stream] });
    }
    peer.ontrack = ({ receiver, track }) => {
      receiver.jitterBufferTarget = 0; // Talking at the same time leaves no time to wait.
      this.handlers.onTrack(new MediaStream([track]));
    };
    peer.onconnectionstatechange = () => this.watch(peer.connectionState);
    const ready = this.openChannel(peer);
    ready.catch(() => {}); // Somebody else reports a connection that is closed on the way.
    await peer.setLocalDescription(await peer.createOffer());
    await gathered(peer);
    const answer = await postOffer(peer.localDescription);
    if (this.closed) return;
    await peer.setRemoteDescription(answer);
    await ready;
  }

  openChannel(peer) {
    const channel = (this.channel = peer.createDataChannel("rtvi", { ordered: true }));
    channel.onmessage = (event) => this.receive(event.data);
    return new Promise((resolve, reject) => {
      channel.onopen = () => {
        this.send("client-ready", {
          version: RTVI_VERSION,
          about: { library: "pipecat-duplex-page" },
        });
        // Pipecat takes a client without pings for a lost one.
        this.pinger = setInterval(() => this.ping(), PING_MS);
        this.ping();
        resolve();
      };
      channel.onclose = () => {
        reject(new Problem(...LOST));
        this.fail(new Problem(...LOST));
      };
    });
  }

  ping() {
    if (this.channel.readyState === "open") this.channel.send(`ping: ${Date.now()}`);
  }

  send(type, data) {
    const id = Math.random().toString(36).slice(2, 10);
    this.channel.send(JSON.stringify({ label: "rtvi-ai", type, id, data }));
  }

  receive(text) {
    const message = JSON.parse(text);
    if (message.label === "rtvi-ai") {
      this.handlers.onMessage(message);
    } else if (message.type === "signalling" && message.message?.type === "peerLeft") {
      this.end();
    }
  }

  async watch(state) {
    if (state === "failed") {
      this.fail(new Problem(...LOST));
    } else if (state === "disconnected" && !(await serverAnswers())) {
      // WebRTC alone would hope for half a minute.
      this.fail(new Problem(...LOST));
    }
  }

  fail(problem) {
    if (this.closed) return;
    this.close();
    this.handlers.onProblem(problem);
  }

  end() {
    if (this.closed) return;
    this.close();
    this.handlers.onEnded();
  }

  close() {
    this.closed = true;
    clearInterval(this.pinger);
    this.channel?.close();
    this.peer?.close();
  }
}

/** Wait until the offer holds every address: there is no second message for late ones. */
function gathered(peer) {
  if (peer.iceGatheringState === "complete") return Promise.resolve();
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, GATHER_MS);
    peer.addEventListener("icegatheringstatechange", () => {
      if (peer.iceGatheringState !== "complete") return;
      clearTimeout(timer);
      resolve();
    });
  });
}

async function postOffer({ sdp, type }) {
  let response;
  try {
    response = await fetch("api/offer", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ sdp, type }),
    });
  } catch {
    throw new Problem("The server does not answer.", "Is it still running? Start it, then retry.");
  }
  if (response.ok) return response.json();
  throw await offerProblem(response);
}

async function offerProblem(response) {
  const detail = (await response.json().catch(() => null))?.detail;
  if (response.status === 503) {
    return new Problem(
      "All slots are taken.",
      "Somebody else is talking to the agent. Try again in a moment.",
    );
  }
  return new Problem(
    "The server refused the connection.",
    detail?.message ?? `It answered with status ${response.status}.`,
  );
}

async function serverAnswers() {
  try {
    await fetch("api/about", { cache: "no-store", signal: AbortSignal.timeout(2000) });
    return true;
  } catch {
    return false;
  }
}
