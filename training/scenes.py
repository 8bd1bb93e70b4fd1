"""Stage 3, the second half: dialogues whose microphone hears more than the user.

    python -m training.scenes DATA CODEC_CHECKPOINT [--hearing FOLDER] [--scenes 800] [--seed 0]

The agent's own voice comes back from a loudspeaker through a room, somebody coughs while the user
speaks, music plays all the time. What lies over something else cannot be composed in codes, so
these dialogues are laid as sound and encoded:

    DATA/bank/scenes-NNN.npz     dialogues, ready for the language model

Files that exist are left alone, and any number of them is usable: they may be made while it trains.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from moshi.models import MimiModel

from pipecat_duplex.engine.phones import PhoneHearing
from training import acoustics
from training.bank import (
    Answer,
    Heard,
    Session,
    draw_sessions,
    encode_users,
    lay_speech,
    load_codec,
    read_utterances,
)
from training.corpus import Utterance
from training.dialogues import AFTER_STEPS, DECISIVE_STEPS, Composer, Dialogue, Layout
from training.progress import set_up_torch
from training.sizes import CODEBOOKS, STEP_SAMPLES, STEP_SECONDS
from training.tokenizer import build_tokenizer

PART_SCENES = 40
SCENE_STEPS = 512
A_SESSION = 2  # dialogues of each session
ECHO_DECIDES_STEPS = 10
_LABELS = tuple(f.name for f in fields(Dialogue) if f.name not in ("codes", "notes"))


@dataclass
class SceneHabits:
    """How often things happen."""

    echo: float = 0.6
    echo_db: tuple[float, float] = (-50.0, -6.0)
    heard_db: float = -42.0  # fainter ones are no sound at all
    echo_over_user_db: float = 6.0  # nobody could be heard over more
    echo_secs: tuple[float, float] = (0.04, 0.45)
    events: float = 3.0  # sounds a dialogue
    without_events: float = 0.35  # share of dialogues
    event_db: tuple[float, float] = (-24.0, 4.0)  # beside the user's level
    event_over_speech_db: tuple[float, float] = (-24.0, -6.0)
    bed: float = 0.2  # share of dialogues with a sound that never stops
    bed_db: tuple[float, float] = (-32.0, -12.0)


class SceneComposer:
    """Lays dialogues as sound.

    Attributes:
        composer: the agent's answers, and what is owed.
        sounds: what is no speech.
        answers: the sound of each of the agent's answers and words, as its codec gives it.
    """

    def __init__(self, composer: Composer, sounds: list[np.ndarray], mimi: MimiModel) -> None:
        self.habits = SceneHabits()
        self.composer, self.sounds = composer, sounds
        spoken = [*composer.answers.values(), *composer.words.values()]
        self.answers = {id(answer): decode_answer(mimi, answer) for answer in spoken}

    def scenes(
        self, utterances: list[Utterance], rng: np.random.Generator
    ) -> Iterator[tuple[Dialogue, np.ndarray]]:
        """Dialogues without the user's codes, and the sound that is to be encoded."""
        for drawn in draw_sessions(utterances, rng):
            microphone = acoustics.draw_microphone(rng)
            sound, level, heard = lay_speech(drawn, rng)
            speech = acoustics.through_room(sound, microphone, level)
            if sum(item.kind != "backchannel" for item in heard) < 3:
                continue
            for _ in range(A_SESSION):
                yield SceneLayout(self, speech, heard, microphone, rng).scene()


def decode_answer(mimi: MimiModel, answer: Answer) -> np.ndarray:
    """The sound of an answer by the codec."""
    codes = torch.from_numpy(answer.codes[:, : answer.steps].astype(np.int64))
    return mimi.decode(codes[None])[0, 0].detach().numpy()


class SceneLayout(Layout):
    """One dialogue whose user's channel is sound."""

    def __init__(
        self,
        scenes: SceneComposer,
        speech: np.ndarray,
        heard: list[Heard],
        microphone: acoustics.Microphone,
        rng: np.random.Generator,
    ) -> None:
        session = Session(np.zeros((CODEBOOKS, 0), np.uint16), heard)
        super().__init__(scenes.composer, session, SCENE_STEPS, rng)
        self.scenes, self.speech, self.microphone = scenes, speech, microphone
        length = SCENE_STEPS * STEP_SAMPLES
        self.user, self.agent = np.zeros(length), np.zeros(length)
        self.user_speaks, self.agent_speaks = np.zeros((2, SCENE_STEPS), bool)
        self.starts: list[int] = []

    def scene(self) -> tuple[Dialogue, np.ndarray]:
        """The dialogue, and what the microphone hears in it."""
        dialogue, habits, rng = self.lay(), self.scenes.habits, self.rng
        heard = self.user + acoustics.background(len(self.user), self.microphone)
        if rng.random() < habits.bed:
            heard += self._bed()
        if rng.random() >= habits.without_events:
            for _ in range(1 + rng.poisson(habits.events - 1)):
                self._add_event(heard)
        if rng.random() < habits.echo:
            heard += self._echo()
        return dialogue, np.clip(heard, -1, 1).astype(np.float32)

    def _background(self, steps: int) -> np.ndarray:
        return np.zeros((CODEBOOKS, steps), np.int64)  # encoded later

    def _place(self, heard: Heard, onset: int) -> None:
        stretch = self.speech[
            heard.onset * STEP_SAMPLES : (heard.end + AFTER_STEPS + 1) * STEP_SAMPLES
        ]
        place = self.user[onset * STEP_SAMPLES :][: len(stretch)]
        place += stretch[: len(place)]
        if heard.kind != "sound":
            self.user_speaks[onset : onset + heard.end - heard.onset + 1] = True

    def _sound_answer(self, answer: Answer, start: int, stop: int) -> None:
        parts = [self.scenes.answers.get(id(answer))]
        if parts[0] is None:  # told: a row of words
            words = answer.text.split()
            parts = [self.scenes.answers[id(self.composer.words[word])] for word in words]
        sound = np.concatenate(parts)[: (stop - start + 1) * STEP_SAMPLES].copy()
        faded = sound[(stop - start) * STEP_SAMPLES :]
        faded *= np.linspace(1, 0, len(faded)) ** 2
        place = self.agent[max(start, 0) * STEP_SAMPLES :][: len(sound)]
        place += sound[: len(place)]
        self.agent_speaks[start:stop] = True
        self.starts.append(start)

    @property
    def _user_level(self) -> float:
        return 10 ** (self.microphone.level / 20)

    def _echo(self) -> np.ndarray:
        """The agent's voice as it comes back."""
        habits, rng = self.scenes.habits, self.rng
        level = acoustics.speech_level(self.agent) if self.agent.any() else 1.0
        most = 20 * np.log10(self._user_level / level) + habits.echo_over_user_db
        low, high = habits.echo_db
        decibels = rng.uniform(low, max(min(high, most), low + 6))
        delay = rng.uniform(*habits.echo_secs)
        if decibels > habits.heard_db:
            self._decide_to_go_on(int(delay / STEP_SECONDS))
        return acoustics.echo(self.agent, delay, 10 ** (decibels / 20), rng)

    def _decide_to_go_on(self, late: int) -> None:
        """What it hears is itself: soon after each beginning, and now and then after that."""
        for start in self.starts:
            step = start + late + self.habits.yield_after
            while self.agent_speaks[start : step + DECISIVE_STEPS].all() and step < SCENE_STEPS:
                if not self.user_speaks[step - 8 : step + 8].any():
                    self._decide(step)
                step += ECHO_DECIDES_STEPS

    def _bed(self) -> np.ndarray:
        sound = self._draw_sound()
        gain = self._user_level * 10 ** (self.rng.uniform(*self.scenes.habits.bed_db) / 20)
        looped = np.resize(sound, len(self.user))
        return looped * (gain / max(float(looped.std()), 1e-6))

    def _add_event(self, heard: np.ndarray) -> None:
        """A sound somewhere: fainter where the user speaks, decisive where the agent does."""
        rng, habits, sound = self.rng, self.scenes.habits, self._draw_sound()
        onset = int(rng.integers(0, len(heard) - STEP_SAMPLES))
        first, last = onset // STEP_SAMPLES, (onset + len(sound)) // STEP_SAMPLES
        over = self.user_speaks[max(first - 3, 0) : last + 8].any()
        decibels = rng.uniform(*(habits.event_over_speech_db if over else habits.event_db))
        gain = self._user_level * 10 ** (decibels / 20) / acoustics.speech_level(sound)
        place = heard[onset : onset + len(sound)]
        place += gain * sound[: len(place)]
        if not over and self.agent_speaks[first : first + 7].all():
            self._decide(first + self.habits.yield_after)
        elif not over and not self.agent_speaks[first : last + 4].any():
            self._decide(last + 2)

    def _draw_sound(self) -> np.ndarray:
        return self.scenes.sounds[self.rng.integers(len(self.scenes.sounds))]


def encode_scenes(
    mimi: MimiModel,
    hearing: PhoneHearing | None,
    scenes: Iterator[tuple[Dialogue, np.ndarray]],
    count: int,
) -> Iterator[Dialogue]:
    """``count`` scenes with the user's codes."""
    for _ in range(count):
        dialogue, sound = next(scenes)
        dialogue.codes[1 + CODEBOOKS :] = encode_users(mimi, hearing, sound[None])[0]
        yield dialogue


def write_scenes(path: Path, dialogues: list[Dialogue]) -> None:
    """Save dialogues in one file, which is whole as soon as it is there."""
    arrays = {name: np.stack([getattr(d, name) for d in dialogues]) for name in _LABELS}
    codes = np.stack([dialogue.codes for dialogue in dialogues]).astype(np.int16)
    unfinished = path.with_suffix(".tmp.npz")
    np.savez(unfinished, codes=codes, **arrays)
    unfinished.rename(path)


def read_scenes(path: Path) -> list[Dialogue]:
    """The dialogues of one file."""
    with np.load(path) as data:
        codes, labels = data["codes"].astype(np.int64), {name: data[name] for name in _LABELS}
    return [
        Dialogue(own, **{name: values[index] for name, values in labels.items()})
        for index, own in enumerate(codes)
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("codec", type=Path)
    parser.add_argument("--hearing", type=Path, metavar="FOLDER", help="with hearing.onnx")
    parser.add_argument("--scenes", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    set_up_torch(options.threads)
    bank, mimi = options.data / "bank", load_codec(options.codec)
    hearing = options.hearing and PhoneHearing.load(options.hearing, 1)
    composer = Composer(bank, build_tokenizer(bank / "tokenizer.model"), users="none")
    utterances = read_utterances(options.data, "users")
    sounds = [u.speech.samples for u in utterances if u.kind == "sound"]
    scenes = SceneComposer(composer, sounds, mimi)
    for number, start in enumerate(range(0, options.scenes, PART_SCENES)):
        path = bank / f"scenes-{number:03}.npz"
        if path.exists():
            continue
        rng = np.random.default_rng([options.seed, number])
        count = min(PART_SCENES, options.scenes - start)
        with torch.no_grad():
            dialogues = list(encode_scenes(mimi, hearing, scenes.scenes(utterances, rng), count))
        write_scenes(path, dialogues)
        print(f"{path.name}: {count} dialogues", flush=True)


if __name__ == "__main__":
    main()
