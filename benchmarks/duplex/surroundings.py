"""Users whose microphone hears more than them: sounds that are no speech, the agent's voice."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from benchmarks.duplex.speech import SEEN, Line, Speaker, exchanges, voices
from benchmarks.duplex.users import Echo, Plan, Turn, draw_plans
from training import acoustics
from training.sizes import SAMPLE_RATE, STEP_SAMPLES
from training.sounds import draw_sound

SOUNDS, ECHO = "sounds", "echo"
SOUND_TURNS = ("sound",) * 5 + ("sound_over",) * 5
ECHO_TURNS = ("story", "barge_in", "story", "barge_in", "ask", "barge_in")
ECHO_DELAYS_SECS = (0.08, 0.32)
SOUND_DB = (-20.0, 0.0)
"""Level of a sound beside the user's speech."""

_LONGEST_SECS = 4.0
_BACKGROUND_SECS = 20.0
_KINDS = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"}
_OWN_SEED = 77_000  # the training draws its sounds from other seeds


class NoSounds(ValueError):
    """A folder has no sounds."""


def sound_plans(
    dialogues: int, seed: int, folder: Path | None, cache: Path | None
) -> Iterator[Plan]:
    """Draw dialogues in which nobody speaks but for a long answer, and sounds are heard.

    Args:
        dialogues: How many.
        seed: The same again gives the same.
        folder: Files with sounds; none: made like those of the training, but others.
        cache: Folder that keeps what was synthesised.
    """
    draw = _from_folder(folder) if folder else _made
    names = voices(SEEN, kokoro=False)
    for index in range(dialogues):
        rng = np.random.default_rng([seed, _OWN_SEED, index])
        speaker = Speaker(names[index % len(names)], rng, cache)
        (story, *_) = exchanges()["story"]
        turns = []
        for kind in rng.permutation(SOUND_TURNS):
            line, over = sound_line(*draw(rng), speaker, rng), None
            if kind == "sound_over":
                line, over = speaker.say(story), line
            waits = rng.uniform(0.6, 1.5), rng.uniform(0.6, 3.0)
            turns.append(Turn(str(kind), line, over, *waits))
        background = speaker.background(_BACKGROUND_SECS)
        yield Plan(speaker.voice, SOUNDS, background, True, tuple(turns))


def _made(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    kind, samples = draw_sound(rng)
    return kind, samples[: round(_LONGEST_SECS * SAMPLE_RATE)]


def _from_folder(folder: Path) -> Callable[[np.random.Generator], tuple[str, np.ndarray]]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _KINDS)
    if not paths:
        raise NoSounds(f"{folder} has no sounds")

    def draw(rng: np.random.Generator) -> tuple[str, np.ndarray]:
        path = paths[rng.integers(len(paths))]
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        sound = soxr.resample(samples.mean(1), rate, SAMPLE_RATE)
        return path.stem, sound[: round(_LONGEST_SECS * SAMPLE_RATE)].astype(np.float32)

    return draw


def sound_line(kind: str, samples: np.ndarray, speaker: Speaker, rng: np.random.Generator) -> Line:
    """Return a sound as the speaker's microphone picks it up.

    Args:
        kind: Its name.
        samples: Float32, 24 kHz.
        speaker: Whose microphone.
        rng: Draws its level and where in a step it begins.
    """
    lead = int(rng.integers(STEP_SAMPLES))
    level = acoustics.speech_level(samples) / 10 ** (rng.uniform(*SOUND_DB) / 20)
    pcm = acoustics.through_room(np.pad(samples, (lead, 0)), speaker.microphone, level)
    start_secs, end_secs = lead / SAMPLE_RATE, (lead + len(samples)) / SAMPLE_RATE
    return Line(kind, "sound", "", np.clip(pcm, -1, 1).astype(np.float32), start_secs, end_secs)


def echo_plans(
    names: tuple[str, ...], dialogues: int, seed: int, level_db: float, cache: Path | None
) -> Iterator[Plan]:
    """Draw dialogues in which the agent's voice comes back, after 80 to 320 ms.

    Args:
        names: The users' voices.
        dialogues: How many.
        seed: The same again gives the same.
        level_db: Of the echo, beside what the loudspeaker is given.
        cache: Folder that keeps what was synthesised.
    """
    plans = draw_plans(names, ECHO, dialogues, seed, cache=cache, kinds=ECHO_TURNS)
    for index, plan in enumerate(plans):
        rng = np.random.default_rng([seed, _OWN_SEED, 1, index])
        echo = Echo(level_db, rng.uniform(*ECHO_DELAYS_SECS))
        yield Plan(plan.voice, ECHO, plan.background, True, plan.turns, echo)
