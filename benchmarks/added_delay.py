"""What the service adds to the model's time: ``python -m benchmarks.added_delay``.

A session that answers each step after 10 ms stands behind a real pipeline, by the wall clock. The
delay of a step runs from the chunk that holds the last sample of the user's step entering the
service to its audio leaving it. The filters of the resamplers add their group delay to this, in
and out; the benchmark ``benchmarks.resampling`` measures that.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

import numpy as np
from loguru import logger
from pipecat.frames.frames import InputAudioRawFrame, MetricsFrame, TTSAudioRawFrame

from harness.pipeline import CHUNK_SECS, Conversation, converse, silence
from pipecat_duplex import DuplexMetricsData
from pipecat_duplex.conversation.resampler import Resampler
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SECS

RATES_HZ = (8_000, 16_000, 24_000, 48_000)
MODEL_SECS = 0.010


async def measure(rate_hz: int, secs: float) -> dict:
    """Measure one sample rate.

    Args:
        rate_hz: Rate of the pipeline, in and out.
        secs: Length of the conversation.

    Returns:
        Steps, and the delay's median, 99th percentile and maximum in ms.
    """
    words = " ".join(["word"] * round(secs / STEP_SECS))
    backend = ScriptedBackend(Script(opening=words, opening_step=2, step_secs=MODEL_SECS))
    conversation = await converse(backend, silence(secs, rate_hz), rate_hz=rate_hz, realtime=True)
    delays_ms = 1e3 * np.array(step_delays_secs(conversation))
    group_delay_secs = (
        Resampler(rate_hz, SAMPLE_RATE_HZ).delay_secs
        + Resampler(SAMPLE_RATE_HZ, rate_hz).delay_secs
    )
    return {
        "rate_hz": rate_hz,
        "steps": len(delays_ms),
        "model_ms": 1e3 * model_secs(conversation),
        "median_ms": float(np.median(delays_ms)),
        "p99_ms": float(np.percentile(delays_ms, 99)),
        "max_ms": float(delays_ms.max()),
        "filters_ms": 1e3 * group_delay_secs,
    }


def model_secs(conversation: Conversation) -> float:
    """Return what a step of the model really took on average: a timer rounds up."""
    data = [d for frame in conversation.near.of(MetricsFrame) for d in frame.data]
    return float(np.mean([d.compute_secs for d in data if isinstance(d, DuplexMetricsData)]))


def step_delays_secs(conversation: Conversation) -> list[float]:
    """Return for each step pushed the time since its user audio was complete."""
    arrivals = conversation.near_user.times(InputAudioRawFrame)
    chunks = round(STEP_SECS / CHUNK_SECS)
    return [
        seen.time_secs - arrivals[round(seen.frame.pts / 1e9 / STEP_SECS) * chunks - 1]
        for seen in conversation.near.seen
        if isinstance(seen.frame, TTSAudioRawFrame)
    ]


def main() -> None:
    """Print the table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--secs", type=float, default=20.0, help="length of each conversation")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    rows = [asyncio.run(measure(rate_hz, args.secs)) for rate_hz in RATES_HZ]
    print(f"a model of {1e3 * MODEL_SECS:.0f} ms a step; all in ms")
    print("   kHz  steps  model  median     p99     max  + filters")
    for row in rows:
        print(
            f"{row['rate_hz'] / 1e3:6.0f} {row['steps']:6d} {row['model_ms']:6.1f} "
            f"{row['median_ms']:7.1f} "
            f"{row['p99_ms']:7.1f} {row['max_ms']:7.1f} {row['filters_ms']:10.1f}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
