"""The agent's answers and words in another voice, at the same times: targets for the decoder.

    python -m training.revoice DATA NEW_DATA

The language model has learned when the agent's codes come, and the decoder how they sound. So the
voice can change without the language model: each answer is spoken by the new voice, stretched word
by word to the times of the old one, and the decoder learns to make that of the same codes::

    NEW_DATA/speech/{agent,words}-000.npz    the new sound
    NEW_DATA/bank                            a link to the codes of DATA

The new voice is hibari, whose model gives spectral frames: they are stretched, not the sound.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.corpus import Utterance, read_corpus, write_part
from training.sizes import SAMPLE_RATE
from training.speech import (
    AGENT_VOICE,
    Span,
    Speech,
    carry_times,
    heard_secs,
    hibari_frames,
    hibari_sound,
    synthesise,
)

LEVEL = 2.4  # as loud as hibari speaks in the engine
HOP = 300  # samples of a frame
FRAME_SECS = 0.025  # of the model's word times
CARRIER = "um {} um"  # a word alone is spoken more slowly than in a sentence
EDGE = round(0.006 * SAMPLE_RATE)


def revoiced(utterance: Utterance) -> Utterance:
    """The utterance in the new voice; as many samples, and words at the same times."""
    old = utterance.speech
    if utterance.kind == "word":
        frames, words = hibari_frames(CARRIER.format(utterance.text))
        times, new_times = old.words, (_heard_word(words),)
    else:
        frames, _ = hibari_frames(utterance.text)
        times, new_times = old.phones, _carried(frames, old)
    count = -(-len(old.samples) // HOP) + 1
    places = _places(np.arange(count) * HOP / SAMPLE_RATE, times, new_times) * SAMPLE_RATE / HOP
    sound = LEVEL * hibari_sound(*_stretched(frames, places))[: len(old.samples)]
    sound = np.clip(np.pad(sound, (0, len(old.samples) - len(sound))), -1, 1).astype(np.float32)
    sound[:EDGE] *= np.linspace(0, 1, EDGE, dtype=np.float32)
    sound[-EDGE:] *= np.linspace(1, 0, EDGE, dtype=np.float32)
    return replace(utterance, voice="hibari:heart", speech=Speech(sound, old.phones, old.words))


def _carried(frames: list[np.ndarray], old: Speech) -> tuple[Span, ...]:
    """When the new voice says each phone of the old one.

    Only what is heard of both is compared. Else the silence in front of one voice's sentence is
    taken for the first word of the other's.
    """
    sound = hibari_sound(*frames)
    (start, end), (old_start, old_end) = heard_secs(sound), heard_secs(old.samples)
    trimmed = tuple(
        replace(span, start=max(span.start - old_start, 0.0), end=max(span.end - old_start, 0.0))
        for span in old.phones
    )
    timed = Speech(_between(old.samples, old_start, old_end), trimmed, ())
    carried = carry_times(_between(sound, start, end), timed).phones
    return tuple(replace(span, start=span.start + start, end=span.end + start) for span in carried)


def _heard_word(carrier: tuple[Span, ...]) -> Span:
    """When the word between two others is heard: a frame before the times that the model tells.

    Of 30 rows of such words, Whisper base then mishears as much as of the old voice's (0.28 of 180
    words, 0.29); with the times as they are, 0.69.
    """
    before, word, after = carrier
    return Span(
        word.label,
        (before.end + word.start) / 2 - FRAME_SECS,
        (word.end + after.start) / 2 - FRAME_SECS,
    )


def _between(samples: np.ndarray, start_secs: float, end_secs: float) -> np.ndarray:
    return samples[round(start_secs * SAMPLE_RATE) : round(end_secs * SAMPLE_RATE)]


def speak_answer(text: str) -> tuple[Speech, Speech]:
    """An answer in the voice whose codes the model has learned, and in the one that is decoded."""
    timed = synthesise(text, AGENT_VOICE)
    return timed, revoiced(Utterance(text, "answer", AGENT_VOICE, timed)).speech


def _places(secs: np.ndarray, old: tuple[Span, ...], new: tuple[Span, ...]) -> np.ndarray:
    """Where in the new voice, in seconds, each time of the old one is."""
    ends = [time for word in old for time in (word.start, word.end)]
    new_ends = [time for word in new for time in (word.start, word.end)]
    before, after = ends[0], secs[-1] - ends[-1]
    times = [ends[0] - before, *ends, ends[-1] + max(after, 1e-3)]
    new_times = [new_ends[0] - before, *new_ends, new_ends[-1] + max(after, 1e-3)]
    return np.interp(secs, np.maximum.accumulate(times), new_times)


def _stretched(frames: list[np.ndarray], places: np.ndarray) -> list[np.ndarray]:
    """Frames ``(bins, count)`` at these places: amplitudes between two, phases of the nearest."""
    lh, theta, ln, lr, phi, f0 = frames
    last = lh.shape[1] - 1
    places = np.clip(places, 0, last)
    below = np.floor(places).astype(int)
    above, share = np.minimum(below + 1, last), (places - below).astype(np.float32)
    nearest = np.round(places).astype(int)

    def between(part: np.ndarray) -> np.ndarray:
        return part[..., below] * (1 - share) + part[..., above] * share

    both = (f0[below] > 0) & (f0[above] > 0)
    pitch = np.where(both, between(f0), f0[nearest]).astype(np.float32)
    return [between(lh), theta[:, nearest], between(ln), between(lr), phi[:, nearest], pitch]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("new_data", type=Path)
    options = parser.parse_args()
    (options.new_data / "speech").mkdir(parents=True, exist_ok=True)
    bank = options.new_data / "bank"
    if not bank.exists():
        bank.symlink_to((options.data / "bank").resolve())
    for part in ("agent", "words"):
        new = [revoiced(utterance) for utterance in read_corpus(options.data, part)]
        write_part(options.new_data / "speech" / f"{part}-000.npz", new)
        print(f"{len(new)} of {part}", flush=True)


if __name__ == "__main__":
    main()
