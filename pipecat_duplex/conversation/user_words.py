"""Where the user's words belong: a transcript comes late, the voice that it describes does not.

A recogniser tells what was said, often seconds later, and seldom when. Stretches of the user's
voice are known by then, with what became of each: a turn, or a backchannel that the agent talked
through. Each transcript is given to the stretch that it describes.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

MAX_TRANSCRIPT_SECS = 6.0
"""A transcript describes no voice that ended longer ago."""

MAX_BACKCHANNEL_WORDS = 4
"""More words than these are a message, even if the agent talked through them."""

SHORT_WORDS = 3
SHORT_SECS = 1.0
"""Over the agent's last words, so few words in so short a time are a backchannel."""

NEAR_SECS = 0.4
"""How far a word's time and the detector's may be apart."""

KEPT = 32

_SECS_A_WORD = 0.3
_MAX_WORDS_A_SEC = 6.0
_FIT_SECS = 0.5


class Fate(Enum):
    """What became of a stretch of the user's voice.

    Attributes:
        OPEN: Over the agent; not decided yet.
        SHORT: Over the agent's last words, and short; its words decide.
        TURN: The user had the floor.
        BACKCHANNEL: The agent talked through it.
    """

    OPEN = auto()
    SHORT = auto()
    TURN = auto()
    BACKCHANNEL = auto()


@dataclass(eq=False)
class Stretch:
    """A stretch of the user's voice, in seconds of the user's audio.

    Parameters:
        start_secs: When it began.
        fate: What became of it.
        end_secs: When it ended; None while it goes on.
        texts: What was said in it, as far as it is known.
    """

    start_secs: float
    fate: Fate
    end_secs: float | None = None
    texts: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class AgentUtterance:
    """An utterance of the agent that has ended.

    Parameters:
        start_secs: When it began.
        text: What was heard of it.
    """

    start_secs: float
    text: str


class UserWords:
    """Gives each transcript to the stretch of voice that it describes."""

    def __init__(self) -> None:
        """Initialize before anybody spoke."""
        self._now_secs = 0.0
        self._stretches: deque[Stretch] = deque(maxlen=KEPT)
        self._utterances: deque[AgentUtterance] = deque(maxlen=KEPT)
        self._agent_start_secs = 0.0
        self._agent_speaks = False
        self._cut_in_secs = -1.0
        self._unfinished: AgentUtterance | None = None

    @property
    def now_secs(self) -> float:
        """The time, in seconds of the user's audio."""
        return self._now_secs

    def advance(self, now_secs: float) -> None:
        """Take note of the time, in seconds of the user's audio."""
        self._now_secs = now_secs

    def user_started(self, time_secs: float, *, over_agent: bool) -> None:
        """The user began to speak."""
        self._stretches.append(Stretch(time_secs, Fate.OPEN if over_agent else Fate.TURN))

    def user_stopped(self, time_secs: float) -> None:
        """The user fell silent."""
        if self._stretches and self._stretches[-1].end_secs is None:
            self._stretches[-1].end_secs = max(time_secs, self._stretches[-1].start_secs)

    def user_has_floor(self) -> None:
        """What the user said over the agent, and goes on to say, is a turn."""
        self._decide(Fate.TURN)

    def talked_through(self) -> None:
        """The agent talked through what the user said."""
        self._decide(Fate.BACKCHANNEL)

    def agent_started(self, time_secs: float) -> None:
        """The agent began an utterance."""
        self._agent_start_secs = time_secs
        self._agent_speaks = True
        self._unfinished = None

    def agent_stopped(self, text: str, *, goes_on: bool = False) -> None:
        """The agent's utterance is over.

        Args:
            text: What was heard of it.
            goes_on: Whether it is the beginning of a message that is not in the context yet.
        """
        for stretch in self._stretches:
            if stretch.fate is Fate.OPEN:
                is_short = (
                    stretch.end_secs is not None
                    and stretch.end_secs - stretch.start_secs <= SHORT_SECS
                )
                stretch.fate = Fate.SHORT if is_short else Fate.TURN
        self._agent_speaks = False
        if text.strip():
            self._unfinished = AgentUtterance(self._agent_start_secs, text.strip())
        if not goes_on:
            self.message_ended()

    def message_ended(self) -> None:
        """What the agent has said is in the context now."""
        if self._unfinished is not None:
            self._utterances.append(self._unfinished)
            self._unfinished = None

    def awaits_transcript(self, within_secs: float) -> bool:
        """Whether a turn's voice ended less than this long ago, and its words are not known."""
        return bool(self._awaited(within_secs))

    def awaited_secs(self, within_secs: float, since_secs: float) -> float:
        """Return for how long the user spoke since a time, of what is not known in words yet."""
        awaited = self._awaited(within_secs)
        return sum(self._secs(each) for each in awaited if each.start_secs > since_secs)

    def _awaited(self, within_secs: float) -> list[Stretch]:
        return [
            stretch
            for stretch in self._stretches
            if stretch.fate is not Fate.BACKCHANNEL
            and stretch.end_secs is not None
            and not stretch.texts
            and self._now_secs - stretch.end_secs < within_secs
        ]

    def place(self, text: str, *, whole: bool) -> Stretch:
        """Return the stretch that a transcript describes, and note the text there.

        Args:
            text: What was said.
            whole: Whether it describes a stretch that has ended, from its start to its end.
        """
        words = len(text.split())
        stretch = self._best(words, whole=whole)
        if stretch is None:
            # A voice that the detector never heard.
            stretch = Stretch(self._now_secs, Fate.TURN, self._now_secs)
            self._stretches.append(stretch)
        return self._note(stretch, text)

    def place_at(self, text: str, start_secs: float, end_secs: float) -> Stretch:
        """Return the stretch in which something was said at a known time, and note it there.

        Args:
            text: What was said.
            start_secs: When it began.
            end_secs: When it ended.
        """
        stretch = self.stretch_at((start_secs + end_secs) / 2)
        if stretch is None:
            # A voice that the detector never heard.
            stretch = Stretch(start_secs, Fate.TURN, end_secs)
            in_order = sorted([*self._stretches, stretch], key=lambda each: each.start_secs)
            self._stretches = deque(in_order, maxlen=KEPT)
        return self._note(stretch, text)

    def stretch_at(self, time_secs: float) -> Stretch | None:
        """Return the stretch of voice at a time, or the nearest one within :data:`NEAR_SECS`."""

        def distance_secs(stretch: Stretch) -> float:
            end_secs = self._now_secs if stretch.end_secs is None else stretch.end_secs
            return max(stretch.start_secs - time_secs, time_secs - end_secs, 0.0)

        nearest = min(self._stretches, key=distance_secs, default=None)
        if nearest is None or distance_secs(nearest) > NEAR_SECS:
            return None
        return nearest

    def _note(self, stretch: Stretch, text: str) -> Stretch:
        words = len(text.split())
        stretch.texts.append(text)
        if stretch.fate is Fate.SHORT:
            stretch.fate = Fate.BACKCHANNEL if words <= SHORT_WORDS else Fate.TURN
        elif stretch.fate is Fate.BACKCHANNEL and words > MAX_BACKCHANNEL_WORDS:
            stretch.fate = Fate.TURN
        return stretch

    def settle(self, stretch: Stretch) -> Fate:
        """Return what became of a stretch, now that it may be decided."""
        if stretch.fate is Fate.SHORT and stretch.texts:
            words = sum(len(text.split()) for text in stretch.texts)
            stretch.fate = Fate.BACKCHANNEL if words <= SHORT_WORDS else Fate.TURN
        return stretch.fate

    def answers_to(self, stretch: Stretch) -> list[str]:
        """Return what the agent has said since this stretch, oldest first."""
        ended_secs = stretch.start_secs if stretch.end_secs is None else stretch.end_secs
        return [each.text for each in self._utterances if each.start_secs >= ended_secs - 0.2]

    def agent_goes_on(self, stretch: Stretch) -> bool:
        """Whether the agent still says what it had begun to say before this stretch."""
        return self._agent_speaks and self._agent_start_secs < stretch.start_secs

    def cut_in(self) -> None:
        """Somebody cut in without a voice: with keys, or in writing. Their words come next."""
        self._cut_in_secs = self._now_secs

    def _decide(self, fate: Fate) -> None:
        for stretch in self._stretches:
            if stretch.fate is Fate.OPEN:
                stretch.fate = fate

    def _best(self, words: int, *, whole: bool) -> Stretch | None:
        waiting = [
            stretch
            for stretch in self._stretches
            if not stretch.texts
            and not (whole and stretch.end_secs is None)
            and self._now_secs - (stretch.end_secs or self._now_secs) <= MAX_TRANSCRIPT_SECS
            and words <= 2 + _MAX_WORDS_A_SEC * self._secs(stretch)
        ]
        # Transcripts come in order.
        last_secs = max((each.start_secs for each in self._stretches if each.texts), default=-1.0)
        waiting = [each for each in waiting if each.start_secs > last_secs] or waiting
        if waiting:
            misfits = [abs(self._secs(each) - _SECS_A_WORD * words) for each in waiting]
            # But a voice may have none.
            first_good = min(misfits) + _FIT_SECS
            return next(
                s for s, misfit in zip(waiting, misfits, strict=True) if misfit <= first_good
            )
        recent = [
            stretch
            for stretch in self._stretches
            if self._now_secs - (stretch.end_secs or self._now_secs) <= MAX_TRANSCRIPT_SECS
            and (stretch.end_secs is None or stretch.end_secs > self._cut_in_secs)
        ]
        return recent[-1] if recent else None

    def _secs(self, stretch: Stretch) -> float:
        return (stretch.end_secs or self._now_secs) - stretch.start_secs
