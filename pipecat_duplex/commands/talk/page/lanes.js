// Both voices over the last seconds: the user above the line, the agent below it, what the agent
// says under its voice, and a mark where the floor changed hands.

const WINDOW_SECS = 15;
const SLICE_SECS = 0.05;
const QUIETEST_DB = -60;
const WORDS_HEIGHT = 16;

/** Reads how loud a stream is. */
export class Level {
  constructor(context, stream) {
    // Chrome plays a remote stream into Web Audio only while an element plays it too.
    this.analyser = new AnalyserNode(context, { fftSize: 2048 });
    this.source = new MediaStreamAudioSourceNode(context, { mediaStream: stream });
    this.source.connect(this.analyser);
    this.samples = new Float32Array(this.analyser.fftSize);
    this.peak = 0;
  }

  /** Return the level now, from 0 (silence) to 1, on a scale of decibels. */
  read() {
    this.analyser.getFloatTimeDomainData(this.samples);
    let power = 0;
    for (const sample of this.samples) {
      power += sample * sample;
      this.peak = Math.max(this.peak, Math.abs(sample));
    }
    const db = 10 * Math.log10(power / this.samples.length + 1e-12);
    return Math.min(1, Math.max(0, (db - QUIETEST_DB) / -QUIETEST_DB));
  }
}

/** The picture of the two voices. */
export class Lanes {
  constructor(canvas) {
    this.canvas = canvas;
    this.slices = [];
    this.marks = [];
    this.words = [];
    this.lastSecs = 0;
    this.colors = {};
    this.readColors();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.readColors();
      this.draw(this.lastSecs);
    });
    new ResizeObserver(() => this.fit()).observe(canvas);
    this.fit();
  }

  clear() {
    this.slices = [];
    this.marks = [];
    this.words = [];
    this.draw(0);
  }

  /** Add both levels at a time; more than one in a slice keep the louder. */
  add(secs, user, agent) {
    const slice = Math.floor(secs / SLICE_SECS);
    const last = this.slices.at(-1);
    if (last?.slice === slice) {
      last.user = Math.max(last.user, user);
      last.agent = Math.max(last.agent, agent);
    } else {
      this.slices.push({ slice, user, agent });
    }
    const oldest = slice - WINDOW_SECS / SLICE_SECS;
    while (this.slices[0].slice < oldest) this.slices.shift();
    for (const past of [this.marks, this.words]) {
      while (past.length && past[0].secs < secs - WINDOW_SECS) past.shift();
    }
  }

  /** Write what the agent says from a time on; text without a space goes on with the last word. */
  say(secs, text) {
    if (!text) return;
    if (text.startsWith(" ") || !this.words.length) this.words.push({ secs, text: text.trim() });
    else this.words.at(-1).text += text;
  }

  /** Mark a time; a deep mark crosses the agent's lane too. */
  mark(secs, label, deep) {
    this.marks.push({ secs, label, deep });
  }

  readColors() {
    // A canvas does not know light-dark(); an element's computed color does.
    const probe = document.body.appendChild(document.createElement("i"));
    for (const name of ["user", "agent", "edge", "soft", "panel"]) {
      probe.style.color = `var(--${name})`;
      this.colors[name] = getComputedStyle(probe).color;
    }
    probe.remove();
  }

  fit() {
    const { width, height } = this.canvas.getBoundingClientRect();
    this.width = width;
    this.height = height;
    this.canvas.width = Math.round(width * devicePixelRatio);
    this.canvas.height = Math.round(height * devicePixelRatio);
    this.draw(this.lastSecs);
  }

  draw(secs) {
    this.lastSecs = secs;
    const pen = this.canvas.getContext("2d");
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    const middle = (this.height - WORDS_HEIGHT) / 2;
    pen.fillStyle = this.colors.edge;
    pen.fillRect(0, middle - 0.5, this.width, 1);
    const x = (t) => this.width - ((secs - t) / WINDOW_SECS) * this.width;
    this.drawSlices(pen, x, middle);
    this.drawWords(pen, x);
    for (const mark of this.marks) this.drawMark(pen, x(mark.secs), mark, middle);
  }

  drawSlices(pen, x, middle) {
    const step = (SLICE_SECS / WINDOW_SECS) * this.width;
    const bar = Math.max(1, step * 0.62);
    const room = middle - 4;
    for (const { slice, user, agent } of this.slices) {
      const left = x(slice * SLICE_SECS);
      pen.fillStyle = this.colors.user;
      pen.fillRect(left, middle - 2 - user * room, bar, user * room);
      pen.fillStyle = this.colors.agent;
      pen.fillRect(left, middle + 2, bar, agent * room);
    }
  }

  drawWords(pen, x) {
    pen.font = "500 11px system-ui, sans-serif";
    pen.fillStyle = this.colors.agent;
    pen.textBaseline = "alphabetic";
    let free = -Infinity; // Quick words lie side by side, not one on another.
    for (const { secs, text } of this.words) {
      const left = Math.max(x(secs), free);
      pen.fillText(text, left, this.height - 4);
      free = left + pen.measureText(`${text} `).width;
    }
  }

  drawMark(pen, left, { label, deep }, middle) {
    pen.font = "600 11px system-ui, sans-serif";
    const width = pen.measureText(label).width + 12;
    const start = Math.min(left, this.width - width);
    pen.fillStyle = this.colors.user;
    pen.fillRect(left - 0.75, 0, 1.5, deep ? 2 * middle : middle);
    pen.beginPath();
    pen.roundRect(start, 0, width, 16, 4);
    pen.fill();
    pen.fillStyle = this.colors.panel;
    pen.textBaseline = "middle";
    pen.fillText(label, start + 6, 8.5);
  }
}
