"""The user's audio on its way to the model: cut into steps, placed in time, and bounded."""

from dataclasses import dataclass

import numpy as np

from pipecat_duplex.conversation.clock import ClockSettings, InputClock
from pipecat_duplex.conversation.intake import Intake
from pipecat_duplex.conversation.line_floor import LineFloor
from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.session import STEP_SAMPLES

MAX_STEPS_IN_FLIGHT = 25
"""Steps that the model has not answered before audio is dropped: two seconds.

A machine that is too slow for the model must not build up a delay without end.
"""


@dataclass(frozen=True, slots=True)
class UserStep:
    """A step of the user's audio that the model hears.

    Parameters:
        pcm: Float32, shape ``(STEP_SAMPLES,)``, 24 kHz.
        place: Its place on the time line, counted from 0. Dropped audio keeps its place.
        due_secs: When its last sample can have been spoken.
        level_db: Its level, dBFS.
    """

    pcm: np.ndarray
    place: int
    due_secs: float
    level_db: float


class UserAudio:
    """Turns chunks of audio, and the time in which none come, into the steps the model hears."""

    def __init__(self, clock: ClockSettings | None = None):
        """Initialize before the first audio.

        Args:
            clock: How much lateness is borne.
        """
        self._intake = Intake()
        self._clock = InputClock(clock)
        self._floor = LineFloor()
        self._in_flight = 0
        self._overloaded_steps = 0

    @property
    def filled_steps(self) -> int:
        """Steps of silence that took the place of late audio."""
        return self._clock.filled_steps

    @property
    def dropped_steps(self) -> int:
        """Steps of audio that the model does not hear, for any reason."""
        return self._clock.dropped_steps + self._overloaded_steps

    @property
    def overloaded(self) -> bool:
        """Whether audio was dropped because the model is slower than real time."""
        return self._overloaded_steps > 0

    def start(self, now_secs: float) -> None:
        """Begin the time line, if it has not begun; from now on silence is filled in."""
        self._clock.start(now_secs)

    def secs_to_fill(self, now_secs: float) -> float | None:
        """Return the time until silence is needed, or ``None`` if it never is."""
        return self._clock.secs_to_fill(now_secs)

    def take(self, pcm: np.ndarray, rate_hz: int, now_secs: float) -> list[UserStep]:
        """Take a chunk of audio.

        Args:
            pcm: Float32 mono, any length.
            rate_hz: Its sample rate.
            now_secs: The time.

        Returns:
            The steps that are now whole and that the model is to hear.

        Raises:
            InvalidAudio: The rate is not supported; nothing is lost.
        """
        steps: list[UserStep] = []
        for step_pcm in self._intake.push(pcm, rate_hz):
            step_level_db = level_db(step_pcm)
            if self._clock.admit(now_secs, quiet=self._floor.is_quiet(step_level_db)):
                steps += self._send(step_pcm, step_level_db)
        return steps

    def fill(self, now_secs: float) -> list[UserStep]:
        """Return the steps of silence that are needed now.

        The first one holds the audio of a step that has come in part.

        Args:
            now_secs: The time.
        """
        steps: list[UserStep] = []
        while self._clock.fill(now_secs):
            pcm = self._intake.flush()
            if pcm is None:
                pcm = np.zeros(STEP_SAMPLES, np.float32)
            steps += self._send(pcm, level_db(pcm))
        return steps

    def note_answer(self) -> None:
        """Note that the model has answered a step."""
        self._in_flight -= 1

    def _send(self, pcm: np.ndarray, step_level_db: float) -> list[UserStep]:
        if self._in_flight >= MAX_STEPS_IN_FLIGHT:
            self._overloaded_steps += 1
            return []
        self._in_flight += 1
        return [UserStep(pcm, self._clock.place, self._clock.due_secs, step_level_db)]
