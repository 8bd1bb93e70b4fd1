"""What the telephone path adds to the model's time: ``python -m benchmarks.telephone``.

A caller in a process of its own talks to ``examples/twilio_bot.py`` over a real WebSocket, with
real speech in μ-law, by the clock. In turns, the same bot runs once at the line's 8 kHz and once at
24 kHz, where Pipecat's default resamplers stand between the line and the service.

All delays are of the *content*: what was sent and what came is found in each other by correlation,
so that what a resampler holds back counts.

- **in**: from a sample's chunk being sent to the step that ends with it being given to the model,
  with the delay of the filters.
- **out**: from a step coming out of the model to its first sample being at the caller's end, with
  the delay of the filters and any silence sent ahead.
- **yield**: from the step by which the model yields coming out to ``clear`` at the caller's end.
"""

import argparse
import asyncio
import json
import multiprocessing
import sys
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from loguru import logger
from scipy.signal import correlate, resample_poly

from harness.pipeline import silence, speech
from harness.twilio import RATE_HZ, Call, Caller, Line, decode
from harness.twilio_bot import serving
from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.engine import Engine
from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    STEP_SECS,
    DuplexBackend,
    DuplexSession,
    SessionConfig,
    Step,
)

UP = SAMPLE_RATE_HZ // RATE_HZ
# Content is found by windows of this many steps, this far around where it should be.
WINDOW_STEPS = 5
SEARCH_SECS = 0.5
SPEECH_DB = -40.0
# The service lets nothing through that is later than this.
MAX_DELAY_SECS = 1.0
# A sentence has ended, or an agent has fallen silent, after this much silence.
PAUSE_SECS = 0.3


@dataclass
class Log:
    """What went in and out of the model in a call, and when."""

    sent: list[tuple[float, np.ndarray]] = field(default_factory=list)
    steps: list[tuple[float, np.ndarray]] = field(default_factory=list)


class WatchedBackend:
    """Notes what goes in and out of the sessions of another backend."""

    def __init__(self, backend: DuplexBackend):
        """Watch a backend."""
        self._backend = backend
        self.logs: list[Log] = []

    async def open(self, config: SessionConfig) -> DuplexSession:
        """Open a session, and keep a log of it."""
        log = Log()
        self.logs.append(log)
        return WatchedSession(await self._backend.open(config), log)

    async def close(self) -> None:
        """Close nothing: the backend is another's."""


class WatchedSession:
    """A session, with a log."""

    def __init__(self, session: DuplexSession, log: Log):
        """Watch a session."""
        self._session = session
        self._log = log

    def __getattr__(self, name: str):
        """Leave all else to the session."""
        return getattr(self._session, name)

    def send(self, pcm: np.ndarray) -> int:
        """Note the time, and pass the step on."""
        self._log.sent.append((time.monotonic(), pcm.copy()))
        return self._session.send(pcm)

    async def steps(self) -> AsyncIterator[Step]:
        """Note the time of each step."""
        async for step in self._session.steps():
            self._log.steps.append((time.monotonic(), step.pcm))
            yield step


@dataclass
class Figures:
    """What was measured in the calls of one row. Delays in ms, gaps in number."""

    calls: int = 0
    in_ms: list[float] = field(default_factory=list)
    out_ms: list[float] = field(default_factory=list)
    yield_ms: list[float] = field(default_factory=list)
    answer_ms: list[float] = field(default_factory=list)
    silence_ms: list[float] = field(default_factory=list)
    gap_ms: list[float] = field(default_factory=list)
    late_after_clear: int = 0
    speech_secs: float = 0.0

    def add(self, call: Call, log: Log) -> None:
        """Add a call."""
        self.calls += 1
        self.in_ms += [1000 * secs for secs in inbound_secs(call, log)]
        self.out_ms += [1000 * secs for secs in outbound_secs(call, log)]
        self.yield_ms += [1000 * secs for secs in yield_secs(call, log)]
        recording = call.recording()
        self.answer_ms += [1000 * secs for secs in answer_secs(recording)]
        self.silence_ms += [1000 * secs for secs in silence_secs(call, recording)]
        self.gap_ms += [1000 * gap.secs for gap in call.player().gaps]
        self.speech_secs += sum(end - start for start, end in voices(recording[:, 1]))


def inbound_secs(call: Call, log: Log) -> list[float]:
    """Return for each step with speech how old its last sample was when the model got it."""
    heard = np.concatenate([pcm for _, pcm in log.sent])
    spoken = resample_poly(call.audio, UP, 1).astype(np.float32)
    delays = []
    for first, shift in placed(heard, spoken, SAMPLE_RATE_HZ):
        for step in range(first, first + WINDOW_STEPS):
            spoken_secs = (step + 1) * STEP_SECS + shift / SAMPLE_RATE_HZ
            delays.append(log.sent[step][0] - call.origin_secs - spoken_secs)
    return delays


def outbound_secs(call: Call, log: Log) -> list[float]:
    """Return for each step with speech when its first sample was at the caller's end."""
    said = np.concatenate([pcm for _, pcm in log.steps])
    media = [message for message in call.received if message.event == "media"]
    lengths = [len(message.ulaw) for message in media]
    begins = np.concatenate([[0], np.cumsum(lengths)])
    came = resample_poly(_received(call), UP, 1).astype(np.float32)
    delays = []
    # The agent's silence is not sent, so what was said runs ahead of what came.
    for first, shift in placed(said, came, SAMPLE_RATE_HZ, anywhere=True):
        for step in range(first, first + WINDOW_STEPS):
            at = (step * STEP_SECS * SAMPLE_RATE_HZ + shift) / UP
            message = int(np.searchsorted(begins, at + 1e-6, side="right")) - 1
            if not 0 <= message < len(media):
                continue
            came_secs = media[message].secs + (at - begins[message]) / RATE_HZ
            delay_secs = came_secs - log.steps[step][0]
            # What was said twice may be found in the other place.
            if 0 <= delay_secs < MAX_DELAY_SECS:
                delays.append(delay_secs)
    return delays


def placed(
    audio: np.ndarray, within: np.ndarray, rate_hz: int, *, anywhere: bool = False
) -> list[tuple[int, int]]:
    """Find windows of speech in other audio that holds the same.

    Args:
        audio: Cut into windows of ``WINDOW_STEPS`` steps.
        within: Where to look.
        rate_hz: Of both.
        anywhere: Look everywhere, not only around the same place.

    Returns:
        For each window that was found, its first step and by how many samples it lies later in
        ``within``.
    """
    window = round(WINDOW_STEPS * STEP_SECS * rate_hz)
    search = len(within) if anywhere else round(SEARCH_SECS * rate_hz)
    found = []
    for first in range(0, len(audio) - window + 1, window):
        template = audio[first : first + window]
        if level_db(template) < SPEECH_DB:
            continue
        begin = max(0, first - search)
        place = within[begin : first + window + search]
        if len(place) < window:
            continue
        match = correlate(place, template, "valid", method="fft")
        sums = np.concatenate([[0.0], np.cumsum(np.square(place, dtype=np.float64))])
        energy = sums[window:] - sums[:-window]
        match /= np.sqrt(np.maximum(energy, 1e-6) * np.square(template).sum())
        best = int(match.argmax())
        if match[best] > 0.8:
            found.append((first // (window // WINDOW_STEPS), begin + best - first))
    return found


def yield_secs(call: Call, log: Log) -> list[float]:
    """Return for each clear the time since the step that brought it about."""
    times = np.array([secs for secs, _ in log.steps])
    return [at - times[times < at].max() for at in call.times("clear")]


def answer_secs(recording: np.ndarray) -> list[float]:
    """Return the times from the end of a sentence to the agent's first sound."""
    user, agent = voices(recording[:, 0]), voices(recording[:, 1])
    delays = []
    for number, (_, end) in enumerate(user):
        until = user[number + 1][0] if number + 1 < len(user) else np.inf
        if any(start < end < stop for start, stop in agent):
            continue  # Spoken over the agent.
        delays += [start - end for start, _ in agent if end <= start < until][:1]
    return delays


def silence_secs(call: Call, recording: np.ndarray) -> list[float]:
    """Return the times from a barge-in that was yielded to, to silence at the caller's end."""
    user, agent = voices(recording[:, 0]), voices(recording[:, 1])
    delays = []
    for at in np.array(call.times("clear")) - call.origin_secs:
        begun = [start for start, _ in user if start < at]
        spoken = [(start, end) for start, end in agent if start < at]
        if begun and spoken and spoken[-1][0] < begun[-1] < spoken[-1][1]:
            delays.append(spoken[-1][1] - begun[-1])
    return delays


def voices(pcm: np.ndarray) -> list[tuple[float, float]]:
    """Return where somebody speaks, start and end in seconds."""
    block = RATE_HZ // 100
    blocks = pcm[: len(pcm) // block * block].reshape(-1, block)
    loud = np.flatnonzero(np.sqrt(np.square(blocks).mean(axis=1)) > 0.01)
    if not len(loud):
        return []
    breaks = np.flatnonzero(np.diff(loud) > PAUSE_SECS * 100)
    starts = loud[np.concatenate([[0], breaks + 1])]
    ends = loud[np.concatenate([breaks, [len(loud) - 1]])] + 1
    return [(start / 100, end / 100) for start, end in zip(starts, ends, strict=True)]


def _received(call: Call) -> np.ndarray:
    return decode(b"".join(m.ulaw for m in call.received if m.event == "media"))


def call_bot(url: str, audio: np.ndarray, line: Line) -> Call:
    """Hold a call, in a process of its own."""
    return asyncio.run(Caller(audio, line=line).call(url))


async def measure(engine: Engine, audio: np.ndarray, rounds: int) -> dict[str, Figures]:
    """Hold the calls of all rows, in turns."""
    clean, poor = Line(), Line(loss=0.05, jitter_secs=0.06)
    plan: list[tuple[str, int, Line, int]] = [
        ("8 kHz throughout", RATE_HZ, clean, 1),
        ("Pipecat resamples", SAMPLE_RATE_HZ, clean, 1),
        ("5 % loss, 60 ms jitter", RATE_HZ, poor, 1),
        ("two calls at once", RATE_HZ, clean, 2),
    ]
    rows = {name: Figures() for name, *_ in plan}
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        # The first call also loads what the later ones find loaded.
        await _calls(loop, processes, engine, RATE_HZ, silence(1, RATE_HZ), clean, 1, 0)
        for number in range(rounds):
            for name, rate_hz, line, at_once in plan:
                print(f"round {number + 1}: {name}", file=sys.stderr)
                for call, log in await _calls(
                    loop, processes, engine, rate_hz, audio, line, at_once, number
                ):
                    rows[name].add(call, log)
    return rows


async def _calls(
    loop: asyncio.AbstractEventLoop,
    processes: ProcessPoolExecutor,
    engine: Engine,
    rate_hz: int,
    audio: np.ndarray,
    line: Line,
    at_once: int,
    number: int,
) -> Sequence[tuple[Call, Log]]:
    """Hold calls at the same time, each in a process, one a little after the other."""
    watched = [WatchedBackend(engine) for _ in range(at_once)]
    results = []
    for index, backend in enumerate(watched):
        line = Line(line.loss, line.jitter_secs, line.reorders, seed=10 * number + index)
        results.append(asyncio.create_task(_one(loop, processes, backend, rate_hz, audio, line)))
        await asyncio.sleep(0.5)
    calls = await asyncio.gather(*results)
    return [(call, backend.logs[0]) for call, backend in zip(calls, watched, strict=True)]


async def _one(loop, processes, backend, rate_hz, audio, line) -> Call:
    async with serving(backend, sample_rate_hz=rate_hz) as bot:
        return await loop.run_in_executor(processes, call_bot, bot.media, audio, line)


def table(rows: dict[str, Figures]) -> str:
    """Return the figures as a table."""
    lines = [
        f"{'':24}{'in p50':>8}{'p99':>7}{'out p50':>9}{'p99':>7}{'yield→clear':>13}{'max':>6}"
        f"{'answer':>8}{'silence':>9}{'gaps':>6}{'ms':>6}"
    ]
    for name, row in rows.items():
        gaps = f"{len(row.gap_ms):>6}{sum(row.gap_ms):>6.0f}"
        lines.append(
            f"{name:24}{_at(row.in_ms, 50):>8}{_at(row.in_ms, 99):>7}{_at(row.out_ms, 50):>9}"
            f"{_at(row.out_ms, 99):>7}{_at(row.yield_ms, 50):>13}{_at(row.yield_ms, 100):>6}"
            f"{_at(row.answer_ms, 50, 0):>8}{_at(row.silence_ms, 50, 0):>9}{gaps}"
            f"   {row.calls} calls, {len(row.in_ms)} steps in, {len(row.out_ms)} out, "
            f"{row.speech_secs:.0f} s of agent speech"
        )
    return "\n".join(lines)


def _at(values: Sequence[float], percentile: float, digits: int = 1) -> str:
    return f"{np.percentile(values, percentile):.{digits}f}" if len(values) else "-"


async def run(checkpoint: str, rounds: int) -> dict[str, Figures]:
    """Load the model and measure."""
    audio = np.concatenate([speech("conversation", RATE_HZ), silence(2, RATE_HZ)])
    engine = await Engine.load(checkpoint, slots=2)
    try:
        return await measure(engine, audio, rounds)
    finally:
        await engine.close()


def main() -> None:
    """Print the table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="embedded")
    parser.add_argument("--rounds", type=int, default=3, help="calls of each row")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    logger.remove()
    logger.add(sys.stderr, level="ERROR")
    rows = asyncio.run(run(args.checkpoint, args.rounds))
    print("all in ms")
    print(table(rows))
    if args.json:
        figures = {name: asdict(row) for name, row in rows.items()}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
