"""By how much the monologue is ahead of the voice: ``python -m benchmarks.monologue_lead``.

The first word of each utterance is looked at, whose sound begins in silence: from the beginning of
the step that holds its text to the first sound. The text of a step is pushed before its audio, so
this is the least time that a node such as the moderation gate has, beside the way to the ear.
"""

import argparse
import asyncio
import sys

import numpy as np
from loguru import logger

from harness.pipeline import silence, speech
from pipecat_duplex import SessionConfig
from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.engine import Engine
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES, STEP_SECS

BLOCK_SAMPLES = SAMPLE_RATE_HZ // 100
SOUND_DB = -40.0
BEFORE_BLOCKS = 30
AFTER_BLOCKS = 100


async def leads_ms(engine: Engine, seed: int) -> list[tuple[str, int]]:
    """Hold a conversation, and return the first word of each utterance with its lead in ms."""
    audio = np.concatenate([speech("conversation", SAMPLE_RATE_HZ), silence(6, SAMPLE_RATE_HZ)])
    session = await engine.open(SessionConfig(seed=seed))
    said, words = [], []
    steps = session.steps()
    for first in range(0, len(audio) - STEP_SAMPLES + 1, STEP_SAMPLES):
        session.send(audio[first : first + STEP_SAMPLES])
        step = await anext(steps)
        said.append(step.pcm)
        if step.text_piece and step.text_piece.startswith("▁"):
            words.append((step.index, step.text_piece[1:]))
    await session.close()
    blocks = np.concatenate(said).reshape(-1, BLOCK_SAMPLES)
    loud = np.array([level_db(block) > SOUND_DB for block in blocks])
    leads = []
    for index, word in words:
        at = round(index * STEP_SECS * 100)
        after = np.flatnonzero(loud[at : at + AFTER_BLOCKS])
        if len(after) and not loud[max(0, at - BEFORE_BLOCKS) : at].any():
            leads.append((word, 10 * int(after[0])))
    return leads


async def measure(checkpoint: str, conversations: int) -> list[tuple[str, int]]:
    """Hold conversations, one after another."""
    engine = await Engine.load(checkpoint)
    try:
        return [lead for seed in range(conversations) for lead in await leads_ms(engine, seed)]
    finally:
        await engine.close()


def main() -> None:
    """Print each word, and the range."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="embedded")
    parser.add_argument("--conversations", type=int, default=3)
    args = parser.parse_args()
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    leads = asyncio.run(measure(args.checkpoint, args.conversations))
    for word, lead_ms in leads:
        print(f"{word:12} {lead_ms:4} ms")
    if leads:
        times = [lead_ms for _, lead_ms in leads]
        print(
            f"{len(times)} utterances: {min(times)} to {max(times)} ms ahead, "
            f"median {np.median(times):.0f}"
        )


if __name__ == "__main__":
    main()
