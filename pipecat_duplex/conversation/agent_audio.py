"""The agent's audio on its way to the ear: resampled, paced, late steps dropped."""

from dataclasses import dataclass

import numpy as np

from pipecat_duplex.conversation.clock import QUIET_LEVEL_DB, ClockSettings, OutputClock
from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.conversation.resampler import Resampler
from pipecat_duplex.session import SAMPLE_RATE_HZ

FADE_IN_SAMPLES = 120
"""A step that follows a dropped one fades in over so many samples, so that the cut is no click."""


@dataclass(frozen=True, slots=True)
class AgentSound:
    """The sound of one of the agent's steps.

    Parameters:
        place: Its place on the time line of the user's audio, counted from 0.
        pcm: Float32, 80 ms at the output's rate.
        level_db: The level of the model's audio, dBFS.
    """

    place: int
    pcm: np.ndarray
    level_db: float


class AgentAudio:
    """Resamples the agent's steps and decides which of them are heard."""

    def __init__(self, rate_hz: int, clock: ClockSettings | None = None):
        """Initialize before the first step.

        Args:
            rate_hz: Sample rate of the output.
            clock: How much lateness is borne.
        """
        # It runs on through silence, so that speech begins on its own sample.
        self._resampler = Resampler(SAMPLE_RATE_HZ, rate_hz)
        self._clock = OutputClock(clock)
        self._fades_in = False
        self._unheard_places: set[int] = set()

    @property
    def rate_hz(self) -> int:
        """Sample rate of the output."""
        return self._resampler.out_rate_hz

    @property
    def lag_secs(self) -> float:
        """Delay of the agent's audio beyond its smallest delay, at the last step."""
        return self._clock.lag_secs

    @property
    def dropped_steps(self) -> int:
        """Steps of speech that came too late to be heard."""
        return self._clock.dropped_steps

    def take(self, place: int, pcm: np.ndarray, now_secs: float, due_secs: float) -> AgentSound:
        """Take the audio of a step, whether it is to be played or not.

        Args:
            place: The step's place on the time line.
            pcm: Float32, shape ``(STEP_SAMPLES,)``, 24 kHz.
            now_secs: The time.
            due_secs: When the step of user audio that it answers was due.
        """
        self._clock.observe(now_secs, due_secs)
        return AgentSound(place, self._resampler.push(pcm), level_db(pcm))

    def play(self, sound: AgentSound) -> np.ndarray | None:
        """Return what is heard of the step taken last, or ``None`` if it is left out.

        Args:
            sound: What :meth:`take` returned.
        """
        if not self._clock.admit(quiet=sound.level_db < QUIET_LEVEL_DB):
            self._fades_in = True
            self._unheard_places.add(sound.place)
            return None
        if not self._fades_in:
            return sound.pcm
        self._fades_in = False
        pcm = sound.pcm.copy()
        samples = min(FADE_IN_SAMPLES, len(pcm))
        pcm[:samples] *= np.linspace(0, 1, samples, dtype=np.float32)
        return pcm

    def was_left_out(self, place: int) -> bool:
        """Whether this step of the present utterance was left out."""
        return place in self._unheard_places

    def end_utterance(self) -> None:
        """Note that the agent fell silent; its words have all been asked about."""
        self._unheard_places.clear()

    def flush(self) -> None:
        """Note that everything pushed and not yet played was thrown away."""
        self._clock.flush()
