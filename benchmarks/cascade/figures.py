"""The definitions, by sound alone: they are the same for an agent whose words nobody can time.

The agent's sound is what is above -40 dBFS; half a second below that ends an utterance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.cascade.scenes import COUGHS, PATIENCE_SECS
from benchmarks.cascade.stage import ASKED, DECIDED, WROTE, Call, Note
from benchmarks.duplex.dialogue import Moment
from benchmarks.duplex.figures import Share, Utterance, share, utterances

GAP_SECS = 0.5
GOES_ON_SECS = 1.0
YIELD_SECS = (0.6, 1.0)
_DECIDED_EARLY_SECS = 0.3


@dataclass(frozen=True)
class Delay:
    """From the user's last word to the agent's first sound, in seconds, and its parts.

    Attributes:
        whole: All of it.
        turn: Until the turn detector, or the model, takes the turn to be over.
        words: From there until the LLM has the user's words.
        llm: Until its first token.
        speech: Until the first sound.
    """

    whole: float
    turn: float | None = None
    words: float | None = None
    llm: float | None = None
    speech: float | None = None


@dataclass
class Figures:
    """All dialogues with one agent.

    Attributes:
        taken: Each question that was asked while the agent was silent: whether it is answered
            within 5 s.
        delays: Of those that were.
        early: Each of these questions without a pause: whether the agent spoke before its end.
        pause_early: Each with a pause: whether the agent spoke between the pause and the end.
        pause_asked: Each with a pause: whether the LLM was asked before the end.
        yield_secs: From the user's first sound to the agent's last; infinite where it spoke on.
        answered_over: Each barge-in that was yielded to: whether it is answered.
        stopped_by: Each time something was heard over a long answer: whether the agent stopped,
            by ``backchannel``, ``cough`` and ``noise``.
        started_by: Each time something was heard while nobody spoke: whether the agent spoke,
            by ``cough`` and ``noise``.
    """

    taken: list[bool] = field(default_factory=list)
    delays: list[Delay] = field(default_factory=list)
    early: list[bool] = field(default_factory=list)
    pause_early: list[bool] = field(default_factory=list)
    pause_asked: list[bool] = field(default_factory=list)
    yield_secs: list[float] = field(default_factory=list)
    answered_over: list[bool] = field(default_factory=list)
    stopped_by: dict[str, list[bool]] = field(default_factory=dict)
    started_by: dict[str, list[bool]] = field(default_factory=dict)

    def yields(self, within_secs: float) -> Share:
        """Return how many barge-ins were yielded to in time."""
        return share(secs <= within_secs for secs in self.yield_secs)


def measure(calls: Sequence[Call]) -> Figures:
    """Measure all dialogues with one agent.

    Args:
        calls: That are over.
    """
    figures = Figures()
    for call in calls:
        measured = _Measure(call, figures)
        for moment in call.dialogue.moments:
            getattr(measured, moment.kind)(moment)
    return figures


class _Measure:
    """The definitions, on one dialogue."""

    def __init__(self, call: Call, figures: Figures):
        self._notes = call.notes
        self._spoken = utterances(call.dialogue.agent_pcm, gap_secs=GAP_SECS)
        self._figures = figures

    def ask(self, moment: Moment) -> None:
        """Takes the turn after a sentence, and not before its end."""
        self._take(moment)
        self._figures.early.append(self._begins(moment.start_secs, moment.end_secs))

    def pause(self, moment: Moment) -> None:
        """Takes the turn after the sentence, and not in its pause or the rest of it."""
        self._take(moment)
        assert moment.pause_secs is not None
        begin_secs, end_secs = moment.pause_secs[0], moment.end_secs
        self._figures.pause_early.append(self._begins(begin_secs, end_secs))
        if any(note.what == ASKED for note in self._notes):
            self._figures.pause_asked.append(self._noted(ASKED, begin_secs, end_secs) is not None)

    def barge_in(self, moment: Moment) -> None:
        """Yields to a question, and answers it."""
        talking = self._talking(moment.start_secs)
        if talking is None:
            return
        yielded = talking.end_secs < moment.until_secs - GAP_SECS
        secs = talking.end_secs - moment.start_secs if yielded else math.inf
        self._figures.yield_secs.append(secs)
        if yielded:
            self._figures.answered_over.append(self._answer(moment) is not None)

    def backchannel(self, moment: Moment) -> None:
        """Goes on through a hum."""
        self._stop("backchannel", moment)

    def sound_over(self, moment: Moment) -> None:
        """Goes on through a sound that is no speech."""
        self._stop(_sort(moment), moment)

    def sound(self, moment: Moment) -> None:
        """Says nothing to a sound that is no speech."""
        started = self._begins(moment.start_secs, moment.until_secs)
        self._figures.started_by.setdefault(_sort(moment), []).append(started)

    def _stop(self, sort: str, moment: Moment) -> None:
        talking = self._talking(moment.start_secs)
        if moment.over is not None and talking is not None:
            stopped = talking.end_secs < moment.end_secs + GOES_ON_SECS
            self._figures.stopped_by.setdefault(sort, []).append(stopped)

    def _take(self, moment: Moment) -> None:
        answer = self._answer(moment)
        early = self._begins(moment.start_secs, moment.end_secs)
        self._figures.taken.append(answer is not None or early)
        if answer is not None and not early:
            self._figures.delays.append(self._delay(moment, answer))

    def _delay(self, moment: Moment, answer: Utterance) -> Delay:
        end_secs, sound_secs = moment.end_secs, answer.start_secs
        decided_after = end_secs - _DECIDED_EARLY_SECS
        asked = self._noted(ASKED, decided_after, sound_secs, last=True)
        until_secs = sound_secs if asked is None else asked.at_secs
        decided = self._noted(DECIDED, decided_after, until_secs + 1e-3, last=True)
        whole = sound_secs - end_secs
        if asked is None:  # its own words
            turn = None if decided is None else decided.at_secs - end_secs
            return Delay(whole, turn, speech=None if turn is None else whole - turn)
        # Silence of some seconds ends a turn without a decision.
        turn = (decided or asked).at_secs - end_secs
        wrote = self._noted(WROTE, asked.at_secs, sound_secs)
        if wrote is None:
            return Delay(whole, turn)
        words, llm = asked.at_secs - end_secs - turn, wrote.at_secs - asked.at_secs
        return Delay(whole, turn, words, llm, sound_secs - wrote.at_secs)

    def _answer(self, moment: Moment) -> Utterance | None:
        latest = min(moment.end_secs + PATIENCE_SECS, moment.until_secs)
        inside = (i for i in self._spoken if moment.end_secs <= i.start_secs < latest)
        return next(inside, None)

    def _talking(self, at_secs: float) -> Utterance | None:
        return next((i for i in self._spoken if i.start_secs < at_secs < i.end_secs), None)

    def _begins(self, from_secs: float, until_secs: float) -> bool:
        return any(from_secs <= item.start_secs < until_secs for item in self._spoken)

    def _noted(
        self, what: str, from_secs: float, until_secs: float, *, last: bool = False
    ) -> Note | None:
        found = [n for n in self._notes if n.what == what and from_secs <= n.at_secs < until_secs]
        return found[-1 if last else 0] if found else None


def _sort(moment: Moment) -> str:
    return "cough" if moment.text in COUGHS else "noise"
