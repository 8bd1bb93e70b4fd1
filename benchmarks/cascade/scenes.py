"""What the users do: they ask, pause, talk over answers and hum; they cough, and there is noise."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.duplex.speech import SEEN, UNSEEN, Speaker, exchanges, voices
from benchmarks.duplex.surroundings import sound_line
from benchmarks.duplex.users import Decks, Plan, Turn, draw_turn
from training.sizes import SAMPLE_RATE
from training.sounds import draw_sound

KINDS = (
    *("ask",) * 2,
    *("pause",) * 2,
    *("barge_in",) * 2,
    *("backchannel",) * 2,
    "cough_over",
    "noise_over",
    "cough",
    "noise",
)
"""What each user does once, in random order."""

PATIENCE_SECS = 5.0
QUIET_SECS = 0.5
COUGHS = ("cough", "throat", "sneeze")
NOISES = ("knocks", "clicks", "whoosh", "siren", "ringing", "animal", "random", "hum")

_LONGEST_SOUND_SECS = 2.0
_BACKGROUND_SECS = 30.0
_OWN_SEED = 55_000


def draw_scenes(
    dialogues: int,
    seed: int,
    *,
    cache: Path | None = None,
    kinds: tuple[str, ...] = KINDS,
    kokoro: bool = True,
) -> Iterator[Plan]:
    """Draw dialogues, half of them with voices that no part of the training contains.

    Args:
        dialogues: How many.
        seed: The same again gives the same.
        cache: Folder that keeps what was synthesised.
        kinds: What they do in each, in random order.
        kokoro: Whether Kokoro's voices are among them, where they are installed.
    """
    groups = [(group, voices(group, kokoro=kokoro)) for group in (UNSEEN, SEEN)]
    decks = Decks(np.random.default_rng([seed, _OWN_SEED]))
    for index in range(dialogues):
        rng = np.random.default_rng([seed, _OWN_SEED, index])
        group, names = groups[index % 2]
        speaker = Speaker(names[index // 2 % len(names)], rng, cache)
        turns = tuple(_draw(str(kind), speaker, decks, rng) for kind in rng.permutation(kinds))
        yield Plan(
            speaker.voice,
            group,
            speaker.background(_BACKGROUND_SECS),
            True,
            turns,
            patience_secs=PATIENCE_SECS,
            quiet_secs=QUIET_SECS,
        )


def _draw(kind: str, speaker: Speaker, decks: Decks, rng: np.random.Generator) -> Turn:
    name = kind.removesuffix("_over")
    if name in ("cough", "noise"):
        return _draw_sound(kind, name, speaker, rng)
    turn = draw_turn(kind, speaker, decks, rng)
    if kind == "barge_in":
        # A question: what follows a "stop" is no longer than a breath.
        turn = Turn(
            kind, turn.line, speaker.say(next(decks.questions)), turn.wait_secs, turn.into_secs
        )
    return turn


def _draw_sound(kind: str, name: str, speaker: Speaker, rng: np.random.Generator) -> Turn:
    wanted = COUGHS if name == "cough" else NOISES
    while True:
        found, samples = draw_sound(rng)
        if found in wanted:
            break
    samples = samples[: round(_LONGEST_SOUND_SECS * SAMPLE_RATE)]
    line = sound_line(found, samples, speaker, rng)
    wait_secs, into_secs = rng.uniform(0.6, 1.5), rng.uniform(0.6, 1.6)
    if not kind.endswith("_over"):
        return Turn("sound", line, None, wait_secs, into_secs)
    (story, *_) = exchanges()["story"]
    return Turn("sound_over", speaker.say(story), line, wait_secs, into_secs)
