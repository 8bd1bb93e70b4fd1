"""How well the engine's TTS says sentences that it never saw: ``python -m benchmarks.voice``.

Each sentence is streamed as an LLM's would be, by the clock, at 30 words a second. Whisper hears
what the agent says, and what the TTS says of the same sentence in one piece: what the way through
the engine costs is the difference. It needs ``faster-whisper``, and a Whisper model in a folder.

With ``--callers N``, N conversations at a time hear such sentences without a pause instead: how
many of their steps come late, and how often the voice runs dry inside a sentence.
"""

import argparse
import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from loguru import logger

from benchmarks.cascade.parts import whisper_folder
from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.voice import load_tts
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES, STEP_SECS, SessionConfig
from pipecat_duplex.session.spoken_form import spoken_words
from training.recogniser import word_errors

WORDS_A_SEC = 30
LEAD_STEPS = 10
SOUND_DB = -50.0
WHISPER_HZ = 16_000
_SILENCE = np.zeros(STEP_SAMPLES, np.float32)

_NAMES = (
    "Martha Fernandez|Oliver Brooks|Priya Patel|Jonas Weber|Amara Okafor|Hugh McAllister".split("|")
)
_STREETS = "Maple Avenue|Station Road|Queen Street|Harbour Lane|Willow Drive".split("|")
_THINGS = "blue rain jacket|coffee grinder|folding bicycle|pair of running shoes|desk lamp".split(
    "|"
)
_DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday".split("|")
_MONTHS = "January|March|April|June|September|November".split("|")


@dataclass(frozen=True)
class Rendition:
    """A sentence, and what came of it.

    Parameters:
        text: What was to be said.
        first_sound_secs: From the first word of the stream to the first sound.
        secs: Length of the agent's speech.
        source_secs: Length of the TTS's, said in one piece.
        heard: What Whisper heard of the agent.
        source_heard: What it heard of the TTS.
        errors: Words that it heard wrong, of the agent.
        source_errors: The same of the TTS.
        words: Words of the text.
    """

    text: str
    first_sound_secs: float
    secs: float
    source_secs: float
    heard: str
    source_heard: str
    errors: int
    source_errors: int
    words: int


def sentences(count: int, seed: int) -> Iterator[str]:
    """Draw sentences of an assistant's: names, prices, dates, addresses, two at a time."""
    rng = np.random.default_rng(seed)

    def pick(items: list[str]) -> str:
        return items[rng.integers(len(items))]

    for _ in range(count):
        price = f"${rng.integers(3, 90)}.{rng.integers(10, 99)}"
        time = f"{rng.integers(1, 12)}:{rng.integers(10, 59)}"
        forms = [
            f"Thank you, {pick(_NAMES)}. Your {pick(_THINGS)} comes to {price}.",
            f"The {pick(_THINGS)} will arrive on {pick(_DAYS)}, at about {time} in the morning.",
            f"I have a table for {rng.integers(2, 12)} on {pick(_DAYS)}. Shall I book it for you?",
            f"We can send it to {rng.integers(2, 300)} {pick(_STREETS)}, if that suits you better.",
            f"I'm sorry, {pick(_NAMES)} is not in the office until {pick(_MONTHS)} "
            f"{rng.integers(2, 28)}. Would you like to leave a message?",
            f"Your balance is {price}, and the next payment is due in {pick(_MONTHS)}.",
            f"Could you spell your last name, please? I only heard {pick(_NAMES).split()[1]}.",
            f"That costs {price} a month, with a discount of {rng.integers(5, 60)} percent.",
        ]
        yield pick(forms)


async def stream(text: str) -> AsyncIterator[str]:
    """Give a text as an LLM does."""
    for word in text.split():
        yield f"{word} "
        await asyncio.sleep(1 / WORDS_A_SEC)


async def render(engine: Engine, text: str, seed: int) -> tuple[np.ndarray, float]:
    """Let the agent say a text by the clock; return its sound, and when it began."""
    session = await engine.open(SessionConfig(seed=seed))
    await session.hold(True)
    loop = asyncio.get_running_loop()
    pcm: list[np.ndarray] = []
    heard_at_secs: list[float] = []
    over = asyncio.Event()

    async def listen() -> None:
        async for step in session.steps():
            pcm.append(step.pcm)
            heard_at_secs.append(loop.time())
            if step.said:
                over.set()

    listener = asyncio.create_task(listen())
    began_secs, number, asked_secs = loop.time(), 0, 0.0
    while not over.is_set():
        if number == LEAD_STEPS:
            await session.say(stream(text))
            asked_secs = loop.time()
        session.send(_SILENCE)
        number += 1
        await asyncio.sleep(max(began_secs + number * STEP_SECS - loop.time(), 0))
    await session.close()
    await listener
    first = next(i for i, step in enumerate(pcm) if level_db(step) > SOUND_DB)
    onset = int(np.argmax(np.abs(pcm[first]) > 0.003)) / SAMPLE_RATE_HZ
    return np.concatenate(pcm), heard_at_secs[first] + onset - asked_secs


@dataclass(frozen=True)
class Load:
    """How callers were served whose agents speak all the time.

    Parameters:
        callers: How many.
        steps: Steps of all of them.
        late_steps: Steps that came more than 80 ms after their audio was sent.
        words: Words that were said.
        dry_steps: Silent steps between two words of a sentence that follow each other at once.
        step_ms: Median of the step's computation.
    """

    callers: int
    steps: int
    late_steps: int
    words: int
    dry_steps: int
    step_ms: float


async def serve_callers(callers: int, secs: float, seed: int) -> Load:
    """Let agents speak all the time, by the clock."""
    engine = await Engine.load("embedded", slots=callers, tts="hibari")
    loop = asyncio.get_running_loop()
    steps, late, words, dry = 0, 0, 0, 0

    async def call(number: int) -> None:
        nonlocal steps, late, words, dry
        await asyncio.sleep(number / callers)
        session = await engine.open(SessionConfig(seed=number))
        await session.hold(True)
        sent_secs: list[float] = []

        async def listen() -> None:
            nonlocal steps, late, words, dry
            speaks, quiet = False, 0
            async for step in session.steps():
                steps += 1
                late += loop.time() - sent_secs[step.index] > STEP_SECS
                quiet = quiet + 1 if not step.pcm.any() else 0
                if step.text_piece:
                    words += 1
                    dry += quiet if speaks else 0
                    quiet = 0
                    speaks = step.text_piece[-1] not in ".?!,"

        listener = asyncio.create_task(listen())
        texts = sentences(10_000, seed + number)
        began_secs, said = loop.time(), 0
        while (at_secs := loop.time() - began_secs) < secs:
            while said <= at_secs / 3:  # one is about as long: there is always something to say
                await session.say(stream(next(texts)))
                said += 1
            sent_secs.append(loop.time())
            session.send(_SILENCE)
            due_secs = began_secs + len(sent_secs) * STEP_SECS
            await asyncio.sleep(max(due_secs - loop.time(), 0))
        await session.close()
        await listener

    try:
        await asyncio.gather(*(call(number) for number in range(callers)))
        step_ms = engine.stats().compute_ms_p50
    finally:
        await engine.close()
    return Load(callers, steps, late, words, dry, step_ms)


class Whisper:
    """Hears sentences."""

    def __init__(self, folder: Path):
        """Load it.

        Args:
            folder: A model of faster-whisper's.
        """
        from faster_whisper import WhisperModel

        self._model = WhisperModel(str(folder), compute_type="int8", cpu_threads=1)

    def hear(self, pcm: np.ndarray) -> str:
        """Return what it hears in speech at 24 kHz."""
        import soxr

        at_16_khz = soxr.resample(pcm, SAMPLE_RATE_HZ, WHISPER_HZ)
        segments, _ = self._model.transcribe(at_16_khz, language="en")
        return " ".join(segment.text.strip() for segment in segments)


def spoken(text: str) -> list[str]:
    """Return the words of a text as they are spoken, without case and punctuation."""
    words = [part for word in text.split() for part in spoken_words(word)]
    return re.findall(r"[a-z0-9]+", " ".join(words).lower().replace("'", ""))


def length_secs(pcm: np.ndarray) -> float:
    """Return how long it sounds, from its first sound to its last."""
    loud = np.flatnonzero(np.abs(pcm) > 0.004)
    return float(loud[-1] - loud[0]) / SAMPLE_RATE_HZ


async def measure(count: int, seed: int, whisper: Whisper) -> list[Rendition]:
    """Render and hear all sentences."""
    tts = load_tts("hibari", "embedded")
    engine = await Engine.load("embedded", tts=tts)
    renditions = []
    try:
        for number, text in enumerate(sentences(count, seed)):
            pcm, first_sound_secs = await render(engine, text, seed=number)
            words = [part for word in text.split() for part in spoken_words(word)]
            source = tts.speak(words).pcm
            wanted = spoken(text)
            heard, source_heard = whisper.hear(pcm), whisper.hear(source)
            renditions.append(
                Rendition(
                    text,
                    first_sound_secs,
                    length_secs(pcm),
                    length_secs(source),
                    heard,
                    source_heard,
                    word_errors(spoken(heard), wanted),
                    word_errors(spoken(source_heard), wanted),
                    len(wanted),
                )
            )
            logger.info(f"{number + 1} of {count}: {heard}")
    finally:
        await engine.close()
    return renditions


def table(renditions: list[Rendition]) -> str:
    """Return the figures in Markdown."""
    words = sum(r.words for r in renditions)
    first = np.array([r.first_sound_secs for r in renditions])
    pace = sum(r.secs for r in renditions) / sum(r.source_secs for r in renditions)
    errors = sum(r.errors for r in renditions) / words
    source = sum(r.source_errors for r in renditions) / words
    return "\n".join(
        [
            "| sentences | first sound p50, p90, s | word errors | of the TTS alone | length |",
            "| --- | --- | --- | --- | --- |",
            f"| {len(renditions)} | {np.median(first):.2f}, {np.quantile(first, 0.9):.2f} | "
            f"{errors:.1%} of {words} | {source:.1%} | × {pace:.2f} |",
        ]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--whisper", type=Path, help="a folder; else two packages' (docs/llm.md)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--callers", type=int, help="callers at a time, and no recogniser")
    parser.add_argument("--secs", type=float, default=60.0, help="of each caller")
    args = parser.parse_args()
    if args.callers is not None:
        load = asyncio.run(serve_callers(args.callers, args.secs, args.seed))
        late = load.late_steps / max(load.steps, 1)
        print(load)
        print(f"{late:.2%} of the steps late, {load.dry_steps} steps dry in {load.words} words")
        return
    if args.whisper is not None:
        renditions = asyncio.run(measure(args.sentences, args.seed, Whisper(args.whisper)))
    else:
        with whisper_folder() as folder:
            renditions = asyncio.run(measure(args.sentences, args.seed, Whisper(folder)))
    print(table(renditions))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(each) for each in renditions], indent=1))


if __name__ == "__main__":
    main()
