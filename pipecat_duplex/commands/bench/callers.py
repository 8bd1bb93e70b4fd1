"""Callers for load tests: they speak by the clock, and note when each answer comes."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    STEP_SAMPLES,
    STEP_SECS,
    AtCapacity,
    DuplexBackend,
    DuplexError,
    DuplexSession,
    SessionConfig,
)

PLAYOUT_SECS = 2 * STEP_SECS
"""When a caller's player plays the answer to a step, counted from the step's end: a step for the
model, and a buffer of a step. If the answer is not there by then, the player has run dry."""

WARM_UP_SECS = 2.0
"""Steps spoken before this are not counted: everybody has just joined at once."""

GOODBYE_SECS = 2.0
STAY_SECS = (5.0, 15.0)
"""How long a caller who comes and goes stays on the line, at least and at most."""

AWAY_SECS = (0.2, 1.0)
"""How long it is away before it calls again."""


@dataclass
class CallLog:
    """What happened in the calls of a run.

    Parameters:
        delays_secs: For each step that was answered, from the end of its audio to its answer.
        compute_secs: For each of them, the computation that it was part of; 0 if not told.
        lags_secs: For each step, how late the caller itself was with it.
        lost_steps: Steps that were never answered.
        calls: Calls that were taken.
        refused: Calls that were refused at once, because no slot was free.
        errors: Why calls ended that should not have.
    """

    delays_secs: list[float] = field(default_factory=list)
    compute_secs: list[float] = field(default_factory=list)
    lags_secs: list[float] = field(default_factory=list)
    lost_steps: int = 0
    calls: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps that were spoken."""
        return len(self.delays_secs) + self.lost_steps

    def late_share(self, playout_secs: float = PLAYOUT_SECS) -> float:
        """Return the share of the steps at whose time the caller's player had nothing to play.

        Args:
            playout_secs: When the answer to a step is played, counted from the step's end.
        """
        late = sum(delay_secs > playout_secs for delay_secs in self.delays_secs)
        return (late + self.lost_steps) / max(1, self.steps)

    def add(self, other: "CallLog") -> None:
        """Take over what happened in other calls."""
        self.delays_secs += other.delays_secs
        self.compute_secs += other.compute_secs
        self.lags_secs += other.lags_secs
        self.lost_steps += other.lost_steps
        self.calls += other.calls
        self.refused += other.refused
        self.errors += other.errors


async def run_callers(
    backend: DuplexBackend,
    callers: int,
    *,
    secs: float,
    speech: np.ndarray,
    come_and_go: bool = False,
    warm_up_secs: float = WARM_UP_SECS,
    seed: int = 0,
) -> CallLog:
    """Let callers talk at the same time, by the clock.

    Each begins at another moment of a step and at another place of the speech.

    Args:
        backend: The backend that they call.
        callers: How many.
        secs: For how long, after warming up.
        speech: What they say over and over, float32, 24 kHz, at least a step.
        come_and_go: Whether they hang up now and then, and call again.
        warm_up_secs: Steps are not counted before.
        seed: Of the moments at which they begin and hang up.

    Returns:
        What happened.
    """
    log = CallLog()
    count_from_secs = time.monotonic() + warm_up_secs
    until_secs = count_from_secs + secs
    rng = np.random.default_rng(seed)
    lines = [
        _Line(
            backend,
            log,
            speech,
            count_from_secs,
            until_secs,
            np.random.default_rng(rng.integers(2**32)),
        )
        for _ in range(callers)
    ]
    await asyncio.gather(*(line.run(come_and_go=come_and_go) for line in lines))
    return log


def murmur(secs: float = 20.0, seed: int = 0) -> np.ndarray:
    """Return something with the rhythm of speech: syllables of noise, and pauses.

    Args:
        secs: Its length.
        seed: Of the noise.

    Returns:
        Float32, 24 kHz.
    """
    rng = np.random.default_rng(seed)
    samples = round(secs * SAMPLE_RATE_HZ)
    seconds = np.arange(samples) / SAMPLE_RATE_HZ
    syllables = np.clip(np.sin(2 * np.pi * 4 * seconds), 0, None) ** 2
    sentences = np.sin(2 * np.pi * seconds / 3) > -0.3
    noise = np.cumsum(rng.standard_normal(samples))
    noise -= np.convolve(noise, np.ones(241) / 241, mode="same")
    return (0.1 * noise / noise.std() * syllables * sentences).astype(np.float32)


class _Line:
    """One caller."""

    def __init__(
        self,
        backend: DuplexBackend,
        log: CallLog,
        speech: np.ndarray,
        count_from_secs: float,
        until_secs: float,
        rng: np.random.Generator,
    ):
        self._backend = backend
        self._log = log
        self._speech = speech
        self._count_from_secs = count_from_secs
        self._until_secs = until_secs
        self._rng = rng

    async def run(self, *, come_and_go: bool) -> None:
        await asyncio.sleep(self._rng.uniform(0, STEP_SECS))
        while time.monotonic() < self._until_secs - STEP_SECS:
            stay_secs = self._rng.uniform(*STAY_SECS) if come_and_go else float("inf")
            try:
                session = await self._backend.open(SessionConfig())
            except AtCapacity:
                self._log.refused += 1
                await asyncio.sleep(1.0)
                continue
            except DuplexError as e:
                self._log.errors.append(str(e))
                return
            self._log.calls += 1
            await self._call(session, min(self._until_secs, time.monotonic() + stay_secs))
            await asyncio.sleep(self._rng.uniform(*AWAY_SECS))

    async def _call(self, session: DuplexSession, until_secs: float) -> None:
        origin_secs = time.monotonic()
        unanswered: dict[int, float] = {}
        listening = asyncio.create_task(self._listen(session, unanswered))
        try:
            for number, pcm in enumerate(self._steps()):
                spoken_secs = origin_secs + (number + 1) * STEP_SECS
                if spoken_secs > until_secs or listening.done():
                    break
                await asyncio.sleep(max(0.0, spoken_secs - time.monotonic()))
                if spoken_secs >= self._count_from_secs:
                    self._log.lags_secs.append(time.monotonic() - spoken_secs)
                unanswered[number] = spoken_secs
                session.send(pcm)
            await self._hear_out(unanswered, listening)
        except DuplexError as e:
            self._log.errors.append(str(e))
        finally:
            await session.close()
            await listening
            self._log.lost_steps += sum(
                spoken_secs >= self._count_from_secs for spoken_secs in unanswered.values()
            )

    async def _hear_out(self, unanswered: dict[int, float], listening: asyncio.Task[None]) -> None:
        """Wait for the answers that are still on their way."""
        goodbye_secs = time.monotonic() + GOODBYE_SECS
        while unanswered and time.monotonic() < goodbye_secs:
            await asyncio.wait([listening], timeout=STEP_SECS / 4)
            if listening.done():
                return

    async def _listen(self, session: DuplexSession, unanswered: dict[int, float]) -> None:
        """Note when each answer comes."""
        try:
            async for step in session.steps():
                spoken_secs = unanswered.pop(step.index)
                if spoken_secs < self._count_from_secs:
                    continue
                self._log.delays_secs.append(time.monotonic() - spoken_secs)
                self._log.compute_secs.append(step.timing.compute_secs)
        except DuplexError as e:
            self._log.errors.append(str(e))

    def _steps(self) -> Iterator[np.ndarray]:
        place = int(self._rng.integers(len(self._speech)))
        while True:
            yield np.take(self._speech, range(place, place + STEP_SAMPLES), mode="wrap")
            place = (place + STEP_SAMPLES) % len(self._speech)
