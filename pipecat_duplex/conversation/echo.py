"""Keeping the agent's own voice from what the model hears of the user.

A loudspeaker, a room or a telephone line gives the agent's voice back, tens to hundreds of
milliseconds later and weaker. What was played is known here, so it can be found in the user's
audio. The loudest part of the way, a few milliseconds long, is learned, and its echo subtracted.
What is left (a room's reverberation, a loudspeaker's distortion) is turned down where it is no
louder than such a rest; where the user speaks over the echo, they are heard. Nothing is changed
before an echo was found: the audio of a caller without one stays as it is, bit by bit.

This is less than what a telephone's or a browser's echo canceller does (ITU-T G.168, WebRTC), which
most callers have. It is for those who have none.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES

MAX_DELAY_STEPS = 12
"""Steps back in which the agent's voice is looked for: 0.96 s."""

AUDIBLE = 10 ** (-65 / 20)
"""Root mean square below which nothing is looked for: a weaker echo disturbs no model."""

DECIMATION = 4
"""The search works at 6 kHz."""

FORGETTING = 0.8
"""Of what the search sums up, each step: it looks at some five steps."""

FOUND, FOUND_AGAIN = 0.5, 0.3
"""Correlation with what was played from which on there is an echo: the first, and later ones.

Of 200 recordings of people who spoke while the agent did, 99.9 % of the steps stayed below 0.27,
the highest was 0.43. Echoes have 0.35 in a hall, and 0.9 close to the loudspeaker.
"""

BLOCK = 240
"""Samples that are turned down together: 10 ms."""

LEAST_BLOCKS = 8.0
"""Blocks that are about equally loud, from which on FOUND is enough (0.08 s)."""

FOUND_IN_SHORT = 0.93
"""What a first echo needs where less was heard.

Somewhere in a second of speech there is something like any few milliseconds: like the first of a
voice on a line without noise (correlations up to 0.8 were seen), or like a knock.
"""

TAIL_DB_PER_SEC = 150.0
"""How fast a room falls silent: 60 dB in 0.4 s."""

NO_LOUDER_DB, LOUDER_DB = 5.0, 9.0
"""Beside the expected echo: up to here it is the echo alone, from here on the user speaks."""

ALONE = 0.8
"""Of the correlation that the echo alone has: a step below it has the user in it as well."""

FADING = 0.998
"""Of that correlation, each step with an echo: the way may change."""

TAPS, LEAD = 64, 12
"""Samples of the way that is learned (3 ms), and how many of them lie before the delay."""

RIDGE = 1e-4
"""Keeps the fit tame where what was played has no power."""

BEST = 1e-3
"""No fit is thought to leave less of an echo: -30 dB."""

FLATTERY = 4.0
"""Times as much is left by a first fit as it seems."""


@dataclass(frozen=True, slots=True)
class Echo:
    """What was played, in a step that was heard.

    Parameters:
        delay: Samples from the end of a step to where the end of its sound is heard.
        correlation: Of this step with what was played, 0 to 1.
    """

    delay: int
    correlation: float


class EchoFinder:
    """Finds the delay at which what was played is heard, from running sums over steps.

    What was played is kept as windows of two steps, each one step on from the one before, and their
    spectra: the lags of a step against one window are those of a step's length.
    """

    def __init__(self):
        """Initialize; nothing was played or heard yet."""
        self._step = STEP_SAMPLES // DECIMATION
        windows = MAX_DELAY_STEPS - 1
        self._new: deque[np.ndarray] = deque(maxlen=MAX_DELAY_STEPS)
        self._played = np.zeros((MAX_DELAY_STEPS, self._step), np.float32)
        self._spectra = np.zeros((windows, self._step + 1), np.complex64)
        self._energies = np.zeros(self._step * windows + 1, np.float32)
        self._product_spectra = np.zeros_like(self._spectra)
        self._energy_sums = np.zeros_like(self._energies)
        self._heard_energy = self._heard_square = 0.0
        self._found = False

    def play(self, pcm: np.ndarray) -> None:
        """Take a step of what is played, float32 ``(STEP_SAMPLES,)``."""
        self._new.append(pcm.copy())  # most are never looked at: nothing was heard meanwhile

    def hear(self, pcm: np.ndarray) -> Echo | None:
        """Take a step of what is heard, float32 ``(STEP_SAMPLES,)``; return the echo in it."""
        self._take_played()
        heard = _thin(pcm)
        self._product_spectra *= FORGETTING
        self._product_spectra += self._spectra * np.conj(np.fft.rfft(heard, 2 * self._step))
        self._energy_sums *= FORGETTING
        self._energy_sums += self._energies
        heard_energy = float(np.dot(heard, heard))
        self._heard_energy = FORGETTING * self._heard_energy + heard_energy
        lags = np.fft.irfft(self._product_spectra)[:, : self._step + 1]
        products = np.append(lags[:, :-1], lags[-1, -1])
        correlation = _correlation(products, self._energy_sums, self._heard_energy)
        best = int(np.argmax(correlation))
        if correlation[best] < self._needed(heard):
            return None
        self._found = True
        delay = (len(correlation) - 1 - best) * DECIMATION
        product = np.dot(self._played.ravel()[best : best + self._step], heard)
        return Echo(delay, float(_correlation(product, self._energies[best], heard_energy)))

    def _needed(self, heard: np.ndarray) -> float:
        """Return the correlation from which on there is an echo."""
        if self._found:
            return FOUND_AGAIN
        blocks = np.square(heard.reshape(-1, BLOCK // DECIMATION)).sum(1)
        self._heard_square = FORGETTING**2 * self._heard_square + float(np.dot(blocks, blocks))
        # By the blocks' energies and their squares: how many share what was heard.
        is_long = self._heard_energy**2 >= LEAST_BLOCKS * self._heard_square
        return FOUND if is_long else FOUND_IN_SHORT

    def _take_played(self) -> None:
        """Work out what depends on what was played alone."""
        if not self._new:
            return
        _push(self._played, _thin(np.stack(self._new)))
        steps = self._played[-len(self._new) - 1 :]
        self._new.clear()
        windows = np.concatenate([steps[:-1], steps[1:]], axis=1)
        _push(self._spectra, np.fft.rfft(windows))
        squares = np.square(steps, dtype=np.float64)
        # The energy of a step's length from each lag on: what comes in, less what goes out.
        first = squares[:-1].sum(1, keepdims=True)
        energies = first + np.cumsum(squares[1:] - squares[:-1], axis=1)
        _push(self._energies, energies.ravel())
        self._energies[0] = np.dot(self._played[0], self._played[0])


class EchoPath:
    """The way from the loudspeaker to the microphone, as far as it is a few milliseconds long.

    A least-squares fit over the last steps in which the user was silent.
    """

    def __init__(self):
        """Initialize; nothing is known."""
        self._products = np.zeros((TAPS, TAPS))
        self._answers = np.zeros(TAPS)
        self._weights = np.zeros(TAPS, np.float32)
        self._left_energy = self._played_energy = 0.0

    def follow(self, heard: np.ndarray, played: np.ndarray, *, afresh: bool) -> None:
        """Learn from a step that has nothing in it but the echo.

        Args:
            heard: The step, ``(STEP_SAMPLES,)``.
            played: What was played in each sample's reach, ``(STEP_SAMPLES, TAPS)``.
            afresh: Forget what was learned before.
        """
        kept = 0.0 if afresh else FORGETTING
        before = _power(heard - self.echo(played))
        self._products = kept * self._products + played.T @ played
        self._answers = kept * self._answers + played.T @ heard
        ridge = RIDGE * np.trace(self._products) / TAPS + 1e-9
        solved = np.linalg.solve(self._products + ridge * np.eye(TAPS), self._answers)
        self._weights = solved.astype(np.float32)
        after = _power(heard - self.echo(played))
        # A fit looks better than it is on what it was made from.
        left = before if kept else FLATTERY * after
        self._left_energy = kept * self._left_energy + max(left, BEST * _power(heard))
        self._played_energy = kept * self._played_energy + _power(played[:, LEAD])

    def echo(self, played: np.ndarray) -> np.ndarray:
        """Return the echo of what was played, ``(STEP_SAMPLES,)``."""
        return played @ self._weights

    @property
    def rest(self) -> float:
        """Power of what is left of an echo, beside what was played."""
        return self._left_energy / max(self._played_energy, 1e-12)


class EchoSuppressor:
    """Keeps the agent's voice out of the user's audio, step by step.

    While the agent has been silent for a second, or nothing is heard, it costs next to nothing.
    """

    def __init__(self):
        """Initialize for a conversation; nothing was said yet."""
        self._finder = EchoFinder()
        self._path = EchoPath()
        self._played = np.zeros(STEP_SAMPLES * (MAX_DELAY_STEPS + 2), np.float32)
        self._delay: int | None = None
        self._alone = 0.0
        self._expected = 0.0
        self._gain = 1.0

    @property
    def found(self) -> bool:
        """Whether there was an echo so far."""
        return self._delay is not None

    def play(self, pcm: np.ndarray) -> None:
        """Take a step of what the agent says, float32 ``(STEP_SAMPLES,)``."""
        _push(self._played, pcm)
        self._finder.play(pcm)

    def hear(self, pcm: np.ndarray) -> np.ndarray:
        """Return a step of the user's audio without the echo.

        Args:
            pcm: Float32, shape ``(STEP_SAMPLES,)``.

        Returns:
            The same array while there is no echo.
        """
        if _power(pcm) < AUDIBLE**2 or _power(self._played) < AUDIBLE**2:
            return pcm
        echo = self._finder.hear(pcm)
        self._alone *= FADING
        if echo is not None and echo.correlation < ALONE * self._alone:
            echo = None  # The user is in it as well: nothing is learned from it.
        afresh = echo is not None and self._note(echo)
        if self._delay is None:
            return pcm
        played = self._in_reach(self._delay)
        if echo is not None:
            self._path.follow(pcm, played, afresh=afresh)
        rest = pcm - self._path.echo(played)
        return self._turn_down(rest, self._expect(played[:, LEAD]))

    def _note(self, echo: Echo) -> bool:
        """Take note of an echo without the user; tell whether its way is to be learned afresh."""
        # What was learned from steps with the user in them counts no more.
        afresh = ALONE * echo.correlation >= self._alone
        self._alone = max(self._alone, echo.correlation)
        if self._delay is None or abs(echo.delay - self._delay) >= LEAD:
            self._delay, afresh = echo.delay, True
        return afresh

    def _in_reach(self, delay: int) -> np.ndarray:
        """Return what each sample of a step may be an echo of, newest first."""
        padded = np.concatenate([self._played, np.zeros(LEAD, np.float32)])
        end = len(self._played) - delay + LEAD
        stretch = padded[end - STEP_SAMPLES - TAPS + 1 : end]
        windows = np.lib.stride_tricks.sliding_window_view(stretch, TAPS)
        return np.ascontiguousarray(windows[:, ::-1])

    def _expect(self, source: np.ndarray) -> np.ndarray:
        """Return the power of what is left of the echo in each block of a step."""
        decay = 10 ** (-TAIL_DB_PER_SEC * BLOCK / SAMPLE_RATE_HZ / 10)
        expected = np.empty(STEP_SAMPLES // BLOCK)
        for block, power in enumerate(np.square(source.reshape(-1, BLOCK)).mean(1)):
            self._expected = max(self._path.rest * float(power), decay * self._expected)
            expected[block] = self._expected
        return expected

    def _turn_down(self, pcm: np.ndarray, expected: np.ndarray) -> np.ndarray:
        heard = np.square(pcm.reshape(-1, BLOCK)).mean(1)
        louder_db = 10 * np.log10((heard + 1e-12) / (expected + 1e-12))
        gains = np.clip((louder_db - NO_LOUDER_DB) / (LOUDER_DB - NO_LOUDER_DB), 0.0, 1.0)
        # From one block's gain to the next without a click.
        at = np.arange(len(gains) + 1) * BLOCK
        ramp = np.interp(np.arange(STEP_SAMPLES), at, [self._gain, *gains])
        self._gain = float(gains[-1])
        return (pcm * ramp).astype(np.float32)


def _correlation(products, energies, heard_energy):
    return np.abs(products) / np.sqrt(np.maximum(energies * heard_energy, 1e-12))


def _push(kept: np.ndarray, new: np.ndarray) -> None:
    """Forget the oldest of what is kept, and keep what is new."""
    kept[: -len(new)] = kept[len(new) :]
    kept[-len(new) :] = new


def _thin(pcm: np.ndarray) -> np.ndarray:
    """Keep a quarter of the samples, with the high tones raised: voices then differ more.

    Args:
        pcm: One or more steps, ``(..., STEP_SAMPLES)``.
    """
    mean = np.full(DECIMATION, 1 / DECIMATION, np.float32)
    thin = pcm.reshape(*pcm.shape[:-1], -1, DECIMATION) @ mean
    raised = np.zeros(thin.shape, np.float32)
    np.subtract(thin[..., 1:], thin[..., :-1], out=raised[..., 1:])
    return raised


def _power(pcm: np.ndarray) -> float:
    return float(np.dot(pcm, pcm)) / len(pcm)
