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

PLAYER_BUFFER_SECS = STEP_SECS
"""A caller's player starts this long after the first answer; later answers must not be later."""

GOODBYE_SECS = 2.0
STAY_SECS = (5.0, 15.0)
"""How long a caller who comes and goes stays on the line, at least and at most."""


@dataclass
class CallLog:
    """What happened in the calls of a run.

    Parameters:
        delays_secs: For each step, from its audio being spoken to its answer.
        late_steps: Steps whose answer came after their time in the caller's player.
        lost_steps: Steps that were never answered.
        calls: Calls that were taken.
        refused: Calls that were refused at once, for want of a slot.
        errors: Why calls ended that should not have.
    """

    delays_secs: list[float] = field(default_factory=list)
    late_steps: int = 0
    lost_steps: int = 0
    calls: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps that were spoken."""
        return len(self.delays_secs) + self.lost_steps

    @property
    def late_share(self) -> float:
        """Share of the steps that were late or lost."""
        return (self.late_steps + self.lost_steps) / max(1, self.steps)


async def run_callers(
    backend: DuplexBackend,
    callers: int,
    *,
    secs: float,
    speech: np.ndarray,
    come_and_go: bool = False,
    seed: int = 0,
) -> CallLog:
    """Let callers talk at the same time, by the clock.

    Each begins at another moment of a step and at another place of the speech.

    Args:
        backend: Whom they call.
        callers: How many.
        secs: For how long.
        speech: What they say over and over, float32, 24 kHz, at least a step.
        come_and_go: Whether they hang up now and then, and call again.
        seed: Of the moments at which they begin and hang up.

    Returns:
        What happened.
    """
    log = CallLog()
    until_secs = time.monotonic() + secs
    rng = np.random.default_rng(seed)
    lines = [
        _Line(backend, log, speech, until_secs, np.random.default_rng(rng.integers(2**32)))
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
        until_secs: float,
        rng: np.random.Generator,
    ):
        self._backend = backend
        self._log = log
        self._speech = speech
        self._until_secs = until_secs
        self._rng = rng
        self._heard = 0

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

    async def _call(self, session: DuplexSession, until_secs: float) -> None:
        origin_secs = time.monotonic()
        self._heard = 0
        listening = asyncio.create_task(self._listen(session, origin_secs))
        sent = 0
        try:
            for pcm in self._steps():
                due_secs = origin_secs + (sent + 1) * STEP_SECS
                if due_secs > until_secs or listening.done():
                    break
                await asyncio.sleep(max(0.0, due_secs - time.monotonic()))
                session.send(pcm)
                sent += 1
            await self._hear_out(sent, listening)
        except DuplexError as e:
            self._log.errors.append(str(e))
        finally:
            await session.close()
            await listening
            self._log.lost_steps += max(0, sent - self._heard)

    async def _hear_out(self, sent: int, listening: asyncio.Task[None]) -> None:
        """Wait for the answers that are still on their way."""
        goodbye_secs = time.monotonic() + GOODBYE_SECS
        while self._heard < sent and time.monotonic() < goodbye_secs:
            await asyncio.wait([listening], timeout=STEP_SECS / 4)
            if listening.done():
                return

    async def _listen(self, session: DuplexSession, origin_secs: float) -> None:
        """Note when each answer comes."""
        play_secs = 0.0
        try:
            async for step in session.steps():
                now_secs = time.monotonic()
                spoken_secs = origin_secs + (step.index + 1) * STEP_SECS
                if self._heard == 0:
                    play_secs = now_secs + PLAYER_BUFFER_SECS - step.index * STEP_SECS
                self._heard += 1
                self._log.delays_secs.append(now_secs - spoken_secs)
                self._log.late_steps += now_secs > play_secs + step.index * STEP_SECS
        except DuplexError as e:
            self._log.errors.append(str(e))

    def _steps(self) -> Iterator[np.ndarray]:
        place = int(self._rng.integers(len(self._speech)))
        while True:
            yield np.take(self._speech, range(place, place + STEP_SAMPLES), mode="wrap")
            place = (place + STEP_SAMPLES) % len(self._speech)
