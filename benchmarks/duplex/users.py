"""Scripted users: what each of them does is drawn beforehand, when depends on the agent."""

import itertools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.duplex import speech
from benchmarks.duplex.dialogue import QUIET_SECS, Dialogue, Ear, Moment, padded, steps
from benchmarks.duplex.speech import Line, Speaker
from pipecat_duplex.session import STEP_SAMPLES, STEP_SECS
from training import world

ANSWER_SECS = 3.0
"""How long a user waits for an answer."""

OPENING_SECS = 3.5
PAUSE_SECS = (0.4, 1.2)
TURNS = ("ask",) * 4 + ("pause",) * 3 + ("barge_in",) * 3 + ("backchannel",) * 2
LONG_WORDS = 10
"""Words of an answer that is long enough to be talked over."""

_MAX_ANSWER_SECS = 14.0
MAX_SECS = 240.0
"""A user begins nothing new after this time, unless a plan says otherwise."""

_BACKGROUND_SECS = 60.0
_DECK = {"sum": 5, "count": 1, "day": 2, "place": 3, "outside": 2}  # other kinds: 1

Frames = Generator[np.ndarray, None, None]


@dataclass(frozen=True)
class Turn:
    """What a user does next.

    Attributes:
        kind: ``ask``, ``pause``, ``barge_in``, ``backchannel``, ``story``, ``sound``,
            ``sound_over`` or ``overlap``.
        line: What they say first.
        over: What they say over the answer.
        wait_secs: Silence before.
        into_secs: How far into the answer they speak.
    """

    kind: str
    line: Line
    over: Line | None
    wait_secs: float
    into_secs: float


@dataclass(frozen=True)
class Echo:
    """How the agent's voice comes back to the user's microphone.

    Attributes:
        level_db: Beside what the loudspeaker is given.
        delay_secs: After the loudspeaker is given it.
    """

    level_db: float
    delay_secs: float


@dataclass(frozen=True)
class Plan:
    """A user's part of a dialogue.

    Attributes:
        voice: See ``training.speech.synthesise``.
        group: ``unseen`` or ``seen``, ``people``, ``sounds``, ``echo`` or ``overlap``.
        background: The microphone's noise, over and over.
        opens: Whether the user begins, or waits for the agent to.
        turns: What they do.
        echo: Whether and how the user's microphone hears the agent.
        max_secs: After this time the user begins nothing new.
        patience_secs: How long the user waits for an answer.
        quiet_secs: Silence after which the user takes the agent to have finished.
    """

    voice: str
    group: str
    background: np.ndarray
    opens: bool
    turns: tuple[Turn, ...]
    echo: Echo | None = None
    max_secs: float = MAX_SECS
    patience_secs: float = ANSWER_SECS
    quiet_secs: float = QUIET_SECS


def draw_plans(
    names: Sequence[str],
    group: str,
    dialogues: int,
    seed: int,
    *,
    cache: Path | None = None,
    turns: int | None = None,
    kinds: Sequence[str] = TURNS,
) -> Iterator[Plan]:
    """Draw dialogues, with each voice in as many of them as any other.

    Args:
        names: The voices.
        group: What they are called together.
        dialogues: How many.
        seed: The same again gives the same.
        cache: Folder that keeps what was synthesised.
        turns: Turns of each, if fewer are wanted.
        kinds: What they do in each, in any order.
    """
    decks = Decks(np.random.default_rng([seed, len(group)]))
    for index in range(dialogues):
        rng = np.random.default_rng([seed, len(group), index])
        speaker = Speaker(names[index % len(names)], rng, cache)
        drawn = rng.permutation(kinds)[:turns]
        plan = tuple(draw_turn(str(kind), speaker, decks, rng) for kind in drawn)
        background = speaker.background(_BACKGROUND_SECS)
        # Silence at the start in every other round over the voices, so that each gets its share.
        opens = (index // len(names) + index % len(names)) % 2 == 1
        yield Plan(speaker.voice, group, background, opens, plan)


def draw_turn(kind: str, speaker: Speaker, decks: "Decks", rng: np.random.Generator) -> Turn:
    """Draw what a user does next.

    Args:
        kind: See :class:`Turn`; no sound.
        speaker: Who speaks.
        decks: What can be said.
        rng: Draws the waits.
    """
    wait_secs, into_secs = rng.uniform(0.4, 1.5), rng.uniform(0.5, 1.2)
    over = None
    if kind == "ask":
        line = speaker.say(next(decks.questions))
    elif kind == "pause":
        line = speaker.say(next(decks.pausable), pause_secs=rng.uniform(*PAUSE_SECS))
    elif kind == "story":
        line = speaker.say(next(decks.long))
    else:
        line = speaker.say(next(decks.long))
        over = speaker.say(next(decks.over if kind == "barge_in" else decks.hums))
    return Turn(kind, line, over, wait_secs, into_secs)


class Decks:
    """Questions in random order, each kind as often as it should come."""

    def __init__(self, rng: np.random.Generator):
        """Shuffle.

        Args:
            rng: Shuffles.
        """
        by_kind = speech.exchanges()
        asked = {kind: items for kind, items in by_kind.items() if kind not in ("stop", "story")}
        self.questions = _deal(asked, rng)
        self.pausable = _deal(
            {
                kind: pausable
                for kind, items in asked.items()
                if (pausable := [item for item in items if "|" in item.question])
            },
            rng,
        )
        every = [item for items in by_kind.values() for item in items]
        long = [item for item in every if len(item.answer.split()) >= LONG_WORDS]
        self.long = _deal(
            {kind: [item for item in long if item.kind == kind] for kind in ("story", "count")}, rng
        )
        questions, stops = _deal(asked, rng), _deal({"": by_kind["stop"]}, rng)
        self.over = itertools.chain.from_iterable(zip(questions, stops, questions, strict=False))
        self.hums = _deal({"": speech.backchannels()}, rng)


def _deal(by_kind: dict[str, list[world.Exchange]], rng: np.random.Generator):
    """Deal kinds from a shuffled deck, and the texts of each kind in turn."""
    texts = {
        kind: itertools.cycle([items[i] for i in rng.permutation(len(items))])
        for kind, items in by_kind.items()
    }
    deck = [kind for kind in by_kind for _ in range(_DECK.get(kind, 1))]
    while True:
        for index in rng.permutation(len(deck)):
            yield next(texts[deck[index]])


class User:
    """One user in a conversation: gives the microphone's steps, and listens.

    Each step is decided when the one before has been spoken, by what was heard until then.
    """

    def __init__(self, plan: Plan):
        """Initialize before the first step.

        Args:
            plan: What the user does.
        """
        self.plan = plan
        self.ear = Ear(plan.quiet_secs)
        self.moments: list[Moment] = []
        self._spoken: list[np.ndarray] = []

    @property
    def now_secs(self) -> float:
        """When the next step begins."""
        return len(self._spoken) * STEP_SECS

    def frames(self) -> Frames:
        """The steps of the whole conversation, float32, shape ``(1920,)`` each."""
        if self.plan.opens:
            yield from self._silent(0.8)
        else:
            yield from self._opening()
        for turn in self.plan.turns:
            if self.now_secs > self.plan.max_secs:
                return
            yield from self._silent(turn.wait_secs)
            yield from getattr(self, f"_{turn.kind}")(turn)
        yield from self._silent(0.5)

    def dialogue(self) -> Dialogue:
        """Return what came of it."""
        user_pcm = np.concatenate(self._spoken) if self._spoken else np.zeros(0, np.float32)
        return Dialogue(
            voice=self.plan.voice,
            group=self.plan.group,
            user_pcm=user_pcm,
            agent_pcm=self.ear.finish(self.now_secs),
            words=self.ear.words,
            moments=self.moments,
        )

    def _opening(self) -> Frames:
        """Say nothing and let the agent begin."""
        yield from self._silent(OPENING_SECS)
        self.moments.append(Moment("opening", "", "", world.WELCOME, 0.0, 0.0))
        yield from self._silent_until_quiet()
        self.moments[-1].until_secs = self.now_secs

    def _ask(self, turn: Turn) -> Frames:
        moment = yield from self._speak(turn.kind, turn.line)
        yield from self._listen(moment)

    _pause = _ask

    def _story(self, turn: Turn) -> Frames:
        """Ask for a long answer, and listen to all of it."""
        moment = yield from self._speak("story", turn.line)
        yield from self._listen(moment)

    def _sound(self, turn: Turn) -> Frames:
        """Nobody speaks, and something is heard."""
        yield from self._silent_until_quiet()
        moment = yield from self._speak("sound", turn.line)
        yield from self._silent(self.plan.patience_secs)
        moment.until_secs = self.now_secs
        yield from self._silent_until_quiet()

    def _barge_in(self, turn: Turn) -> Frames:
        """Talk over a long answer, then listen to what follows."""
        over = yield from self._long_answer(turn)
        moment = yield from self._speak("barge_in" if over else "ask", turn.over)
        moment.over = over
        yield from self._listen(moment)

    def _backchannel(self, turn: Turn) -> Frames:
        """Hum during a long answer, or let something else be heard."""
        over = yield from self._long_answer(turn)
        moment = yield from self._speak(turn.kind, turn.over)
        if over is None:
            self.moments.remove(moment)
        moment.over = over
        yield from self._silent(1.5)
        moment.until_secs = self.now_secs
        yield from self._silent_until_quiet()

    _sound_over = _backchannel

    def _overlap(self, turn: Turn) -> Frames:
        """Let something be heard over a long answer, then listen to what follows."""
        over = yield from self._long_answer(turn)
        moment = yield from self._speak("overlap", turn.over)
        moment.over = over
        yield from self._listen(moment)

    def _long_answer(self, turn: Turn) -> Generator[np.ndarray, None, tuple[float, str] | None]:
        """Ask for a long answer, and let it begin.

        Returns:
            When the question ended and the answer that is owed; ``None`` if nobody speaks.
        """
        moment = yield from self._speak("ask", turn.line)
        yield from self._wait_for_answer(moment.end_secs)
        yield from self._silent(turn.into_secs)
        moment.until_secs = self.now_secs
        owed, moment.owed = moment.owed, ""  # cut short, the answer is not judged
        return (moment.end_secs, owed) if self.ear.is_heard(self.now_secs) else None

    def _listen(self, moment: Moment) -> Frames:
        """Listen to the whole answer."""
        yield from self._wait_for_answer(moment.end_secs)
        if self.ear.heard_since(moment.end_secs):
            yield from self._silent(0.4)
            yield from self._silent_until_quiet()
        moment.until_secs = self.now_secs

    def _wait_for_answer(self, end_secs: float) -> Frames:
        while self.now_secs < end_secs + self.plan.patience_secs and not self._answers_since(
            end_secs
        ):
            yield self._frame()

    def _answers_since(self, end_secs: float) -> bool:
        # An answer that was on its way already would not be one.
        return self.now_secs > end_secs + 0.4 and self.ear.heard_since(end_secs + 0.2)

    def _speak(self, kind: str, line: Line | None) -> Generator[np.ndarray, None, Moment]:
        assert line is not None
        begin_secs = self.now_secs
        for start in range(0, len(line.pcm), STEP_SAMPLES):
            yield self._frame(line.pcm[start : start + STEP_SAMPLES])
        pause = line.pause_secs
        moment = Moment(
            kind,
            line.text,
            line.kind,
            line.answer,
            begin_secs + line.start_secs,
            begin_secs + line.end_secs,
            (begin_secs + pause[0], begin_secs + pause[1]) if pause else None,
        )
        self.moments.append(moment)
        return moment

    def _silent(self, secs: float) -> Frames:
        for _ in range(steps(secs)):
            yield self._frame()

    def _silent_until_quiet(self) -> Frames:
        for _ in range(steps(_MAX_ANSWER_SECS)):
            yield self._frame()
            if not self.ear.is_heard(self.now_secs):
                return

    def _frame(self, pcm: np.ndarray | None = None) -> np.ndarray:
        background = self.plan.background
        start = len(self._spoken) * STEP_SAMPLES % (len(background) - STEP_SAMPLES)
        frame = background[start : start + STEP_SAMPLES].copy()
        if pcm is not None:
            frame += padded(pcm)
        if echo := self.plan.echo:
            played = self.ear.played(self.now_secs - echo.delay_secs, STEP_SAMPLES)
            frame += 10 ** (echo.level_db / 20) * played
        frame = np.clip(frame, -1, 1)
        self._spoken.append(frame)
        return frame
