"""The definitions, after Full-Duplex-Bench v1, and the figures by them. No part of it runs a model.

``docs/embedded-model.md`` says each definition in words.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.duplex.dialogue import SOUND_LEVEL, Dialogue, Moment
from pipecat_duplex.session import SAMPLE_RATE_HZ
from training import world

BLOCK_SECS = 0.01
GAP_SECS = 0.32
"""Silence that ends an utterance of the agent, as in the package's own turn tracker."""

NEW_ANSWER_GAP_SECS = 0.05
"""Silence that ends one where the owed answer to the next question begins: "stop" – "okay"."""

LEAST_SECS = 0.03
YIELD_SECS = 0.6
ANSWER_SECS = 3.0
PAUSE_LEAD_SECS = 0.16
"""What the agent begins so soon after a pause, it has decided before it heard the user go on."""

OPENING_SECS = (1.5, 3.5)
GOES_ON_SECS = 1.0
WORD_LEAD_SECS = 0.2
"""A word of the monologue may come this much before its sound."""

TAKEOVER_SECS, TAKEOVER_WORDS = 1.0, 3


@dataclass(frozen=True)
class Utterance:
    """A stretch of the agent's sound.

    Attributes:
        start_secs: Its first sound.
        end_secs: Its last.
    """

    start_secs: float
    end_secs: float


@dataclass
class Outcome:
    """What a moment shows.

    Attributes:
        dialogue: Index of the dialogue.
        voice: The user's.
        group: ``unseen`` or ``seen``, ``people``, ``sounds`` or ``echo``.
        moment: The moment.
        taken: Whether the agent took the floor: after a sentence, in a pause, or at the start.
        early: Whether it began inside the user's sentence.
        delay_secs: From the user's end to the agent's first sound, at least 0; from the user's
            onset to its silence in ``yield_secs``.
        started_secs: First sound of the answer.
        stopped_secs: Last sound of the answer.
        said: Its words.
        right: Whether they are the answer that was owed; ``None`` where none can be told.
        in_pause: Any sound that began in the pause, however short.
        yield_secs: Delay of a yield, ``None`` without one, ``math.inf`` if it spoke on.
        yields: Whether it yielded in time.
        goes_on: Whether it went on through a backchannel, or a sound.
        started: Whether it began to speak at a sound while nobody spoke.
        whole: Whether it told all of a long answer, and nothing else.
    """

    dialogue: int
    voice: str
    group: str
    moment: Moment
    taken: bool | None = None
    early: bool | None = None
    delay_secs: float | None = None
    started_secs: float | None = None
    stopped_secs: float | None = None
    said: str = ""
    right: bool | None = None
    in_pause: bool | None = None
    paused_taken: bool | None = None
    yield_secs: float | None = None
    yields: bool | None = None
    goes_on: bool | None = None
    started: bool | None = None
    whole: bool | None = None


def utterances(
    pcm: np.ndarray, answers_secs: Sequence[float] = (), gap_secs: float = GAP_SECS
) -> list[Utterance]:
    """Return the stretches of sound in a voice.

    Args:
        pcm: Float32, 24 kHz.
        answers_secs: Words known to begin something new: before them a short silence will do.
        gap_secs: Silence between two.
    """
    block = round(BLOCK_SECS * SAMPLE_RATE_HZ)
    blocks = pcm[: len(pcm) // block * block].reshape(-1, block)
    loud = np.flatnonzero(np.sqrt((blocks.astype(np.float64) ** 2).mean(1)) > SOUND_LEVEL)
    found: list[Utterance] = []
    for index in loud.tolist():
        start_secs, end_secs = index * BLOCK_SECS, (index + 1) * BLOCK_SECS
        silence_secs = start_secs - found[-1].end_secs if found else math.inf
        new = any(-0.05 <= start_secs - word <= WORD_LEAD_SECS for word in answers_secs)
        if silence_secs > (NEW_ANSWER_GAP_SECS if new else gap_secs):
            found.append(Utterance(start_secs, end_secs))
        else:
            found[-1] = Utterance(found[-1].start_secs, end_secs)
    return [item for item in found if item.end_secs - item.start_secs >= LEAST_SECS]


def measure(dialogue: Dialogue, index: int, *, knows_world: bool) -> list[Outcome]:
    """Return what each moment of a dialogue shows.

    Args:
        dialogue: A conversation that is over.
        index: Its number.
        knows_world: Whether the agent owes the answers of the embedded model's world.
    """
    measured = _Measure(dialogue, knows_world)
    outcomes = []
    for moment in dialogue.moments:
        outcome = Outcome(index, dialogue.voice, dialogue.group, moment)
        getattr(measured, moment.kind)(moment, outcome)
        outcomes.append(outcome)
    return outcomes


class _Measure:
    """The definitions, on one dialogue."""

    def __init__(self, dialogue: Dialogue, knows_world: bool):
        self._words = dialogue.words
        self._knows_world = knows_world
        over = [m for m in dialogue.moments if m.kind == "barge_in" and self._judges(m)]
        begins = [secs for moment in over if (secs := self._owed_from(moment)) is not None]
        self._spoken = utterances(dialogue.agent_pcm, begins)

    def opening(self, moment: Moment, outcome: Outcome) -> None:
        """Speaks first, about two seconds into silence."""
        first = next((item.start_secs for item in self._spoken), math.inf)
        low, high = OPENING_SECS
        outcome.taken = low < first < high
        outcome.delay_secs = first if first < high else None

    def ask(self, moment: Moment, outcome: Outcome) -> None:
        """Takes the turn after a complete sentence."""
        answer = self._answer(moment)
        outcome.taken = answer is not None and self._is_takeover(answer, moment)
        starts = [i.start_secs for i in self._spoken if i.start_secs >= moment.start_secs]
        outcome.early = any(start < moment.end_secs for start in starts)
        if answer is None:
            outcome.right = False if self._judges(moment) else None
            return
        outcome.started_secs = answer.start_secs
        outcome.stopped_secs = max(
            (i.end_secs for i in self._spoken if i.start_secs < moment.until_secs),
            default=answer.end_secs,
        )
        outcome.delay_secs = max(0.0, answer.start_secs - moment.end_secs)
        outcome.said = self._said(answer.start_secs - WORD_LEAD_SECS, moment.until_secs)
        if self._judges(moment):
            outcome.right = outcome.said == moment.owed

    def pause(self, moment: Moment, outcome: Outcome) -> None:
        """Waits through a pause inside a sentence, and takes the turn after it."""
        self.ask(moment, outcome)
        assert moment.pause_secs is not None
        begin, end = moment.pause_secs[0], moment.pause_secs[1] + PAUSE_LEAD_SECS
        inside = [item for item in self._spoken if begin <= item.start_secs < end]
        held = any(item.start_secs < begin and item.end_secs > end for item in self._spoken)
        outcome.in_pause = bool(inside) or held
        outcome.paused_taken = held or any(self._takes_floor(item) for item in inside)

    def barge_in(self, moment: Moment, outcome: Outcome) -> None:
        """Yields, and answers what was said over it."""
        self.ask(moment, outcome)
        if not self._is_long_answer(moment):
            return
        onset = moment.start_secs
        talking = next((i for i in self._spoken if i.start_secs < onset < i.end_secs), None)
        if talking is None:
            return
        outcome.yield_secs = talking.end_secs - onset
        if talking.end_secs >= moment.until_secs - GAP_SECS:
            outcome.yield_secs = math.inf
        outcome.yields = outcome.yield_secs <= YIELD_SECS

    def backchannel(self, moment: Moment, outcome: Outcome) -> None:
        """Goes on through it."""
        if not self._is_long_answer(moment):
            return
        onset, until = moment.start_secs, moment.end_secs + GOES_ON_SECS
        talking = next((i for i in self._spoken if i.start_secs < onset < i.end_secs), None)
        if talking is None:
            return
        more = [word for at, word in self._words if moment.end_secs <= at < until]
        assert moment.over is not None
        said = self._said(moment.over[0] - WORD_LEAD_SECS, until)
        outcome.said = said
        outcome.goes_on = talking.end_secs >= until and bool(more)
        if self._knows_world:
            # Sound that is another answer would be no going on; an answer may come to its end.
            outcome.goes_on = outcome.goes_on and moment.over[1].startswith(said)
            outcome.goes_on = outcome.goes_on or said == moment.over[1]

    sound_over = backchannel

    def sound(self, moment: Moment, outcome: Outcome) -> None:
        """Begins nothing. A greeting, which comes without a sound as well, is not judged."""
        begun = [
            item
            for item in self._spoken
            if moment.start_secs <= item.start_secs < moment.until_secs
        ]
        outcome.said = self._said(moment.start_secs - WORD_LEAD_SECS, moment.until_secs)
        greets = bool(begun) and begun[0] is self._spoken[0] and outcome.said == world.WELCOME
        outcome.started = None if self._knows_world and greets else bool(begun)

    def story(self, moment: Moment, outcome: Outcome) -> None:
        """Tells a long answer to its end. One that was not begun was misheard, which is no cut."""
        said = self._said(moment.end_secs - WORD_LEAD_SECS, moment.until_secs)
        outcome.said = said
        is_begun = bool(said) and said.split()[:2] == moment.owed.split()[:2]
        outcome.whole = said == moment.owed if is_begun and self._judges(moment) else None

    def _answer(self, moment: Moment) -> Utterance | None:
        """What the agent says to a sentence: it begins after the user did, and outlasts them."""
        latest = min(moment.end_secs + ANSWER_SECS, moment.until_secs)
        for item in self._spoken:
            begins = moment.start_secs <= item.start_secs < latest
            if begins and item.end_secs > moment.end_secs:
                return item
        return None

    def _takes_floor(self, item: Utterance) -> bool:
        """Full-Duplex-Bench: no takeover is silence, or less than a second with few words."""
        said = self._said(item.start_secs - WORD_LEAD_SECS, item.end_secs)
        long = item.end_secs - item.start_secs >= TAKEOVER_SECS
        return long or len(said.split()) > TAKEOVER_WORDS

    def _is_takeover(self, answer: Utterance, moment: Moment) -> bool:
        # "okay" is all that is owed to a "stop", and it is short.
        short = self._knows_world and moment.owed and len(moment.owed.split()) <= TAKEOVER_WORDS
        return bool(short) or self._takes_floor(answer)

    def _is_long_answer(self, moment: Moment) -> bool:
        """Whether what was talked over is the long answer that was asked for."""
        if moment.over is None:
            return False
        if not self._knows_world:
            return True
        end_secs, owed = moment.over
        said = self._said(end_secs - WORD_LEAD_SECS, moment.start_secs)
        return bool(said) and owed.startswith(said)

    def _owed_from(self, moment: Moment) -> float | None:
        """When the last words of a stretch began, if they are the answer owed."""
        words = [item for item in self._words if moment.start_secs <= item[0] < moment.until_secs]
        owed = moment.owed.split()
        tail = words[-len(owed) :]
        return tail[0][0] if [word for _, word in tail] == owed else None

    def _judges(self, moment: Moment) -> bool:
        return self._knows_world and bool(moment.owed)

    def _said(self, from_secs: float, until_secs: float) -> str:
        return " ".join(word for at, word in self._words if from_secs <= at < until_secs)


@dataclass(frozen=True)
class Share:
    """How many of how many."""

    hits: int
    of: int

    @property
    def value(self) -> float | None:
        """The share itself."""
        return self.hits / self.of if self.of else None

    def interval(self, z: float = 1.96) -> tuple[float, float] | None:
        """Return Wilson's interval, of 95 percent by default."""
        if not self.of:
            return None
        share, n = self.hits / self.of, self.of
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)


def share(values: Iterable[bool | None]) -> Share:
    """Return the share of the true ones; ``None`` does not count."""
    known = [value for value in values if value is not None]
    return Share(sum(map(bool, known)), len(known))


@dataclass(frozen=True)
class Figures:
    """A group of dialogues in figures.

    Attributes:
        dialogues: How many.
        takeover: Took the turn after a complete sentence.
        delays_secs: Of these.
        early: Began inside the user's sentence, of all sentences without a pause.
        pause_takeover: Took the floor in a pause.
        pause_sound: Made any sound that began in a pause.
        yields: Fell silent within 600 ms of a barge-in.
        yield_secs: Delays of all barge-ins; infinite where the agent spoke on.
        answers_after: Took the turn after a barge-in.
        goes_on: Went on through a backchannel.
        starts_at_sounds: Began to speak at a sound while nobody spoke.
        goes_on_through_sounds: Went on speaking through one.
        whole: Told a long answer to its end.
        opening: Spoke first after about two seconds.
        right: Gave the right answer to a question asked while the agent was silent.
        right_after: Gave it to a question asked over an answer.
        right_by_kind: By kind of question, both.
        right_by_voice: By the user's voice, both.
        turns_by_voice: Turns of each voice.
    """

    dialogues: int
    takeover: Share
    delays_secs: list[float]
    early: Share
    pause_takeover: Share
    pause_sound: Share
    yields: Share
    yield_secs: list[float]
    answers_after: Share
    goes_on: Share
    starts_at_sounds: Share
    goes_on_through_sounds: Share
    whole: Share
    opening: Share
    right: Share
    right_after: Share
    right_by_kind: dict[str, Share]
    right_by_voice: dict[str, Share]
    turns_by_voice: dict[str, int]


def summarise(outcomes: Sequence[Outcome]) -> Figures:
    """Return the figures of outcomes.

    Args:
        outcomes: Of any number of dialogues.
    """
    by_moment: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_moment.setdefault(outcome.moment.kind, []).append(outcome)
    asks, pauses = by_moment.get("ask", []), by_moment.get("pause", [])
    barge_ins = by_moment.get("barge_in", [])
    turns = asks + pauses
    return Figures(
        dialogues=len({outcome.dialogue for outcome in outcomes}),
        takeover=share(o.taken for o in turns),
        delays_secs=[o.delay_secs for o in turns if o.taken and o.delay_secs is not None],
        early=share(o.early for o in asks),
        pause_takeover=share(o.paused_taken for o in pauses),
        pause_sound=share(o.in_pause for o in pauses),
        yields=share(o.yields for o in barge_ins),
        yield_secs=[o.yield_secs for o in barge_ins if o.yield_secs is not None],
        answers_after=share(o.taken for o in barge_ins),
        goes_on=share(o.goes_on for o in by_moment.get("backchannel", [])),
        starts_at_sounds=share(o.started for o in by_moment.get("sound", [])),
        goes_on_through_sounds=share(o.goes_on for o in by_moment.get("sound_over", [])),
        whole=share(o.whole for o in by_moment.get("story", [])),
        opening=share(o.taken for o in by_moment.get("opening", [])),
        right=share(o.right for o in turns),
        right_after=share(o.right for o in barge_ins),
        right_by_kind=_shares(turns + barge_ins, lambda o: o.moment.text_kind),
        right_by_voice=_shares(turns + barge_ins, lambda o: o.voice),
        turns_by_voice={
            voice: sum(o.voice == voice for o in turns + barge_ins)
            for voice in sorted({o.voice for o in outcomes})
        },
    )


def _shares(outcomes: list[Outcome], key: Callable[[Outcome], str]) -> dict[str, Share]:
    return {
        name: share(o.right for o in outcomes if key(o) == name)
        for name in sorted({key(o) for o in outcomes if o.right is not None})
    }
