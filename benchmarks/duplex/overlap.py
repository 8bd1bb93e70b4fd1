"""Somebody speaks while the agent does: the four scenes of Full-Duplex-Bench v1.5.

The user interrupts with a question, or hums, or says something to somebody else, or another voice
speaks in the background. The agent should respond to the first and resume in the other three.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.duplex.dialogue import Dialogue, Moment
from benchmarks.duplex.figures import WORD_LEAD_SECS, Share, Utterance, utterances
from benchmarks.duplex.speech import SEEN, UNSEEN, Line, Speaker, voices
from benchmarks.duplex.users import ANSWER_SECS, QUIET_SECS, Decks, Plan, Turn
from training import world
from training.sizes import SAMPLE_RATE

OVERLAP = "overlap"
INTERRUPTION, HUM, ASIDE, BACKGROUND = (
    "user interruption",
    "user backchannel",
    "talking to somebody else",
    "speech in the background",
)
SCENES = (INTERRUPTION, HUM, ASIDE, BACKGROUND)
RESPOND, RESUME, NEITHER = "respond", "resume", "neither"
WANTED = {INTERRUPTION: RESPOND, HUM: RESUME, ASIDE: RESUME, BACKGROUND: RESUME}

GAP_SECS = 0.5
"""Silence that ends an utterance, as in Full-Duplex-Bench."""

GOES_ON_SECS = 1.0
_OWN_SEED = 99_000
_BACKGROUND_SECS = 30.0
_TURNS_OF_EACH = 2


def draw_overlaps(
    dialogues: int,
    seed: int,
    *,
    cache: Path | None = None,
    kokoro: bool = True,
    patience_secs: float = ANSWER_SECS,
    quiet_secs: float = QUIET_SECS,
) -> Iterator[Plan]:
    """Draw dialogues, each with every scene twice.

    Args:
        dialogues: How many.
        seed: The same again gives the same.
        cache: Folder that keeps what was synthesised.
        kokoro: Whether Kokoro's voices are among them, where they are installed.
        patience_secs: How long the user waits for an answer.
        quiet_secs: Silence after which the user takes the agent to have finished.
    """
    names = [
        name
        for pair in zip(*(voices(g, kokoro=kokoro) for g in (UNSEEN, SEEN)), strict=False)
        for name in pair
    ]
    decks = Decks(np.random.default_rng([seed, _OWN_SEED]))
    for index in range(dialogues):
        rng = np.random.default_rng([seed, _OWN_SEED, index])
        speaker = Speaker(names[index % len(names)], rng, cache)
        other = Speaker(names[(index + 1) % len(names)], rng, cache)
        other.microphone = speaker.microphone
        scenes = rng.permutation(SCENES * _TURNS_OF_EACH)
        turns = tuple(_draw(str(scene), speaker, other, decks, rng) for scene in scenes)
        background = speaker.background(_BACKGROUND_SECS)
        yield Plan(
            speaker.voice,
            OVERLAP,
            background,
            True,
            turns,
            patience_secs=patience_secs,
            quiet_secs=quiet_secs,
        )


def _draw(
    scene: str, speaker: Speaker, other: Speaker, decks: Decks, rng: np.random.Generator
) -> Turn:
    story = world.Exchange("story", "tell me a story", world.STORY)
    if scene == INTERRUPTION:
        over = speaker.say(next(decks.questions))
    elif scene == HUM:
        over = speaker.say(next(decks.hums))
    else:
        text = str(rng.choice(world.MORE_OUTSIDE))
        voice = speaker if scene == ASIDE else other
        over = voice.say(world.Exchange("outside", text, ""))
        filtered = turned_away(over.pcm) if scene == ASIDE else far_away(over.pcm)
        over = replace(over, pcm=filtered, answer="")
    wait_secs, into_secs = rng.uniform(0.6, 1.5), rng.uniform(0.6, 1.6)
    return Turn(OVERLAP, speaker.say(story), _named(over, scene), wait_secs, into_secs)


def _named(line: Line, scene: str) -> Line:
    return replace(line, kind=scene)


def turned_away(pcm: np.ndarray) -> np.ndarray:
    """Return speech as it is heard when it goes to somebody else in the room.

    8 dB fainter, 5 dB less above 4 kHz, reflections after 45 ms (-6 dB) and 120 ms (-12 dB).

    Args:
        pcm: Float32, 24 kHz.
    """
    duller = _filtered(pcm, lambda hertz: np.where(hertz > 4_000, _gain(-5), 1.0))
    return _gain(-8) * _reflected(duller, ((0.045, -6), (0.120, -12)))


def far_away(pcm: np.ndarray) -> np.ndarray:
    """Return speech as it is heard from the background.

    15 dB fainter, nothing above 3 kHz, an echo after 100 ms (-10 dB).

    Args:
        pcm: Float32, 24 kHz.
    """
    duller = _filtered(pcm, lambda hertz: 1 / np.sqrt(1 + (hertz / 3_000) ** 8))
    return _gain(-15) * _reflected(duller, ((0.100, -10),))


def _gain(level_db: float) -> np.float32:
    return np.float32(10 ** (level_db / 20))


def _filtered(pcm: np.ndarray, response) -> np.ndarray:
    hertz = np.fft.rfftfreq(len(pcm), 1 / SAMPLE_RATE)
    return np.fft.irfft(np.fft.rfft(pcm) * response(hertz), len(pcm)).astype(np.float32)


def _reflected(pcm: np.ndarray, echoes: Sequence[tuple[float, float]]) -> np.ndarray:
    heard = pcm.copy()
    for delay_secs, level_db in echoes:
        delay = round(delay_secs * SAMPLE_RATE)
        heard[delay:] += _gain(level_db) * pcm[: len(pcm) - delay]
    return heard


@dataclass(frozen=True)
class Reaction:
    """What the agent does.

    Attributes:
        scene: One of :data:`SCENES`.
        what: ``respond``: it says something else than the answer it was giving. ``resume``: it
            goes on with that. ``neither``: it falls silent.
        stop_secs: From the first sound over it to its silence; ``None`` if it does not stop.
        response_secs: From the last sound over it to its response, at least 0.
    """

    scene: str
    what: str
    stop_secs: float | None = None
    response_secs: float | None = None


def reactions(dialogue: Dialogue, *, knows_words: bool) -> list[Reaction]:
    """Return what the agent does in each scene of a dialogue.

    Args:
        dialogue: A conversation that is over.
        knows_words: Whether the agent's words are known, and the answer that it owes. By sound
            alone, an answer that goes on after a silence counts as a response.
    """
    moments = [m for m in dialogue.moments if m.kind == OVERLAP and m.over is not None]
    told = [_Told(dialogue, moment) for moment in moments]
    begins = [item.new_secs for item in told if item.new_secs is not None] if knows_words else []
    spoken = utterances(dialogue.agent_pcm, begins, GAP_SECS)
    found = []
    for moment, item in zip(moments, told, strict=True):
        talking = _talking(spoken, moment)
        if talking is None or (knows_words and not item.is_story):
            continue
        by = (item.what, item.new_secs) if knows_words else _by_sound(moment, spoken, talking)
        found.append(_reaction(moment, talking, *by))
    return found


def _reaction(
    moment: Moment, talking: Utterance, what: str, response_secs: float | None
) -> Reaction:
    stops = what != RESUME and talking.end_secs < moment.until_secs - GAP_SECS
    stop_secs = talking.end_secs - moment.start_secs if stops else None
    if response_secs is not None:
        response_secs = max(0.0, response_secs - moment.end_secs)
    return Reaction(moment.text_kind, what, stop_secs, response_secs)


def _talking(spoken: Sequence[Utterance], moment: Moment) -> Utterance | None:
    onset = moment.start_secs
    return next((item for item in spoken if item.start_secs < onset < item.end_secs), None)


class _Told:
    """What the agent says before, during and after an overlap.

    Attributes:
        is_story: Whether what is talked over is the answer that was asked for.
        what: See :class:`Reaction`.
        new_secs: When it begins to say something else; ``None`` if it does not.
    """

    def __init__(self, dialogue: Dialogue, moment: Moment):
        assert moment.over is not None
        asked_secs, owed = moment.over[0] - WORD_LEAD_SECS, moment.over[1].split()
        words = [item for item in dialogue.words if asked_secs <= item[0] < moment.until_secs]
        pairs = zip(words, owed, strict=False)
        told = len(list(itertools.takewhile(lambda pair: pair[0][1] == pair[1], pairs)))
        before = sum(at < moment.start_secs for at, _ in words)
        self.is_story = 0 < before <= told
        self.new_secs = words[told][0] if told < len(words) else None
        goes_on = any(at >= moment.end_secs for at, _ in words) or told == len(owed)
        self.what = RESUME if goes_on else NEITHER
        if self.new_secs is not None:
            self.what = RESPOND


def _by_sound(
    moment: Moment, spoken: Sequence[Utterance], talking: Utterance
) -> tuple[str, float | None]:
    if talking.end_secs >= moment.end_secs + GOES_ON_SECS:
        return RESUME, None
    later = (i.start_secs for i in spoken if talking.end_secs < i.start_secs < moment.until_secs)
    from_secs = next(later, None)
    return (NEITHER if from_secs is None else RESPOND), from_secs


def overlap_lines(columns: dict[str, list[Reaction]]) -> list[str]:
    """Return the table.

    Args:
        columns: Reactions of each agent, by its name.
    """
    lines = [f"| overlap: respond, resume, neither | wanted | {' | '.join(columns)} |"]
    lines.append(f"| --- | --- |{' --- |' * len(columns)}")
    for scene in SCENES:
        cells = [_shares([r for r in found if r.scene == scene]) for found in columns.values()]
        lines.append(f"| {scene} | {WANTED[scene]} | {' | '.join(cells)} |")
    for label, attribute in (("t_stop", "stop_secs"), ("t_resp", "response_secs")):
        cells = [
            _times([getattr(r, attribute) for r in found if r.scene == INTERRUPTION])
            for found in columns.values()
        ]
        lines.append(f"| {label} of an interruption, p50, p90 | | {' | '.join(cells)} |")
    return lines


def _shares(found: list[Reaction]) -> str:
    if not found:
        return "–"
    counts = Counter(reaction.what for reaction in found)
    shares = [Share(counts[what], len(found)).value or 0.0 for what in (RESPOND, RESUME, NEITHER)]
    return f"{', '.join(f'{value:.2f}' for value in shares)} of {len(found)}"


def _times(secs: list[float | None]) -> str:
    known = [value for value in secs if value is not None and math.isfinite(value)]
    if not known:
        return "–"
    p50, p90 = np.percentile(known, [50, 90])
    return f"{p50:.2f} s, {p90:.2f} s"
