"""How well the agent says given words: ``python -m benchmarks.say``.

Three groups: sentences of the embedded model's world that it is told to say, new combinations of
its words that it is told to say, and the answers that it gives by itself when it is asked, to
compare with. From silence each. Each rendition is heard by a recogniser that knows the words of its
sentence, in any order and number.
"""

import argparse
import asyncio
import sys
from dataclasses import dataclass

import numpy as np
from loguru import logger

from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.engine import Engine
from pipecat_duplex.session import STEP_SAMPLES, STEP_SECS, SessionConfig
from training import world
from training.recogniser import Recogniser, word_errors
from training.speech import synthesise

SLOTS = 4
LEAD_STEPS = 12
MAX_STEPS = 250
QUIET_STEPS = 12
"""Steps without word or sound after which the agent has come to its end."""

SOUND_DB = -45.0
OWN = "its own answers"
USER_VOICE = "flite:rms"
SILENCE = np.zeros(STEP_SAMPLES, np.float32)


@dataclass(frozen=True)
class Rendition:
    """A sentence, and what came of it.

    Attributes:
        text: What was to be said; for an answer of its own, what its monologue says.
        monologue: What its monologue says.
        first_sound_ms: From the request to the end of the step with the first sound; for an answer
            of its own, from its first word.
        sounds_early: Whether there is sound before the second word's could be, right or wrong.
        pcm: Its sound, float32, 24 kHz.
    """

    text: str
    monologue: str
    first_sound_ms: float
    sounds_early: bool
    pcm: np.ndarray


async def render(
    engine: Engine, text: str | None, seed: int, question: np.ndarray | None = None
) -> Rendition:
    """Let the agent say a text, or answer a question.

    Args:
        engine: An engine with a free slot.
        text: What to say; ``None`` to let it speak by itself.
        seed: Of its sampling.
        question: What the user says before, float32, 24 kHz.
    """
    session = await engine.open(SessionConfig(seed=seed))
    asked = SILENCE[:0] if question is None else question
    user = [SILENCE] * LEAD_STEPS + [
        np.pad(part, (0, STEP_SAMPLES - len(part)))
        for part in (asked[i : i + STEP_SAMPLES] for i in range(0, len(asked), STEP_SAMPLES))
    ]
    steps = session.steps()
    pieces: list[tuple[int, str]] = []
    pcm: list[np.ndarray] = []
    quiet_steps, ended = 0, text is None
    for index in range(MAX_STEPS):
        if text is not None and index == LEAD_STEPS:
            await session.say(text)
        session.send(user[index] if index < len(user) else SILENCE)
        step = await anext(steps)
        if index < LEAD_STEPS:
            continue
        pcm.append(step.pcm)
        ended = ended or bool(step.said)
        # What it adds of its own, after ours or before it was asked, is not looked at.
        if step.text_piece and (text is None or step.utterance_id is not None):
            pieces.append((index - LEAD_STEPS, step.text_piece))
        quiet = not step.text_piece and level_db(step.pcm) < SOUND_DB
        quiet_steps = quiet_steps + 1 if quiet else 0
        if ended and pieces and (text is not None or quiet_steps >= QUIET_STEPS):
            break
    await session.close()
    monologue = "".join(piece for _, piece in pieces).replace("▁", " ").strip()
    starts = [index for index, piece in pieces if piece.startswith("▁")]
    begin = 0 if text is not None else (starts[0] if starts else 0)
    loud = [i for i, frame in enumerate(pcm) if i >= begin and level_db(frame) >= SOUND_DB]
    first = loud[0] if loud else len(pcm)
    return Rendition(
        monologue if text is None else text,
        monologue,
        (first + 1 - begin) * STEP_SECS * 1000,
        # The sound of a word comes a step or two after its text.
        len(starts) < 2 or first <= starts[1] + 1,
        np.concatenate([SILENCE * 3, *pcm[begin:], SILENCE * 3]).astype(np.float32),
    )


def new_sentences(count: int, seed: int) -> list[str]:
    """Return combinations of the agent's words that it has never said."""
    rng = np.random.default_rng(seed)
    words = world.agent_words()
    return [" ".join(rng.choice(words, rng.integers(3, 8))) for _ in range(count)]


async def measure(
    checkpoint: str, world_sentences: int, new: int, seed: int
) -> dict[str, list[Rendition]]:
    """Render all groups; ``world_sentences`` limits those of the world, 0 for all.

    ``seed`` is of the sampling, and draws the new sentences.
    """
    questions = {exchange.answer: exchange.words for exchange in world.exchanges()}
    answers = [answer for answer in world.answers() if answer in questions]
    if world_sentences:
        order = np.random.default_rng(0).permutation(len(answers))
        answers = [answers[i] for i in order[:world_sentences]]
    engine = await Engine.load(checkpoint, slots=SLOTS, tts="own")
    free = asyncio.Semaphore(SLOTS)

    async def one(text: str | None, number: int, question: str = "") -> Rendition:
        async with free:
            pcm = synthesise(question, USER_VOICE).samples if question else None
            return await render(engine, text, 1000 * seed + number, pcm)

    try:
        return {
            OWN: await asyncio.gather(
                *(one(None, i, questions[answer]) for i, answer in enumerate(answers))
            ),
            "told, of its world": await asyncio.gather(
                *(one(answer, i) for i, answer in enumerate(answers))
            ),
            "told, new": await asyncio.gather(
                *(one(text, i) for i, text in enumerate(new_sentences(new, seed)))
            ),
        }
    finally:
        await engine.close()


def errors_of(rendition: Rendition) -> int:
    """Return the word errors of a rendition's sound."""
    words = rendition.text.split()
    recogniser = Recogniser(f"public <s> = ({' | '.join(sorted(set(words)))})+;")
    return word_errors(recogniser.words(rendition.pcm), words)


def report(group: str, renditions: list[Rendition]) -> str:
    """Return a row of the table."""
    spoken = [rendition for rendition in renditions if rendition.text]
    words = sum(len(rendition.text.split()) for rendition in spoken)
    errors = sum(errors_of(rendition) for rendition in spoken)
    firsts = [rendition.first_sound_ms for rendition in spoken]
    told = group != OWN
    equal = np.mean([rendition.text == rendition.monologue for rendition in spoken])
    return (
        f"| {group} | {len(spoken)} | {f'{equal:.0%}' if told else '–'} "
        f"| {np.median(firsts):.0f} | {np.percentile(firsts, 90):.0f} "
        f"| {np.mean([ms <= 500 for ms in firsts]):.0%} "
        f"| {np.mean([r.sounds_early for r in spoken]):.0%} "
        f"| {errors / words:.1%} ({words}) |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="embedded")
    parser.add_argument("--world", type=int, default=0, help="sentences of the world; 0 for all")
    parser.add_argument("--new", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    groups = asyncio.run(measure(args.checkpoint, args.world, args.new, args.seed))
    print(
        "| | sentences | monologue is the text | first sound p50, ms | p90, ms | within 500 ms "
        "| sound before the second word | word errors (words) |\n|---|---|---|---|---|---|---|---|"
    )
    for group, renditions in groups.items():
        print(report(group, renditions))
        for rendition in renditions if args.verbose else ():
            print(
                f"{rendition.first_sound_ms:.0f} ms, {rendition.sounds_early}, "
                f"{errors_of(rendition)} errors: {rendition.text}"
            )


if __name__ == "__main__":
    main()
