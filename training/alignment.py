"""Stage 1, for people: when each phone of a recording is heard, by forced alignment.

    python -m training.alignment DATA RECORDINGS [--whisper MODEL] [--kept-out]

Writes parts ``DATA/speech/aligned-NNN.npz``: recordings as they are, with what is around the
speech, of all speakers that are not kept out of the training (``training.people``); with
``--kept-out``, ``DATA/speech/kept_out-NNN.npz`` of those that are, to measure by. pocketsphinx
aligns what is said, with its own pronunciations or, of words that it does not know, flite's.
Recordings without a text are left out, or heard by Whisper first: by a model of faster-whisper's,
such as ``base``, or its folder.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from training import people
from training.corpus import Utterance, write_part
from training.people import Recording
from training.sizes import SAMPLE_RATE
from training.speech import PHONES, Span, Speech, flite_phones

PART, KEPT_OUT = "aligned", "kept_out"
PART_SIZE = 500  # recordings
LONGEST_SECS = 14.0
_RATE = 16_000
_BEAM, _WORD_BEAM = 1e-64, 1e-48  # with wider ones, scores underflow and fewer are aligned
_LEAD_SECS, _TAIL_SECS = 0.1, 0.15


class Aligner:
    """pocketsphinx, told what is said."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder  # needed for nothing else

        self._decoder = Decoder(
            samprate=_RATE, loglevel="FATAL", lm=None, beam=_BEAM, wbeam=_WORD_BEAM, pbeam=_BEAM
        )

    def align(self, samples: np.ndarray, text: str) -> Speech | None:
        """The sound with the times of its phones and words, or None where they are not found.

        Args:
            samples: float32 mono at 24 kHz.
            text: lower-case words.
        """
        words = text.split()
        if not words or not all(self._knows(word) for word in words):
            return None
        sound = soxr.resample(samples, SAMPLE_RATE, _RATE)
        pcm = (sound / max(np.abs(sound).max(), 1e-3) * 20_000).astype(np.int16).tobytes()
        try:
            self._decoder.set_align_text(" ".join(words))
            self._hear(pcm)
            self._decoder.set_alignment()  # a second time, down to the phones
            self._hear(pcm)
        except RuntimeError:  # the last word was not reached
            return None
        phones, spoken = [], []
        for word in self._decoder.get_alignment():
            own = [_span(phone.name.lower(), phone) for phone in word]
            phones += own
            if any(span.label in PHONES for span in own):  # no silence and no noise
                spoken.append(Span(word.name.split("(")[0], own[0].start, own[-1].end))
        if len(spoken) != len(words):
            return None
        return Speech(samples, tuple(_known(phones)), tuple(spoken))

    def _hear(self, pcm: bytes) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()

    def _knows(self, word: str) -> bool:
        if self._decoder.lookup_word(word) is not None:
            return True
        phones = flite_phones(word)
        if not phones or not set(phones) <= set(PHONES):
            return False
        self._decoder.add_word(word, " ".join(phones).upper(), True)
        return True


def _span(label: str, part: Any) -> Span:
    return Span(label, part.start / 100, (part.start + part.duration) / 100)


def _known(phones: list[Span]) -> Iterator[Span]:
    for span in phones:
        yield span if span.label in PHONES else Span("pau", span.start, span.end)


def aligned(
    recording: Recording, aligner: Aligner, hear: Callable[[np.ndarray], str] = lambda _: ""
) -> Utterance | None:
    """A recording with its phones, where they are found.

    Args:
        recording: what somebody said.
        aligner: finds them.
        hear: tells what is said in 24 kHz sound, where the recording has no text.
    """
    samples = recording.samples()
    if len(samples) > LONGEST_SECS * SAMPLE_RATE:
        return None
    text = re.sub(r"[^a-z' ]", " ", (recording.said or hear(samples)).lower()).strip()
    speech = aligner.align(samples, text)
    if speech is None:  # without most of what is around it, perhaps
        start_secs, end_secs = people.heard(samples)
        first = max(round((start_secs - _LEAD_SECS) * SAMPLE_RATE), 0)
        last = round((end_secs + _TAIL_SECS) * SAMPLE_RATE)
        speech = aligner.align(samples[first:last], text)
    if speech is None:
        return None
    return Utterance(text, "outside", f"person:{recording.source}/{recording.speaker}", speech)


def whisper(model: str) -> Callable[[np.ndarray], str]:
    """What Whisper hears, and nothing where it writes figures, whose words are not known."""
    from faster_whisper import WhisperModel

    loaded = WhisperModel(model, compute_type="int8", cpu_threads=1)

    def hear(samples: np.ndarray) -> str:
        sound = soxr.resample(samples, SAMPLE_RATE, _RATE)
        parts, _ = loaded.transcribe(sound, language="en", beam_size=3)
        text = " ".join(part.text for part in parts)
        return "" if re.search(r"\d", text) else text

    return hear


def make_parts(
    data: Path, recordings: Path, hear: Callable[[np.ndarray], str], *, kept_out: bool
) -> None:
    """Write the parts that are missing, of the speakers of the training or of the others."""
    (data / "speech").mkdir(parents=True, exist_ok=True)
    own = [item for item in people.read_manifest(recordings) if item.held_out == kept_out]
    aligner = Aligner()
    for number, start in enumerate(range(0, len(own), PART_SIZE)):
        path = data / "speech" / f"{KEPT_OUT if kept_out else PART}-{number:03}.npz"
        if path.exists():
            continue
        found = [aligned(item, aligner, hear) for item in own[start : start + PART_SIZE]]
        utterances = [utterance for utterance in found if utterance is not None]
        if utterances:
            write_part(path, utterances)
        print(f"{path.name}: {len(utterances)} utterances", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--whisper", metavar="MODEL", help="hears recordings without a text")
    parser.add_argument("--kept-out", action="store_true", help="those who were kept out")
    options = parser.parse_args()
    hear = whisper(options.whisper) if options.whisper else lambda _: ""
    make_parts(options.data, options.recordings, hear, kept_out=options.kept_out)


if __name__ == "__main__":
    main()
