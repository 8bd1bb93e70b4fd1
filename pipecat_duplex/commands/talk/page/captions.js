// What was said, as it is said. The agent's words come from its monologue. The user's voice is
// shown as a chip, inside the agent's words when it fell into them; a recogniser's words follow.

const secs = (value) => `${value.toFixed(1)} s`;

/** Make an element that holds text. */
function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** The list of captions. */
export class Captions {
  constructor(list, { now = () => performance.now() / 1000 } = {}) {
    this.list = list;
    this.scroller = list.parentElement;
    this.now = now;
    this.clear();
  }

  clear() {
    this.list.replaceChildren();
    this.start();
    this.utterance = null; // The agent's words, while it speaks.
    this.latest = null; // The same, until the next utterance.
    this.voice = null; // The user's chip, while it is not settled what it was.
    this.unread = []; // Chips whose words are not known, oldest first.
  }

  /** Count the time of the captions from now. */
  start() {
    this.startedSecs = this.now();
  }

  /** Append to the agent's words. */
  say(text) {
    if (!text) return;
    this.utterance ??= this.openUtterance();
    const words = this.utterance.lastElementChild;
    // Chips stand between words, so text goes into the last text node or a new one.
    const last = words.lastChild;
    if (last?.nodeType === Node.TEXT_NODE) last.data += text;
    else words.append(last ? text : text.trimStart());
    this.follow();
  }

  openUtterance() {
    this.latest?.classList.remove("latest");
    const item = (this.latest = element("li", "said live latest"));
    item.append(element("time", "", this.clock()), element("p", ""));
    this.append(item);
    return item;
  }

  /** The agent's utterance is over. */
  finish() {
    this.utterance?.classList.remove("live");
    this.utterance = null;
  }

  /** The user began to speak. */
  userStarted() {
    const chip = element("span", "mark open", "you");
    this.voice = { chip, startedSecs: this.now(), overAgent: this.utterance !== null };
    this.unread = [...this.unread, { chip, startedSecs: this.now() }].slice(-4);
    if (this.utterance) {
      this.utterance.lastElementChild.append(chip);
      this.follow();
    } else {
      const item = element("li", "heard");
      item.append(chip);
      this.append(item);
    }
  }

  /** The user fell silent. */
  userStopped() {
    if (!this.voice) return;
    const { chip, startedSecs, overAgent } = this.voice;
    chip.classList.remove("open");
    if (!chip.classList.contains("yield")) {
      chip.firstChild.data = `you, ${secs(this.now() - startedSecs)}`;
    }
    // Over the agent, what it was shows only in what the agent does next.
    if (!overAgent) this.voice = null;
  }

  /** A recogniser has read the user's words. */
  userSaid(text) {
    const recent = this.unread.filter(({ startedSecs }) => this.now() - startedSecs < 20);
    const read = recent.shift();
    this.unread = recent;
    if (read) read.chip.append(" ", element("q", "", text));
    this.follow();
  }

  /** The agent fell silent because of the user. Its utterance may be finished already. */
  yielded(delaySecs) {
    if (!this.latest) return;
    const chip = this.voice?.overAgent ? this.voice.chip : element("span", "mark");
    chip.classList.remove("open");
    chip.classList.add("yield");
    const read = chip.querySelector("q");
    chip.replaceChildren(`yielded to you in ${secs(delaySecs)}`, ...(read ? [" ", read] : []));
    this.latest.lastElementChild.append(element("span", "cut", "—"), chip);
    this.latest.classList.add("yielded");
    this.voice = null;
    this.follow();
  }

  /** The user spoke over the agent, and the agent went on. */
  backchannel(durationSecs) {
    if (!this.voice?.overAgent) return;
    this.voice.chip.classList.remove("open");
    this.voice.chip.classList.add("backchannel");
    this.voice.chip.firstChild.data = `you, ${secs(durationSecs)}`;
    this.voice.chip.title = "Backchannel: you spoke over the agent, and it went on";
    this.voice = null;
  }

  clock() {
    const passed = Math.floor(this.now() - this.startedSecs);
    return `${Math.floor(passed / 60)}:${String(passed % 60).padStart(2, "0")}`;
  }

  append(item) {
    this.list.append(item);
    this.follow();
  }

  /** Keep the newest in sight, unless the reader has scrolled up. */
  follow() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    if (scrollHeight - scrollTop - clientHeight < 160) this.scroller.scrollTop = scrollHeight;
  }
}
