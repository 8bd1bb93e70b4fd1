"""What resampling costs a conversation: delay, purity and time.

``python -m benchmarks.resampling`` measures our resampler and Pipecat's default one in the same
run and prints a table; ``--json FILE`` writes the figures too.

Both are seen from outside, as a function that takes the next chunk of a stream and returns what
comes out. Pipecat's works on 16-bit audio, whose rounding noise limits its stop
band to about 86 dB here.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from pipecat_duplex.conversation.pcm import float_to_pcm16, pcm16_to_float
from pipecat_duplex.conversation.resampler import Resampler

Stream = Callable[[np.ndarray], np.ndarray]
"""Takes the next chunk of a stream and returns what comes out; both float32, mono."""

MakeStream = Callable[[int, int], Stream]
"""Begins a stream from an input rate to an output rate, in Hz."""

ByteStream = Callable[[bytes], Any]
"""Takes the next chunk of a stream as a transport carries it: 16-bit, mono."""

ROUTES = [(rate, 24_000) for rate in (8_000, 16_000, 48_000)] + [
    (24_000, rate) for rate in (8_000, 16_000, 48_000)
]
"""Pairs of rates, in Hz, that lie between the usual transports and the model."""

CHUNK_SECS = 0.02
"""Length of a chunk in every measurement; the usual frame of a telephone or WebRTC transport."""

TONE_PEAK = 0.5
"""Peak of the test tones: loud, and far from clipping."""

FLATNESS_DB = 0.5
"""The pass band ends where the gain leaves this range on either side of 0 dB."""

_FLOOR_DB = -150.0


@dataclass(frozen=True)
class Holdback:
    """Audio that a resampler keeps to itself: input time fed less output time received.

    Parameters:
        mean_ms: Mean over the moments just after a chunk was fed.
        max_ms: Maximum over the same moments.
    """

    mean_ms: float
    max_ms: float


@dataclass(frozen=True)
class Tone:
    """What becomes of a steady sine.

    Parameters:
        frequency_hz: Its frequency.
        gain_db: Level of the same frequency in the output; the floor if the output has no room
            for it.
        residue_db: Level of everything else in the output, relative to the sine that went in.
    """

    frequency_hz: float
    gain_db: float
    residue_db: float


@dataclass(frozen=True)
class Report:
    """All figures of one resampler on one route.

    Parameters:
        resampler: Whose it is.
        in_rate_hz: Sample rate fed.
        out_rate_hz: Sample rate received.
        holdback: See :class:`Holdback`.
        group_delay_ms: How much later a sound stands in the output than in the input.
        stop_band_db: How far the loudest alias or image lies below the sine that caused it.
        pass_band_hz: Up to here the gain is within :data:`FLATNESS_DB`.
        pass_band_ratio: The same, divided by the narrower of the two Nyquist frequencies.
        chunk_us: Median time in microseconds for a chunk, 16-bit bytes in.
    """

    resampler: str
    in_rate_hz: int
    out_rate_hz: int
    holdback: Holdback
    group_delay_ms: float
    stop_band_db: float
    pass_band_hz: float
    pass_band_ratio: float
    chunk_us: float


def our_stream(in_rate_hz: int, out_rate_hz: int) -> Stream:
    """Begin a stream through :class:`pipecat_duplex.conversation.resampler.Resampler`."""
    return Resampler(in_rate_hz, out_rate_hz).push


def our_byte_stream(in_rate_hz: int, out_rate_hz: int) -> ByteStream:
    """Begin the same stream from bytes, decoded as in the service."""
    push = Resampler(in_rate_hz, out_rate_hz).push
    return lambda pcm16: push(pcm16_to_float(pcm16))


def pipecat_byte_stream(in_rate_hz: int, out_rate_hz: int) -> ByteStream:
    """Begin a stream through Pipecat's default streaming resampler.

    It forgets its state after 0.2 s without audio. That is switched off: a pause of the machine
    would otherwise show up in the figures.
    """
    from pipecat.audio.utils import create_stream_resampler

    resampler = create_stream_resampler(clear_after_secs=None)
    return lambda pcm16: _result(resampler.resample(pcm16, in_rate_hz, out_rate_hz))


def pipecat_stream(in_rate_hz: int, out_rate_hz: int) -> Stream:
    """Begin the same stream from and to floats."""
    push = pipecat_byte_stream(in_rate_hz, out_rate_hz)
    return lambda pcm: pcm16_to_float(push(float_to_pcm16(pcm)))


def _result(coroutine: Coroutine[Any, Any, bytes]) -> bytes:
    """Run a coroutine that never waits; an event loop would add its own time to the figures."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("the resampler waits for something")


def run_stream(stream: Stream, pcm: np.ndarray, chunk_samples: int) -> np.ndarray:
    """Feed a signal chunk by chunk and return all that comes out, shape ``(m,)``."""
    chunks = (pcm[i : i + chunk_samples] for i in range(0, len(pcm), chunk_samples))
    return np.concatenate([np.empty(0, np.float32), *(stream(chunk) for chunk in chunks)])


def measure_holdback(
    make: MakeStream, in_rate_hz: int, out_rate_hz: int, secs: float = 10.0
) -> Holdback:
    """Measure how much audio is missing in the output of a continuous stream."""
    stream = make(in_rate_hz, out_rate_hz)
    chunk = np.zeros(round(CHUNK_SECS * in_rate_hz), np.float32)
    received = np.cumsum([len(stream(chunk)) for _ in range(round(secs / CHUNK_SECS))])
    fed = len(chunk) * np.arange(1, len(received) + 1)
    held_ms = 1_000 * (fed / in_rate_hz - received / out_rate_hz)
    return Holdback(float(held_ms.mean()), float(held_ms.max()))


def measure_group_delay_ms(make: MakeStream, in_rate_hz: int, out_rate_hz: int) -> float:
    """Measure how much later a short pulse stands in the output than in the input.

    The pulse is a Gaussian, narrow in time and in frequency, and its place is its centre of mass:
    a single sample would have frequencies that one of the rates cannot carry.
    """
    at_secs, width_secs, secs = 0.5, 0.0005, 1.0
    seconds = np.arange(round(secs * in_rate_hz)) / in_rate_hz
    pulse = TONE_PEAK * np.exp(-0.5 * ((seconds - at_secs) / width_secs) ** 2)
    out = run_stream(make(in_rate_hz, out_rate_hz), pulse.astype(np.float32), _chunk(in_rate_hz))
    # Only around the peak: far away, rounding noise would have a long lever.
    out = np.where(np.abs(out) > 0.01 * np.abs(out).max(), out, 0)
    return 1_000 * (float(np.arange(len(out)) @ out / out.sum()) / out_rate_hz - at_secs)


def measure_tone(make: MakeStream, in_rate_hz: int, out_rate_hz: int, frequency_hz: float) -> Tone:
    """Measure what comes out of a steady sine, once the stream has settled."""
    seconds = np.arange(round(0.7 * in_rate_hz)) / in_rate_hz
    sine = TONE_PEAK * np.sin(2 * np.pi * frequency_hz * seconds)
    out = run_stream(make(in_rate_hz, out_rate_hz), sine.astype(np.float32), _chunk(in_rate_hz))
    # The first 0.3 s hold the onset, with all frequencies in it.
    residue = out[round(0.3 * out_rate_hz) :].astype(np.float64)
    gain_db = _FLOOR_DB
    if frequency_hz < out_rate_hz / 2:
        angle = 2 * np.pi * frequency_hz / out_rate_hz * np.arange(len(residue))
        basis = np.stack([np.sin(angle), np.cos(angle)], axis=1)
        amplitudes = np.linalg.lstsq(basis, residue, rcond=None)[0]
        gain_db = _db(float(np.hypot(*amplitudes)) / TONE_PEAK)
        residue = residue - basis @ amplitudes
    rms = float(np.sqrt(np.mean(residue**2)))
    return Tone(frequency_hz, gain_db, _db(rms / (TONE_PEAK / np.sqrt(2))))


def measure_tones(
    make: MakeStream, in_rate_hz: int, out_rate_hz: int, tones: int = 400
) -> list[Tone]:
    """Sweep sines over everything the input can carry, up to just below its Nyquist frequency.

    Half of the sines are spread evenly; the other half lie between 80 and 120 % of the narrower
    Nyquist frequency, where pass band and stop band meet.
    """
    nyquist, narrower = in_rate_hz / 2, min(in_rate_hz, out_rate_hz) / 2
    even = np.linspace(0.01, 0.998, tones // 2) * nyquist
    edge = np.linspace(0.8, min(1.2, 0.998 * nyquist / narrower), tones - tones // 2) * narrower
    sweep = np.union1d(even, edge)
    return [measure_tone(make, in_rate_hz, out_rate_hz, float(f)) for f in sweep]


def stop_band_db(tones: list[Tone]) -> float:
    """Return how far the loudest alias or image lies below the sine that caused it."""
    return -max(tone.residue_db for tone in tones)


def pass_band_hz(tones: list[Tone]) -> float:
    """Return the highest frequency up to which no tone leaves :data:`FLATNESS_DB`."""
    edge = 0.0
    for tone in sorted(tones, key=lambda tone: tone.frequency_hz):
        if abs(tone.gain_db) > FLATNESS_DB:
            break
        edge = tone.frequency_hz
    return edge


def measure_chunk_us(stream: ByteStream, in_rate_hz: int, chunks: int = 1_000) -> float:
    """Return the median time for a chunk of noise, in microseconds."""
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, _chunk(in_rate_hz))
    pcm16 = float_to_pcm16(noise)
    spent = []
    for _ in range(chunks):
        begin = time.perf_counter()
        stream(pcm16)
        spent.append(time.perf_counter() - begin)
    return 1e6 * float(np.median(spent))


def measure(
    name: str,
    make: MakeStream,
    make_from_bytes: Callable[[int, int], ByteStream],
    route: tuple[int, int],
) -> Report:
    """Take all measurements of one resampler on one route."""
    tones = measure_tones(make, *route)
    pass_band = pass_band_hz(tones)
    return Report(
        resampler=name,
        in_rate_hz=route[0],
        out_rate_hz=route[1],
        holdback=measure_holdback(make, *route),
        group_delay_ms=measure_group_delay_ms(make, *route),
        stop_band_db=stop_band_db(tones),
        pass_band_hz=pass_band,
        pass_band_ratio=pass_band / (min(route) / 2),
        chunk_us=measure_chunk_us(make_from_bytes(*route), route[0]),
    )


def table(reports: list[Report]) -> str:
    """Return the figures as text, a line for each report."""
    lines = [
        f"{'kHz':>9}  {'resampler':<15} {'held back, ms':>14} {'group delay':>12} "
        f"{'together':>12} {'stop band':>10} {'pass band':>16} {'a chunk':>9}",
        f"{'':>9}  {'':<15} {'mean / max':>14} {'ms':>12} "
        f"{'mean / max':>12} {'dB':>10} {'Hz':>16} {'us':>9}",
    ]
    for r in reports:
        held, delay = r.holdback, r.group_delay_ms
        lines.append(
            f"{f'{r.in_rate_hz // 1000} to {r.out_rate_hz // 1000}':>9}  {r.resampler:<15} "
            f"{f'{held.mean_ms:.1f} / {held.max_ms:.1f}':>14} {delay:>12.2f} "
            f"{f'{held.mean_ms + delay:.1f} / {held.max_ms + delay:.1f}':>12} "
            f"{r.stop_band_db:>10.1f} {f'{r.pass_band_hz:.0f} ({r.pass_band_ratio:.0%})':>16} "
            f"{r.chunk_us:>9.0f}"
        )
    return "\n".join(lines)


def environment() -> dict[str, str]:
    """Return the versions that the figures depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("numpy", "pipecat-ai", "soxr"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description="Measure our resampler beside Pipecat's default.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    args = parser.parse_args()
    reports = []
    for route in ROUTES:
        reports.append(measure("pipecat-duplex", our_stream, our_byte_stream, route))
        reports.append(measure("Pipecat default", pipecat_stream, pipecat_byte_stream, route))
    print(table(reports))
    if args.json:
        figures = {
            "environment": environment(),
            "chunk_secs": CHUNK_SECS,
            "reports": [asdict(report) for report in reports],
        }
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


def _chunk(rate_hz: int) -> int:
    return round(CHUNK_SECS * rate_hz)


def _db(ratio: float) -> float:
    return max(_FLOOR_DB, 20 * float(np.log10(ratio))) if ratio > 0 else _FLOOR_DB


if __name__ == "__main__":
    main()
