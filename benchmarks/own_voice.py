"""How like its source the agent's own voice is: ``python -m benchmarks.own_voice``.

Of each of the embedded model's own answers there are four renditions: by the source voice; that
voice at the model's times, which is what the decoder learned; the codec's (the encoder hears the
voice whose codes the model has learned); and the model's, which is asked for it. Measured are

- STOI: short-time objective intelligibility, Taal et al. 2011, by ``pystoi``, beside the second;
- mel distance: mean of the absolute difference of two log mel spectra in dB, beside the second,
  where that is above -60 dB of its loudest;
- F0: standard deviation of the pitch in semitones, by autocorrelation, and the voice's mean level;
- word errors of Whisper base, if there is a folder with it.

``--source flite:slt`` measures a checkpoint whose decoder learned that voice.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from loguru import logger

from benchmarks.say import USER_VOICE, render
from benchmarks.voice import Whisper, spoken
from pipecat_duplex.engine import Engine
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES
from training import world
from training.recogniser import word_errors
from training.revoice import speak_answer
from training.speech import AGENT_VOICE, synthesise

STOI_HZ = 10_000
LEAD_STEPS = 14
LONGEST_SHIFT = 3 * STEP_SAMPLES
_WINDOW, _HOP, _BANDS = 1_024, 256, 64


@dataclass(frozen=True)
class Rendition:
    """What one answer is worth, as one of the renditions.

    Parameters:
        stoi: 0 to 1; None for the source itself.
        mel_db: None for the source itself.
        pitch_semitones: Spread of F0; NaN where nothing is voiced.
        level_db: Of the whole, in dBFS.
        words: Words of the answer.
        errors: Of these, misheard by Whisper, if it was there.
    """

    stoi: float | None
    mel_db: float | None
    pitch_semitones: float
    level_db: float
    words: int
    errors: int | None


def codec_of(checkpoint: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the codec, there and back, for sound that begins on a step."""
    import torch

    from pipecat_duplex.engine.torch.checkpoint import load_checkpoint

    mimi = load_checkpoint(checkpoint, "cpu").mimi

    @torch.no_grad()
    def there_and_back(pcm: np.ndarray) -> np.ndarray:
        whole = np.pad(pcm, (LEAD_STEPS * STEP_SAMPLES, 4 * STEP_SAMPLES))
        whole = whole[: len(whole) // STEP_SAMPLES * STEP_SAMPLES]
        decoded = mimi.decode(mimi.encode(torch.from_numpy(whole)[None, None]))
        return decoded[0, 0, LEAD_STEPS * STEP_SAMPLES :].numpy()

    return there_and_back


def aligned(pcm: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return as many samples as are wanted, from where the two are most alike."""
    padded = np.pad(pcm, (LONGEST_SHIFT, LONGEST_SHIFT + len(wanted)))
    envelope = np.abs(wanted)
    hop = STEP_SAMPLES // 16
    scores = [
        float(envelope @ np.abs(padded[start : start + len(wanted)]))
        for start in range(0, len(pcm) + LONGEST_SHIFT, hop)
    ]
    start = int(np.argmax(scores)) * hop
    return padded[start : start + len(wanted)]


def mel_distance_db(pcm: np.ndarray, wanted: np.ndarray) -> float:
    """Return the mean difference of two sounds of one length, which may differ in level."""
    from training.codec import mel_filters

    filters = mel_filters(_WINDOW, _BANDS).numpy()

    def mel(samples: np.ndarray) -> np.ndarray:
        frames = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_HOP]
        spectrum = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW), axis=1))
        return 20 * np.log10(spectrum @ filters.T + 1e-5)

    ours, theirs = mel(pcm), mel(wanted)
    loud = theirs > theirs.max() - 60
    difference = (ours - theirs)[loud]
    return float(np.abs(difference - np.median(difference)).mean())


def pitch_spread(pcm: np.ndarray) -> float:
    """Return the standard deviation of F0 in semitones, between 80 and 400 Hz."""
    size, lags = 960, np.arange(SAMPLE_RATE_HZ // 400, SAMPLE_RATE_HZ // 80)
    found = []
    for start in range(0, len(pcm) - size - lags[-1], 240):
        frame = pcm[start : start + size]
        energy = float(frame @ frame)
        if energy / size < 1e-4:
            continue
        shifted = np.lib.stride_tricks.sliding_window_view(
            pcm[start + lags[0] : start + lags[-1] + size], size
        )
        energies = np.sqrt(energy * (shifted**2).sum(1)) + 1e-9
        likeness = shifted @ frame / energies
        if likeness.max() > 0.8:
            first = int(np.argmax(likeness > 0.95 * likeness.max()))  # no octave below
            found.append(12 * np.log2(SAMPLE_RATE_HZ / lags[first]))
    if len(found) < 5:
        return float("nan")
    middle = np.median(found)
    return float(np.std([note for note in found if abs(note - middle) < 9]))


def judge(
    text: str, pcm: np.ndarray, wanted: np.ndarray | None, whisper: Whisper | None
) -> Rendition:
    """Measure a rendition beside the one that was wanted."""
    stoi = mel_db = None
    if wanted is not None:
        from pystoi import stoi as stoi_of

        close = aligned(pcm, wanted)
        at_10_khz = [soxr.resample(part, SAMPLE_RATE_HZ, STOI_HZ) for part in (wanted, close)]
        stoi = float(stoi_of(*at_10_khz, STOI_HZ))
        mel_db = mel_distance_db(close, wanted)
    errors = None
    if whisper is not None:
        errors = word_errors(spoken(whisper.hear(pcm).replace("-", " ")), spoken(text))
    level_db = 10 * np.log10(float(np.square(pcm[np.abs(pcm) > 1e-3]).mean()) + 1e-9)
    return Rendition(stoi, mel_db, pitch_spread(pcm), level_db, len(text.split()), errors)


async def own_answers(checkpoint: str, texts: list[str]) -> dict[str, np.ndarray]:
    """Ask for each answer; those that come as they should."""
    questions = {exchange.answer: exchange.words for exchange in world.exchanges()}
    engine = await Engine.load(checkpoint, slots=1, tts="own")
    said = {}
    try:
        for number, text in enumerate(texts):
            question = synthesise(questions[text], USER_VOICE).samples
            rendition = await render(engine, None, number, question)
            if rendition.monologue == text:
                said[text] = rendition.pcm
    finally:
        await engine.close()
    return said


def measure(
    checkpoint: str, source: str, count: int, whisper: Whisper | None
) -> dict[str, list[Rendition]]:
    """Judge the renditions of ``count`` answers."""
    questions = {exchange.answer for exchange in world.exchanges()}
    texts = [answer for answer in world.answers() if answer in questions]
    order = np.random.default_rng(0).permutation(len(texts))[:count]
    texts = [texts[index] for index in order]
    said, codec = asyncio.run(own_answers(checkpoint, texts)), codec_of(checkpoint)
    found: dict[str, list[Rendition]] = {
        name: [] for name in ("source", "learned", "codec", "model")
    }
    for text in texts:
        timed, learned = (speech.samples for speech in speak_answer(text))
        if source == AGENT_VOICE:
            learned = timed
        found["source"].append(judge(text, synthesise(text, source).samples, None, whisper))
        found["learned"].append(judge(text, learned, None, whisper))
        found["codec"].append(judge(text, codec(timed), learned, whisper))
        if text in said:
            found["model"].append(judge(text, said[text], learned, whisper))
    return found


def table(found: dict[str, list[Rendition]]) -> str:
    """Return the table."""
    lines = [
        "| | answers | STOI | mel distance | spread of F0 | level | word errors |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]

    def mean(values: list, unit: str, digits: int) -> str:
        known = [value for value in values if value is not None]
        return f"{np.nanmean(known):.{digits}f}{unit}" if known else "–"

    for name, renditions in found.items():
        errors, words = [r.errors for r in renditions], sum(r.words for r in renditions)
        rate = "–" if None in errors else f"{sum(filter(None, errors)) / words:.1%} of {words}"
        lines.append(
            f"| {name} | {len(renditions)} | {mean([r.stoi for r in renditions], '', 2)} "
            f"| {mean([r.mel_db for r in renditions], ' dB', 1)} "
            f"| {mean([r.pitch_semitones for r in renditions], ' semitones', 1)} "
            f"| {mean([r.level_db for r in renditions], ' dBFS', 0)} | {rate} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="embedded")
    parser.add_argument("--source", default="hibari:heart", help="the voice that it learned")
    parser.add_argument("--answers", type=int, default=60)
    parser.add_argument("--whisper", type=Path, help="folder of Whisper base")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    whisper = Whisper(args.whisper) if args.whisper else None
    found = measure(args.checkpoint, args.source, args.answers, whisper)
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps({n: [vars(r) for r in rs] for n, rs in found.items()}))


if __name__ == "__main__":
    main()
