"""Stage 7: who talks over the agent, and does it want the floor?

    python -m training.barge_in DATA RUN [--minutes 20]      train, or go on from RUN/last.pt
    python -m training.barge_in DATA RUN --export FILE       write what the engine reads
    python -m training.barge_in DATA RUN --export FILE --beside OTHER_RUN --share 0.7

The last one writes seven tenths of the run's weights and three of another run's, from which it went
on: the two lie in the same valley (see ``training.average``).

A small recurrent network hears the user in frames of 20 ms and tells, after each, whether the sound
is somebody who wants the floor, somebody who only says "uh huh", or nobody. Language models of
conversations learn this as well, from their own codes and among all else; this network learns
nothing else, in minutes, from the same corpus: people, synthetic voices, backchannels, sounds that
are no speech. ``pipecat_duplex/engine/barge_in.py`` runs it.

Speakers that were kept out of the training (``training.people``) are not in DATA. One recording in
ten of DATA is left out here, to choose the level from which on the engine believes it.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipecat_duplex.conversation.loudness import BANDS, FAINTEST, FRAMES, log_mel
from training import acoustics, people, world
from training.average import mean_weights
from training.bank import faster
from training.corpus import Utterance, read_corpus
from training.onnx_graphs.recurrent import write_network
from training.progress import set_up_torch
from training.sizes import SAMPLE_RATE, STEP_SAMPLES
from training.speech import Span, Speech

CLASSES = ("nobody", "backchannel", "floor")
HIDDEN = 128
SCENE_STEPS = 75  # 6 s
POOL_SCENES = 12_000
HELD_OUT = 10  # one recording of so many
TAIL_SECS = 0.16  # after its end, a backchannel is still one

PARTS = {
    "people": 4.0, "spliced": 0.8, "users": 0.7, "speakers": 0.7, "flite": 0.5, "joe": 1.0,
    "hibari": 1.3, "open": 1.0, "outside": 0.4,
}  # fmt: skip
"""Who wants the floor, by weight."""

EVENTS = {"floor": 0.38, "backchannel": 0.28, "sound": 0.2, "agent": 0.04, "far": 0.1}
FAR_DB = (-20.0, -9.0)  # beside who speaks to the agent: another voice in the background
ASIDE_DB = (-11.0, -7.0)  # the same for who turns to somebody else
PEOPLE_HUMS = 0.5  # of the backchannels
HUMMED = (
    "right", "i see", "yeah", "okay", "yes", "sure", "really", "good", "great", "nice", "fine",
    "true", "cool", "oh", "of course", "i know", "very good", "all right",
)  # fmt: skip
"""What people say in sentences, and others while they listen."""

LATE_SHARE = 0.1  # of what wants the floor: as on a line that opened late


@dataclass(frozen=True)
class Event:
    """What is heard, what it is, and how loud beside who speaks to the agent."""

    kind: int
    samples: np.ndarray
    start_secs: float
    end_secs: float
    level_db: float
    is_far: bool = False


def is_held_out(index: int) -> bool:
    """Whether an utterance is left out of the training."""
    return index % HELD_OUT == 0


def hums_of(utterance: Utterance) -> Iterator[Utterance]:
    """What in a recording could be said by somebody who listens."""
    speech = utterance.speech
    spoken = tuple(replace(word, label=word.label.lower()) for word in speech.words)
    for text in HUMMED:
        for spans in people.find_words(spoken, tuple(text.split())):
            own = people.cut(speech.samples, spans, 0.02, 0.04)
            yield Utterance(text, "backchannel", utterance.voice, own)


def late(utterance: Utterance, share: float) -> Utterance:
    """The utterance from the middle of its sound on, so much of it left out."""
    speech, words = utterance.speech, utterance.speech.words
    secs = words[0].start + share * (words[-1].end - words[0].start)
    spans = (Span("", 0.0, 0.0), Span("", 0.0, words[-1].end - secs))
    own = Speech(speech.samples[round(secs * SAMPLE_RATE) :], (), spans)
    return replace(utterance, speech=own)


def from_afar(samples: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Speech that goes to somebody else, turned away or in the background, and its level in dB."""
    aside = rng.random() < 0.5
    length = len(samples) + SAMPLE_RATE // 4
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    if aside:
        edge_hz, loss = rng.uniform(3_000, 5_000), 10 ** (rng.uniform(-9, -3) / 20)
        response = np.where(frequencies > edge_hz, loss, 1.0)
        echoes = [(rng.uniform(0.02, 0.08), -6.0), (rng.uniform(0.08, 0.2), -12.0)]
    else:
        response = 1 / np.sqrt(1 + (frequencies / rng.uniform(2_000, 6_000)) ** 8)
        echoes = [(rng.uniform(0.03, 0.15), rng.uniform(-14, -4))]
    dull = np.fft.irfft(np.fft.rfft(samples, length) * response, length)
    heard = dull.copy()
    for delay_secs, echo_db in echoes:
        lag = round(delay_secs * SAMPLE_RATE)
        heard[lag:] += 10 ** (echo_db / 20) * dull[: length - lag]
    return heard.astype(np.float32), rng.uniform(*(ASIDE_DB if aside else FAR_DB))


class Events:
    """Draws what may be heard."""

    def __init__(self, folder: Path, rng: np.random.Generator, *, held_out: bool) -> None:
        self.rng = rng
        parts = {name: self._read(folder, name, held_out) for name in PARTS}
        self.hums = [u for own in parts.values() for u in own if u.kind == "backchannel"]
        people_hums = [hum for u in parts["people"] for hum in hums_of(u)] or self.hums
        self.people_hums = {
            text: [hum for hum in people_hums if hum.text == text]
            for text in sorted({hum.text for hum in people_hums})
        }
        self.hums += self._read(folder, "backchannels", held_out)
        self.talk = {
            name: [u for u in own if u.kind != "backchannel"] for name, own in parts.items()
        }
        self.talk = {name: own for name, own in self.talk.items() if own}
        self.sounds = self._read(folder, "sounds", held_out)
        self.agent = self._read(folder, "agent", False)

    @staticmethod
    def _read(folder: Path, name: str, held_out: bool) -> list[Utterance]:
        found = enumerate(read_corpus(folder, name))
        return [u for index, u in found if is_held_out(index) == held_out or name == "agent"]

    def draw(self) -> Event:
        """One of them."""
        rng = self.rng
        name = str(rng.choice(list(EVENTS), p=list(EVENTS.values())))
        if name == "floor":
            return self._event(2, self._talk())
        if name == "far":
            samples, level_db = from_afar(self._event(0, self._talk()).samples, rng)
            return Event(0, samples, 0.0, 0.0, level_db, is_far=True)
        if name == "backchannel":
            if rng.random() >= PEOPLE_HUMS:
                return self._event(1, self._one_of(self.hums))
            # Whole words of the world's come most, and none by its frequency in what was read.
            texts = list(self.people_hums)
            weights = np.array([3.0 if text in world.BACKCHANNELS else 1.0 for text in texts])
            text = str(rng.choice(texts, p=weights / weights.sum()))
            return self._event(1, self._one_of(self.people_hums[text]))
        return self._event(0, self._one_of(self.sounds if name == "sound" else self.agent))

    def _talk(self) -> Utterance:
        weights = np.array([PARTS[part] for part in self.talk])
        part = str(self.rng.choice(list(self.talk), p=weights / weights.sum()))
        return self._one_of(self.talk[part])

    def _one_of(self, utterances: list[Utterance]) -> Utterance:
        return utterances[self.rng.integers(len(utterances))]

    def _event(self, kind: int, utterance: Utterance) -> Event:
        """Played faster or slower, which makes another throat of it."""
        factor = self.rng.uniform(0.82, 1.22) if self.rng.random() < 0.8 else 1.0
        if kind == CLASSES.index("floor") and self.rng.random() < LATE_SHARE:
            utterance = late(utterance, self.rng.uniform(0.05, 0.4))
        speech = faster(utterance, factor).speech
        # A person is as loud as one is at this microphone; other sounds are louder or fainter.
        level_db = self.rng.uniform(-4, 4) if kind else self.rng.uniform(-20, 8)
        start_secs, end_secs = speech.words[0].start, speech.words[-1].end
        return Event(kind, speech.samples, start_secs, end_secs, level_db)


def lay_scene(events: Events, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A microphone for some seconds.

    Returns:
        Log mel, float16 ``(SCENE_STEPS * FRAMES, BANDS)``, and the class of each step, int8
        ``(SCENE_STEPS,)``.
    """
    length = SCENE_STEPS * STEP_SAMPLES
    sound, classes = np.zeros(length, np.float32), np.zeros(SCENE_STEPS, np.int8)
    microphone = acoustics.draw_microphone(rng)
    at, somebody_spoke = int(rng.uniform(0.1, 1.5) * SAMPLE_RATE), False
    while at < length - SAMPLE_RATE // 2:
        event = events.draw()
        if event.is_far and not somebody_spoke:
            continue  # Far is farther than who speaks to the agent.
        somebody_spoke = somebody_spoke or event.kind > 0
        level = max(acoustics.speech_level(event.samples), 1e-4)
        own = event.samples * (0.1 / level * 10 ** (event.level_db / 20))
        stop = min(at + len(own), length)
        sound[at:stop] += own[: stop - at]
        start, end = at / SAMPLE_RATE + event.start_secs, at / SAMPLE_RATE + event.end_secs
        if event.kind:
            first = int(start * SAMPLE_RATE // STEP_SAMPLES)
            last = int((end + TAIL_SECS) * SAMPLE_RATE // STEP_SAMPLES) + 1
            classes[first:last] = event.kind
        at = stop + int(rng.exponential(0.7) * SAMPLE_RATE) + SAMPLE_RATE // 5
    heard = acoustics.record(sound, microphone, 0.1)
    if rng.random() < 0.2:
        heard = heard + rng.uniform(0, 1e-3) * rng.standard_normal(length).astype(np.float32)
    steps = np.pad(heard, (STEP_SAMPLES, 0)).reshape(-1, STEP_SAMPLES).astype(np.float32)
    before, now = steps[:-1], steps[1:]
    return log_mel(before, now).reshape(-1, BANDS).astype(np.float16), classes


class Pool:
    """Scenes, made once and heard many times."""

    def __init__(self, path: Path, folder: Path, scenes: int, seed: int, *, held_out: bool) -> None:
        if not path.is_file():
            rng = np.random.default_rng([seed, 71, held_out])
            events = Events(folder, rng, held_out=held_out)
            began, made = time.monotonic(), []
            for number in range(scenes):
                made.append(lay_scene(events, rng))
                if number % 500 == 499:
                    print(f"{number + 1} scenes, {time.monotonic() - began:.0f} s", flush=True)
            mels, classes = (np.stack(each) for each in zip(*made, strict=True))
            np.savez(path, mels=mels, classes=classes)
        with np.load(path) as data:
            self.mels, self.classes = data["mels"], data["classes"]


class Network(nn.Module):
    """Frames of log mel to the classes of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(BANDS, HIDDEN)
        self.gru = nn.GRU(HIDDEN, HIDDEN, num_layers=2, batch_first=True)
        self.leave = nn.Linear(HIDDEN, len(CLASSES))

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, steps, classes)`` for log mel ``(batch, steps * FRAMES, BANDS)``."""
        hidden, _ = self.gru(functional.relu(self.enter(mels)))
        return self.leave(hidden[:, FRAMES - 1 :: FRAMES])


def coloured(mels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scenes as other microphones hear them: louder or fainter, with bands raised and lowered."""
    count = len(mels)
    louder = rng.normal(0, 0.5, (count, 1, 1))
    at, knots = np.linspace(0, 1, BANDS), np.linspace(0, 1, 6)
    curves = [np.interp(at, knots, rng.normal(0, 0.4, len(knots))) for _ in range(count)]
    changed = mels + louder + np.stack(curves)[:, None]
    return np.maximum(changed, np.log(FAINTEST)).astype(np.float32)


def loss_of(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Cross entropy; the first steps of each sound weigh most, since there it is decided."""
    before = functional.pad(classes, (8, 0))[:, :-8]
    weights = torch.where((classes > 0) & (before == 0), 3.0, 1.0)
    losses = functional.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def train(folder: Path, run: Path, minutes: float, threads: int, seed: int) -> None:
    """Train for so long, with a rate that falls to nothing."""
    set_up_torch(threads)
    torch.manual_seed(seed)
    run.mkdir(parents=True, exist_ok=True)
    pool = Pool(run / "pool.npz", folder, POOL_SCENES, seed, held_out=False)
    held_out = Pool(run / "held_out.npz", folder, 600, seed, held_out=True)
    network = Network()
    if (run / "last.pt").is_file():
        network.load_state_dict(torch.load(run / "last.pt"))
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    rng, began, step = np.random.default_rng(seed), time.monotonic(), 0
    losses: list[float] = []
    while (share := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, step / 50 + 0.02) * max(1 - share, 0.01)
        chosen = rng.choice(len(pool.mels), 32, replace=False)
        logits = network(torch.from_numpy(coloured(pool.mels[chosen], rng)))
        loss = loss_of(logits, torch.from_numpy(pool.classes[chosen].astype(np.int64)))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        step += 1
        if step % 100 == 0:
            print(
                f"{step} loss {np.mean(losses[-100:]):.3f}  {judge(network, held_out)}", flush=True
            )
            torch.save(network.state_dict(), run / "last.pt")
    torch.save(network.state_dict(), run / "last.pt")


@torch.no_grad()
def judge(network: Network, pool: Pool) -> float:
    """How it does on what it was not trained on."""
    logits = torch.cat(
        [
            network(torch.from_numpy(pool.mels[i : i + 50].astype(np.float32)))
            for i in range(0, len(pool.mels), 50)
        ]
    )
    classes = torch.from_numpy(pool.classes.astype(np.int64))
    return float(loss_of(logits, classes))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", type=Path, metavar="FILE")
    parser.add_argument("--beside", type=Path, metavar="OTHER_RUN")
    parser.add_argument("--share", type=float, default=0.5)
    options = parser.parse_args()
    if options.export is None:
        train(options.data, options.run, options.minutes, options.threads, options.seed)
        return
    state = torch.load(options.run / "last.pt")
    if options.beside is not None:
        state = mean_weights(state, torch.load(options.beside / "last.pt"), options.share)
    write_network({name: value.numpy() for name, value in state.items()}, options.export)


if __name__ == "__main__":
    main()
