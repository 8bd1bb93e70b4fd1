"""Stage 6: how a checkpoint converses, measured free-running.

    python -m training.evaluate CHECKPOINT DATA [--sessions 32] [--part held_out] [--json FILE]

Scripted users talk to the model step by step, each in a slot of one batch; they listen too, and
talk over an answer only when there is one. Definitions follow Full-Duplex-Bench v1:

    takeover    the agent says a word within 3 s after a complete question (or within a pause)
    delay       first word minus the end of the user's last word, not below zero
    yield       the agent's sound stops within 600 ms after the user's onset over its answer
    backchannel the agent goes on with its answer after an "uh huh"
    right       the words said after a question are exactly the answer that is owed

Times are those of a real conversation: what step k answers is heard one step after its frame ended.
"""

import argparse
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from moshi.models import LMGen

from training import acoustics, world
from training.bank import with_pause
from training.checkpoint import load_checkpoint
from training.corpus import Utterance, read_corpus
from training.sizes import PADDING_ID, SAMPLE_RATE, STEP_SAMPLES, STEP_SECONDS
from training.tokenizer import WORD_START

SOUND_THRESHOLD = 0.01  # root mean square of a step above which the agent is heard
ANSWER_WINDOW = 3.0
YIELD_WINDOW = 0.6
LONG = ("story", "count")


@dataclass
class Agent:
    """What a user hears of the agent: words and loudness, with times in seconds."""

    now: float = 0.0
    words: list[tuple[float, str]] = field(default_factory=list)
    loudness: list[float] = field(default_factory=list)  # of each step
    sound: list[np.ndarray] = field(default_factory=list)

    def said_since(self, time: float) -> list[str]:
        """Words that began at ``time`` or later."""
        return [word for at, word in self.words if at >= time]

    def is_heard(self) -> bool:
        """Whether any of the last three steps was loud."""
        return any(level > SOUND_THRESHOLD for level in self.loudness[-3:])


User = Generator[np.ndarray, None, None]


class Script:
    """One user with one microphone, who asks, pauses, interrupts and hums."""

    def __init__(
        self, utterances: list[Utterance], agent: Agent, seconds: float, rng: np.random.Generator
    ) -> None:
        self.utterances, self.agent, self.rng = utterances, agent, rng
        self.microphone = acoustics.draw_microphone(rng)
        length = round((seconds + 5) * SAMPLE_RATE)
        self.background = acoustics.background(length, self.microphone)
        self.position = 0
        self.events: list[dict] = []
        self.owed = {
            exchange.question: exchange.answer
            for exchange in world.exchanges() + world.held_out_exchanges()
        }

    def frame(self, speech: np.ndarray | None = None) -> np.ndarray:
        """The next 80 ms of the microphone."""
        frame = self.background[self.position :][:STEP_SAMPLES].copy()
        if speech is not None:
            frame[: len(speech)] += speech
        self.position += STEP_SAMPLES
        return np.clip(frame, -1, 1).astype(np.float32)

    def silent(self, seconds: float) -> User:
        """Say nothing for a while."""
        for _ in range(round(seconds / STEP_SECONDS)):
            yield self.frame()

    def silent_until_quiet(self, most: float = 14.0) -> User:
        """Wait until the agent has been silent for a moment."""
        for _ in range(round(most / STEP_SECONDS)):
            yield self.frame()
            if not self.agent.is_heard():
                return

    def speak(self, samples: np.ndarray) -> Generator[np.ndarray, None, float]:
        """Speak; returns the time at which the speech ended."""
        level = acoustics.speech_level(samples)
        microphone = replace(self.microphone, noise=None)
        tail = round(0.3 * SAMPLE_RATE) if microphone.reverberation else 0
        # People do not begin on a frame's edge.
        offset = int(self.rng.integers(STEP_SAMPLES))
        sound = np.concatenate([np.zeros(offset), samples, np.zeros(tail)])
        heard = acoustics.through_room(sound, microphone, level)
        end = self.agent.now + (offset + len(samples)) / SAMPLE_RATE
        for start in range(0, len(heard), STEP_SAMPLES):
            yield self.frame(heard[start : start + STEP_SAMPLES])
        return end

    def pick(self, *kinds: str) -> Utterance:
        """A random utterance, of these kinds if given, never a backchannel otherwise."""
        fitting = [
            u for u in self.utterances if u.kind in kinds or (not kinds and u.kind != "backchannel")
        ]
        return fitting[self.rng.integers(len(fitting))]

    def run(self) -> User:
        """The whole conversation."""
        if self.rng.random() < 0.3:
            yield from self.opening()
        else:
            yield from self.silent(0.8)
        while True:
            turn = self.rng.choice(
                ["ask", "pause", "barge_in", "backchannel"], p=[0.4, 0.2, 0.2, 0.2]
            )
            yield from getattr(self, turn)()
            yield from self.silent(self.rng.uniform(0.4, 1.5))

    def opening(self) -> User:
        """Say nothing and let the agent begin."""
        yield from self.silent(3.5)
        spoke = [time for time, _ in self.agent.words]
        delay = spoke[0] if spoke else None
        self.note("opening", taken=delay is not None and 1.5 < delay < 3.5, delay=delay)
        yield from self.silent_until_quiet()

    def ask(self, utterance: Utterance | None = None) -> User:
        """A question; then listen to the whole answer."""
        utterance = utterance or self.pick()
        end = yield from self.speak(utterance.speech.samples)
        yield from self.listen(utterance, end)

    def listen(self, utterance: Utterance, end: float) -> User:
        """Listen to an answer and note whether, when and what it was."""
        yield from self.silent(0.4)
        while self.agent.now < end + ANSWER_WINDOW and not self.agent.said_since(end):
            yield self.frame()
        words = [item for item in self.agent.words if item[0] >= end - 0.3]
        taken = bool(words)
        if taken:
            yield from self.silent(0.4)
            yield from self.silent_until_quiet()
        said = " ".join(self.agent.said_since(end - 0.3))
        wanted = self.owed[utterance.text]
        self.note(
            "turn",
            kind=utterance.kind,
            voice=utterance.voice,
            question=utterance.text,
            taken=taken,
            early=taken and words[0][0] < end,
            delay=max(words[0][0] - end, 0.0) if taken else None,
            said=said,
            right=said == wanted,
            sound=(words[0][0] - 2 * STEP_SECONDS, self.agent.now) if taken else None,
        )

    def pause(self) -> User:
        """A question with a pause inside; then its end."""
        utterance = self.pick()
        while "|" not in utterance.text:
            utterance = self.pick()
        seconds = self.rng.uniform(0.4, 1.2)
        samples, at = with_pause(utterance, seconds)
        begin = self.agent.now + at
        end = yield from self.speak(samples)
        in_pause = [t for t, _ in self.agent.words if begin <= t < begin + seconds + 0.16]
        self.note("pause", taken=bool(in_pause), seconds=seconds)
        yield from self.listen(utterance, end)

    def _long_answer(self) -> Generator[np.ndarray, None, bool]:
        """Ask for the story or a long count and let it begin; returns whether it did."""
        utterance = self.pick(*LONG)
        while len(self.owed[utterance.text].split()) < 7:
            utterance = self.pick(*LONG)
        end = yield from self.speak(utterance.speech.samples)
        while self.agent.now < end + ANSWER_WINDOW and not self.agent.said_since(end):
            yield self.frame()
        yield from self.silent(self.rng.uniform(0.5, 1.0))
        return self.agent.is_heard() and bool(self.agent.said_since(end))

    def barge_in(self) -> User:
        """Talk over a long answer with a question or a stop."""
        speaks = yield from self._long_answer()
        utterance = self.pick("stop") if self.rng.random() < 0.4 else self.pick()
        onset = self.agent.now
        first = len(self.agent.loudness)
        end = yield from self.speak(utterance.speech.samples)
        yield from self.silent(max(onset + 1.2 - self.agent.now, 0))
        if speaks:
            quiet = self._quiet_from(first)
            delay = None if quiet is None else quiet - onset
            self.note("barge_in", yields=delay is not None and delay <= YIELD_WINDOW, delay=delay)
        yield from self.listen(utterance, end)

    def _quiet_from(self, first: int) -> float | None:
        """When the agent's sound stops for at least three steps, counted from step ``first``."""
        loud = [level > SOUND_THRESHOLD for level in self.agent.loudness]
        for step in range(first, len(loud) - 2):
            if not any(loud[step : step + 3]):
                return (step + 1) * STEP_SECONDS
        return None

    def backchannel(self) -> User:
        """Hum during a long answer."""
        speaks = yield from self._long_answer()
        yield from self.speak(self.pick("backchannel").speech.samples)
        end = self.agent.now
        yield from self.silent(1.5)
        if speaks:
            self.note("backchannel", goes_on=len(self.agent.said_since(end)) >= 1)
        yield from self.silent_until_quiet()

    def note(self, event: str, **values) -> None:
        """Remember a measurement."""
        self.events.append({"event": event} | values)


@torch.no_grad()
def converse(
    checkpoint: Path,
    utterances: list[Utterance],
    sessions: int,
    seconds: float,
    seed: int,
    **lm_gen,
) -> tuple[list[Script], list[Agent]]:
    """Let ``sessions`` scripted users talk to the model at once, for ``seconds``."""
    info = load_checkpoint(checkpoint)
    encoder, decoder = info.get_mimi(), info.get_mimi()
    tokenizer = info.get_text_tokenizer()
    torch.manual_seed(seed)
    generator = LMGen(info.get_moshi("cpu", dtype=torch.float32), **(info.lm_gen_config | lm_gen))
    agents = [Agent() for _ in range(sessions)]
    scripts = [
        Script(utterances, agent, seconds, np.random.default_rng([seed, index]))
        for index, agent in enumerate(agents)
    ]
    users = [script.run() for script in scripts]
    streams = (encoder.streaming(sessions), decoder.streaming(sessions))
    with streams[0], streams[1], generator.streaming(sessions):
        for _ in range(round(seconds / STEP_SECONDS)):
            frames = torch.from_numpy(np.stack([next(user) for user in users]))[:, None]
            tokens = generator.step(encoder.encode(frames))
            sound = np.zeros((sessions, STEP_SAMPLES), np.float32)
            if tokens is not None:
                sound = decoder.decode(tokens[:, 1:])[:, 0].numpy()
            for index, agent in enumerate(agents):
                agent.now += STEP_SECONDS
                agent.sound.append(sound[index])
                agent.loudness.append(float(sound[index].std()))
                text = PADDING_ID if tokens is None else int(tokens[index, 0, 0])
                if text > PADDING_ID:
                    agent.words.append((agent.now, _word(tokenizer.id_to_piece(text))))
    return scripts, agents


def _word(piece: str) -> str:
    return piece.removeprefix(WORD_START)


def word_error_rates(
    scripts: list[Script], agents: list[Agent], data: Path, most: int
) -> dict[str, float]:
    """Word errors of the recogniser on the agent's answers and on the source voice's, a word."""
    from training.recognise import Recogniser, word_errors

    source = {u.text: u.speech.samples for u in read_corpus(data, "agent")}
    silence = np.zeros(SAMPLE_RATE // 2, np.float32)
    recogniser, errors, total = Recogniser(), np.zeros(2), 0
    turns = [
        (agent, event)
        for script, agent in zip(scripts, agents, strict=True)
        for event in script.events
        if event["event"] == "turn" and event["said"] in source
    ]
    for agent, turn in turns[:most]:
        start, stop = (round(time / STEP_SECONDS) for time in turn["sound"])
        heard = [np.concatenate(agent.sound[start:stop]), source[turn["said"]]]
        said = turn["said"].split()
        total += len(said)
        for index, sound in enumerate(heard):
            words = recogniser.words(np.concatenate([silence, sound, silence]))
            errors[index] += word_errors(words, said)
    rates = errors / max(total, 1)
    return {"agent": round(float(rates[0]), 3), "source": round(float(rates[1]), 3), "words": total}


def _share(values: Iterator[bool]) -> float | None:
    values = list(values)
    return round(sum(values) / len(values), 3) if values else None


def summary(events: list[dict]) -> dict:
    """The table: shares, median delays and counts."""
    by_event: dict[str, list[dict]] = {}
    for event in events:
        by_event.setdefault(event["event"], []).append(event)
    turns = by_event.get("turn", [])
    delays = [turn["delay"] for turn in turns if turn["taken"]]
    yields = [e["delay"] for e in by_event.get("barge_in", []) if e["delay"] is not None]
    kinds = sorted({turn["kind"] for turn in turns})
    voices = sorted({turn["voice"].split("*")[0] for turn in turns})
    return {
        "counts": {name: len(items) for name, items in by_event.items()},
        "takeover": _share(turn["taken"] for turn in turns),
        "early": _share(turn["early"] for turn in turns),
        "delay_median_s": round(float(np.median(delays)), 3) if delays else None,
        "pause_takeover": _share(event["taken"] for event in by_event.get("pause", [])),
        "yield": _share(event["yields"] for event in by_event.get("barge_in", [])),
        "yield_median_s": round(float(np.median(yields)), 3) if yields else None,
        "backchannel_goes_on": _share(e["goes_on"] for e in by_event.get("backchannel", [])),
        "opening": _share(event["taken"] for event in by_event.get("opening", [])),
        "right": _share(turn["right"] for turn in turns),
        "right_by_kind": {k: _share(t["right"] for t in turns if t["kind"] == k) for k in kinds},
        "right_by_voice": {
            v: _share(t["right"] for t in turns if t["voice"].startswith(v)) for v in voices
        },
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--part", default="held_out", help="part of the corpus whose voices speak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--recognise", type=int, default=0, help="answers to recognise")
    parser.add_argument("--json", type=Path, help="write the events here")
    parser.add_argument("--sound", type=Path, help="write the agents' sound here, a file a session")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.set_num_threads(2)
    utterances = list(read_corpus(options.data, options.part))
    sampling = {"use_sampling": False} if options.greedy else {}
    scripts, agents = converse(
        options.checkpoint, utterances, options.sessions, options.seconds, options.seed, **sampling
    )
    events = [event for script in scripts for event in script.events]
    print(json.dumps(summary(events), indent=2), flush=True)
    if options.recognise:
        rates = word_error_rates(scripts, agents, options.data, options.recognise)
        print(json.dumps({"word_errors": rates}))
    if options.json:
        options.json.write_text(json.dumps(events, indent=1))
    if options.sound:
        options.sound.mkdir(parents=True, exist_ok=True)
        for index, agent in enumerate(agents):
            path = options.sound / f"{index:02}.wav"
            soundfile.write(path, np.concatenate(agent.sound), SAMPLE_RATE)


if __name__ == "__main__":
    main()
