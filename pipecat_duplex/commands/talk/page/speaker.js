// The loudspeaker. The browser keeps sound back for a smooth voice, up to a second of it where packets
// come in bursts. What it still holds when the agent has given up the floor is not played.

const CHECK_MS = 20;
const SILENT_MS = 200;
const LONGEST_MS = 1500;

export class Speaker {
  constructor(element) {
    this.element = element;
    this.level = null;
    this.timer = 0;
  }

  /** Play a stream, whose level is read to know when it has fallen silent. */
  play(stream, level) {
    this.level = level;
    this.element.srcObject = stream;
    this.element.play().catch(() => {}); // The click on Connect allows it; cut short by a leave.
  }

  stop() {
    this.open();
    this.element.srcObject = null;
  }

  /** How loud it is, from 0 to 1. */
  read() {
    const level = this.level?.read() ?? 0;
    return this.element.muted ? 0 : level;
  }

  /** Play nothing more of what the agent has said. */
  hush() {
    this.open();
    this.element.muted = true;
    const begunMs = performance.now();
    let heardMs = begunMs;
    this.timer = setInterval(() => {
      const nowMs = performance.now();
      if (this.level?.read() > 0) heardMs = nowMs;
      if (nowMs - heardMs > SILENT_MS || nowMs - begunMs > LONGEST_MS) this.open();
    }, CHECK_MS);
  }

  /** Play what comes. */
  open() {
    clearInterval(this.timer);
    this.element.muted = false;
  }
}
