"""What a conversation makes of a request that falls into a move, with and without what it missed.

``python -m benchmarks.unheard``: a recorded request is said to one session, which is lost at
some step of it. Another one takes up the conversation after a gap, and hears what the user said in
it first, or not. Everything goes in lock step, so that a busy machine does not matter.
"""

import asyncio
import difflib
import itertools
from pathlib import Path

import numpy as np
import soundfile
import typer
from loguru import logger

from pipecat_duplex.conversation.cutter import StepCutter
from pipecat_duplex.conversation.resampler import Resampler
from pipecat_duplex.engine import Engine
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES, DuplexSession, SessionConfig, Step
from pipecat_duplex.session.history import HistoryKeeper
from pipecat_duplex.session.unheard import UnheardAudio

TAIL_STEPS = 60

SAME = 0.6


def read_steps(path: Path) -> list[np.ndarray]:
    """Return a recording in steps, with silence behind it for the answer."""
    pcm, rate_hz = soundfile.read(path, dtype="float32")
    pcm = Resampler(rate_hz, SAMPLE_RATE_HZ).push(pcm)
    tail = np.zeros(TAIL_STEPS * STEP_SAMPLES, np.float32)
    return StepCutter().push(np.concatenate([pcm, tail]))


async def talk(
    session: DuplexSession, keeper: HistoryKeeper, audio: list[np.ndarray]
) -> list[Step]:
    """Say something in lock step, and keep what was said."""
    steps: list[Step] = []
    answers = session.steps()
    for pcm in audio:
        session.send(pcm)
        keeper.send(pcm)
        step = await anext(answers)
        keeper.take(step)
        steps.append(step)
    return steps


async def converse(
    engine: Engine, config: SessionConfig, audio: list[np.ndarray], lost: range, hears: bool
) -> str:
    """Hold the conversation, and return what the agent says once it has moved."""
    session = await engine.open(config)
    keeper = HistoryKeeper(session.memory)
    await talk(session, keeper, audio[: lost.start])
    await session.close()
    fresh = await engine.open(config)
    history = keeper.history()
    assert history is not None
    await fresh.restore(history)
    if hears:
        unheard = UnheardAudio()
        unheard.add(*audio[lost.start : lost.stop])
        await talk(fresh, keeper, unheard.take_speech(keeper.audio))
    steps = await talk(fresh, keeper, audio[lost.stop :])
    await fresh.close()
    return "".join(step.text_piece or "" for step in steps).replace("▁", " ").strip()


def is_same(answer: str, right: str) -> bool:
    """Whether two answers are about the same: a greeting before it, or its end, may differ."""
    return difflib.SequenceMatcher(None, answer.split(), right.split()).ratio() > SAME


async def measure(paths: list[Path], gap_steps: int, seeds: int) -> None:
    """Print how often the answer is what it is without a move."""
    engine = await Engine.load("embedded")
    totals = {False: 0, True: 0}
    tries = 0
    for path, seed in itertools.product(paths, range(seeds)):
        audio = read_steps(path)
        config = SessionConfig(seed=seed)
        session = await engine.open(config)
        whole = await talk(session, HistoryKeeper(session.memory), audio)
        await session.close()
        right = "".join(step.text_piece or "" for step in whole).replace("▁", " ").strip()
        spoken = len(audio) - TAIL_STEPS
        for start in range(4, spoken, max(1, gap_steps // 2)):
            lost = range(start, min(start + gap_steps, spoken + 4))
            tries += 1
            for hears in totals:
                answer = await converse(engine, config, audio, lost, hears)
                totals[hears] += is_same(answer, right)
    await engine.close()
    print(f"{tries} moves of {gap_steps * 0.08:.1f} s in {len(paths)} requests, {seeds} seeds")
    print(f"same answer as without a move: {totals[True]} with what was missed, ", end="")
    print(f"{totals[False]} without")


def main(requests: list[Path] | None = None, gap_steps: int = 12, seeds: int = 2) -> None:
    """Say requests to sessions that are lost in the middle."""
    logger.remove()
    folder = Path(__file__).parents[1] / "examples"
    found = requests or [folder / "audio/question.wav", *sorted(folder.glob("evals/audio/*.wav"))]
    asyncio.run(measure(found, gap_steps, seeds))


if __name__ == "__main__":
    typer.run(main)
